"""The traces of a run as a graph: what the final parameters depend on.

Theory of operation. A shard's trace is a row of *lives* (the stretches between two restorations),
each a row of versions; a *step* is what one push asked for, and all shards that saw the push name
it alike. What a shard holds after each record is a *state*: the parameters, and what its open round
has gathered. A state depends on the one before it and on the step that was applied or gathered; a
life's first state on the snapshot that it began with; a step on the versions that its worker had
read, of every shard, and, where workers keep a state of their own, on the step before it in its
*chain*: of its session, or, where a codec remembers something, of its worker's process and those
that this one took over from. Where workers average their replicas (``meetings``), a step depends
on those of other workers with whose replicas it was averaged, and reads versions only where its
session begins.

Going backwards from the last state of each shard, everything that was reached is *needed*, and
it is counted how often. Updates that were refused, or rolled back and read by nobody who counts,
are not needed: nobody could tell whether they were ever computed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NoReturn, TypeAlias

from tardygrad.errors import LedgerError, ReplayMismatch
from tardygrad.protocol import trace
from tardygrad.protocol.events import Push
from tardygrad.protocol.meetings import Met
from tardygrad.protocol.residuals import Chains, life_of
from tardygrad.protocol.residuals import Life as Chain
from tardygrad.protocol.trace import Record

_GATHERED = (trace.GATHERED, trace.INCLUDED)
_PUSHED = (trace.APPLIED, *_GATHERED, trace.DUPLICATE, trace.DROPPED, trace.REFUSED)
_MOVES = (trace.APPLIED, *_GATHERED, trace.COMMITTED)


class Life:
    """One stretch of a shard between two restorations; its states are numbered from 0.

    Attributes:
        incarnations: whose it was, oldest first; a backup that was promoted goes on with it.
        start: the state whose snapshot it began with; None for the run's initial values.
        moves: ``moves[i]`` led from state ``i`` to the next, with the number of samples that were
            booked before it, or before its round if it is a commit.
        version: the newest version.
        booked: samples booked at its end.
        round_since: samples booked before the open round began; None if nothing is gathered.
        need: the newest state that anything depends on; -1 if nothing does.
    """

    __slots__ = (
        "_base",
        "_states",
        "booked",
        "incarnations",
        "moves",
        "need",
        "round_since",
        "start",
    )

    def __init__(
        self, incarnation: int, start: State | None, version: int, booked: int, since: int | None
    ) -> None:
        self.incarnations = [incarnation]
        self.start = start
        self.moves: list[tuple[Record, int]] = []
        self.booked = booked
        self.round_since = since
        self.need = -1
        self._base = version
        # The state that made each version, from the base on.
        self._states = [0]

    @property
    def incarnation(self) -> int:
        """Whose it is at its end."""
        return self.incarnations[-1]

    @property
    def version(self) -> int:
        """The newest version."""
        return self._base + len(self._states) - 1

    @property
    def last(self) -> int:
        """The number of the last state."""
        return len(self.moves)

    def state_of(self, version: int) -> int | None:
        """The number of the state that made a version; None if this life never had it."""
        number = version - self._base
        return self._states[number] if 0 <= number < len(self._states) else None

    def take(self, record: Record) -> None:
        """The next record that moves the shard or books samples."""
        if record.kind in _MOVES:
            since = self.booked
            if record.kind in _GATHERED and self.round_since is None:
                self.round_since = since
            elif record.kind == trace.COMMITTED:
                since = self.booked if self.round_since is None else self.round_since
                self.round_since = None
            self.moves.append((record, since))
            if record.kind not in _GATHERED:
                self._states.append(len(self.moves))
        self.booked += record.samples


State: TypeAlias = tuple[Life, int]
"""A shard's state in one of its lives, by its number."""


class Step:
    """What one push asked for.

    Attributes:
        record: the first record found of it.
        shard: whose record that is.
        chain: the stretch of worker state that it belongs to; the same for all where workers keep
            none.
        previous: the chain's step before it, where workers keep a state.
        reads: for each shard the state that the worker had read; only of a needed step.
        uses: how many shards must apply it.
        took: whose offer the worker took before it.
        back: who had taken the worker's own offer.
        takers: how many needed steps take what the worker offered before this one.
        gainers: how many needed steps take up the difference that it left when it took.
    """

    __slots__ = (
        "back",
        "chain",
        "gainers",
        "needed",
        "previous",
        "reads",
        "record",
        "shard",
        "takers",
        "took",
        "uses",
    )

    def __init__(self, record: Record, shard: int, chain: Chain) -> None:
        self.record = record
        self.shard = shard
        self.chain = chain
        self.previous: Step | None = None
        self.reads: tuple[State, ...] = ()
        self.needed = False
        self.uses = 0
        self.took: Step | None = None
        self.back: Step | None = None
        self.takers = 0
        self.gainers = 0

    @property
    def before(self) -> list[Step]:
        """The steps that must be computed before this one."""
        return [s for s in (self.previous, self.back, self.took) if s is not None]


class History:
    """The graph of a run.

    Args:
        traces: for each shard its records, oldest first.
        stateful: whether a step depends on the earlier ones of its session.
        chains: where a codec remembers something, which processes went on with whose residual; a
            step then depends on all earlier ones of its chain.
        meetings: where workers average their replicas, what each did before each of its steps;
            else None.

    Attributes:
        lives: for each shard its lives, oldest first.
        readers: how many needed steps read a state.
        heirs: how many needed lives begin with a state's snapshot.
        left: how many steps of each chain are needed.

    Raises:
        LedgerError: the traces contradict themselves or each other.
        ReplayMismatch: a needed step left no record.
    """

    def __init__(
        self, traces: Sequence[Sequence[Record]], *, stateful: bool, chains: Chains | None = None,
        meetings: Sequence[Met] | None = None,
    ) -> None:  # fmt: skip
        self.lives = [_lives_of(shard, records) for shard, records in enumerate(traces)]
        self.readers: Counter[State] = Counter()
        self.heirs: Counter[State] = Counter()
        self.left: Counter[Chain] = Counter()
        self._stateful, self._chains = stateful, chains
        self._incarnations = [
            {incarnation: life for life in row for incarnation in life.incarnations}
            for row in self.lives
        ]
        self._steps: dict[tuple[int, int], Step] = {}
        self._meets = meetings is not None
        self._met: set[tuple[int, int]] = set()
        for shard, records in enumerate(traces):
            self._collect(shard, records)
        self._collect_meetings(meetings or ())
        if stateful or chains is not None:
            self._link()
        self._mark()

    @property
    def needed(self) -> int:
        """How many steps are needed."""
        return self.left.total()

    def step(self, record: Record) -> Step:
        """The step that a record is about."""
        return self._steps[(record.session, record.seq)]

    def _chain(self, record: Record) -> Chain:
        if self._chains is not None:
            return self._chains.of(record.worker, record.seq)
        return (0, record.session) if self._stateful else (0, 0)

    def _collect(self, shard: int, records: Iterable[Record]) -> None:
        for record in records:
            if record.kind not in _PUSHED:
                continue
            key = (record.session, record.seq)
            step = self._steps.get(key)
            if step is None:
                self._steps[key] = Step(record, shard, self._chain(record))
            elif push_of(step.record) != push_of(record):
                impossible(shard, record, f"elsewhere that step is {_describe(step.record)}")

    def _collect_meetings(self, meetings: Sequence[Met]) -> None:
        # Also those that no shard has heard of: others may have met who computed them.
        by_worker: dict[tuple[int, int], Step] = {}
        for met in meetings:
            key = (met.session, met.seq)
            if key not in self._steps:
                record = Record(trace.REFUSED, 0, 0, *met[:8], reads=met.reads)
                # Of whichever shard: where workers meet, none is exchanged in turns.
                self._steps[key] = Step(record, 0, self._chain(record))
            by_worker[(met.worker, met.seq)] = self._steps[key]
            self._met.add(key)
        for met in meetings:
            step = by_worker[(met.worker, met.seq)]
            own = step.record
            if (own.worker, own.epoch, own.fragment, own.first, own.stop) != (met[0], *met[4:8]):
                _impossible_meeting(met, f"it is about {_describe(own)}")
            if met.took is not None:
                step.took = by_worker.get((met.took.worker, met.took.seq))
            if met.back is not None:
                step.back = by_worker.get((met.back.worker, met.back.at))
            if (step.took is None, step.back is None) != (met.took is None, met.back is None):
                raise ReplayMismatch(
                    f"the run cannot be repeated: of a worker that was met there is no entry: {met}"
                )
        for met in meetings:
            giver = by_worker[(met.worker, met.seq)].back
            offer = None if met.back is None else by_worker.get((met.worker, met.back.seq))
            if giver is not None and (offer is None or giver.took is not offer):
                _impossible_meeting(met, "whoever took its offer says otherwise")

    def _link(self) -> None:
        last: dict[Chain, Step] = {}
        for step in sorted(self._steps.values(), key=lambda step: (step.chain, step.record.seq)):
            own = step.chain
            if self._chains is not None:
                own = life_of(step.record.worker, step.record.seq)
            step.previous = self._newest(own, last)
            last[own] = step

    def _newest(self, life: Chain | None, last: dict[Chain, Step]) -> Step | None:
        """The last step of a life so far, or of those that it took over from."""
        while life is not None and life not in last:
            life = None if self._chains is None else self._chains.before(life)
        return None if life is None else last[life]

    def _mark(self) -> None:
        stack: list[State | Step] = [(row[-1], row[-1].last) for row in self.lives]
        while stack:
            item = stack.pop()
            stack += self._need_step(item) if isinstance(item, Step) else self._need(*item)

    def _need(self, life: Life, state: int) -> Iterator[State | Step]:
        if state <= life.need:
            return
        if life.need < 0 and life.start is not None:
            self.heirs[life.start] += 1
            yield life.start
        reached = max(life.need, 0)
        life.need = state
        for record, _ in life.moves[reached:state]:
            if record.kind != trace.COMMITTED:
                step = self.step(record)
                step.uses += 1
                yield step

    def _need_step(self, step: Step) -> Iterator[State | Step]:
        if step.needed:
            return
        step.needed = True
        self.left[step.chain] += 1
        if not self._meets or step.previous is None:
            step.reads = tuple(self._read(shard, step.record) for shard in range(len(self.lives)))
        for state in step.reads:
            self.readers[state] += 1
            yield state
        if self._meets:
            yield from self._need_meeting(step)
        if step.previous is not None:
            before, own = step.previous.record, step.record
            # Between two sessions a worker may have pulled, or computed, what it never published.
            if before.session == own.session and before.seq != own.seq - 1:
                raise ReplayMismatch(
                    "the run cannot be repeated: of the step before this one no shard has a "
                    f"record, and its worker kept a state of its own: {_describe(step.record)}"
                )
            yield step.previous

    def _need_meeting(self, step: Step) -> Iterator[Step]:
        if (step.record.session, step.record.seq) not in self._met:
            raise ReplayMismatch(
                "the run cannot be repeated: whom its worker met before this step is not on "
                f"record: {_describe(step.record)}"
            )
        if step.took is not None:
            step.took.takers += 1
            yield step.took
        if step.back is not None:
            step.back.gainers += 1
            yield step.back

    def _read(self, shard: int, record: Record) -> State:
        incarnation, version = record.reads[shard]
        life = self._incarnations[shard].get(incarnation)
        state = None if life is None else life.state_of(version)
        if life is None or state is None:
            impossible(shard, record, f"incarnation {incarnation} had no version {version} to read")
        return life, state


def push_of(record: Record) -> Push:
    """The push that a record is about; its lineage is not on record."""
    return Push(0, *record[3:13], record.reads)


def impossible(shard: int, record: Record, why: str) -> NoReturn:
    """Say that a trace cannot be what it claims to be.

    Raises:
        LedgerError: always.
    """
    raise LedgerError(
        f"the trace of shard {shard} is impossible: {why}; the record is {_describe(record)}; "
        "restore the folder trace from a copy of the run directory"
    )


def _impossible_meeting(met: Met, why: str) -> NoReturn:
    raise LedgerError(
        f"the meetings are impossible: {why}; the entry is {met}; restore the folder trace from a "
        "copy of the run directory"
    )


def _describe(record: Record) -> str:
    what = f"'{trace.KIND_NAMES[record.kind]}' of incarnation {record.incarnation}"
    if record.kind not in _PUSHED:
        return f"{what} at version {record.version}, snapshot {record.seq}"
    return (
        f"{what} at version {record.version}, step {record.seq} of session {record.session} by "
        f"worker {record.worker} (epoch {record.epoch + 1}, fragment {record.fragment}, batches "
        f"{record.first} to {record.stop - 1})"
    )


def _lives_of(shard: int, records: Sequence[Record]) -> list[Life]:
    """A shard's history, checked."""
    successor = (trace.RESTORED, trace.PROMOTED)
    first = records[0] if records and records[0].kind not in successor else None
    life = Life(0 if first is None else first.incarnation, None, 0, 0, None)
    lives = [life]
    snapshots: dict[int, tuple[State | None, int, int, int | None]] = {0: (None, 0, 0, None)}
    for record in records:
        if record.kind == trace.RESTORED:
            if record.seq not in snapshots:
                impossible(shard, record, "that snapshot was never taken")
            if record.incarnation <= life.incarnation:
                impossible(shard, record, f"incarnation {life.incarnation} was there before")
            life = Life(record.incarnation, *snapshots[record.seq])
            lives.append(life)
        elif record.kind == trace.PROMOTED:
            if record.incarnation <= life.incarnation:
                impossible(shard, record, f"incarnation {life.incarnation} was there before")
            life.incarnations.append(record.incarnation)
        elif record.kind in (*trace.BOOKED, trace.COMMITTED, trace.SNAPSHOT):
            if record.incarnation != life.incarnation:
                impossible(shard, record, f"incarnation {life.incarnation} was alive")
            if record.kind == trace.COMMITTED and life.round_since is None:
                impossible(shard, record, "nothing was gathered")
            if record.kind == trace.SNAPSHOT:
                state = (life, life.last)
                snapshots[record.seq] = (state, life.version, life.booked, life.round_since)
            else:
                life.take(record)
        else:
            continue
        if record.version != life.version:
            impossible(shard, record, f"the shard was at version {life.version}")
    return lives
