"""The traces of a run as a graph: what the final parameters depend on.

Theory of operation. A shard's trace is a row of *lives* (the stretches between two restorations),
each a row of versions; a *step* is what one push asked for, and all shards that saw the push name
it alike. A version depends on the one before it and on the step that was applied; a life's first
version on the snapshot that it began with; a step on the versions that its worker had read, of
every shard, and, where workers keep a state of their own, on its session's step before it.

Going backwards from the last version of each shard, everything that was reached is *needed*, and
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
from tardygrad.protocol.trace import Record

_PUSHED = (trace.APPLIED, trace.DUPLICATE, trace.DROPPED, trace.REFUSED)


class Life:
    """One stretch of a shard between two restorations; its states are numbered by version.

    Attributes:
        start: the state whose snapshot it began with; None for the run's initial values.
        base: its first version.
        applied: ``applied[i]`` led from version ``base + i`` to the next, with the number of
            samples that were booked before it.
        booked: samples booked at its end.
        need: the newest version that anything depends on; -1 if nothing does.
    """

    __slots__ = ("applied", "base", "booked", "incarnation", "need", "start")

    def __init__(self, incarnation: int, start: State | None, booked: int) -> None:
        self.incarnation = incarnation
        self.start = start
        self.base = 0 if start is None else start[1]
        self.booked = booked
        self.applied: list[tuple[Record, int]] = []
        self.need = -1

    @property
    def version(self) -> int:
        """The last version."""
        return self.base + len(self.applied)


State: TypeAlias = tuple[Life, int]
"""A shard at a version of one of its lives."""


class Step:
    """What one push asked for.

    Attributes:
        record: the first record found of it.
        session: the stretch of worker state that it belongs to; 0 where workers keep none.
        previous: the session's step before it, where workers keep a state.
        reads: for each shard the state that the worker had read; only of a needed step.
        uses: how many shards must apply it.
    """

    __slots__ = ("needed", "previous", "reads", "record", "session", "uses")

    def __init__(self, record: Record, session: int) -> None:
        self.record = record
        self.session = session
        self.previous: Step | None = None
        self.reads: tuple[State, ...] = ()
        self.needed = False
        self.uses = 0


class History:
    """The graph of a run.

    Args:
        traces: for each shard its records, oldest first.
        stateful: whether a step depends on the earlier ones of its session.

    Attributes:
        lives: for each shard its lives, oldest first.
        readers: how many needed steps read a state.
        heirs: how many needed lives begin with a state's snapshot.
        left: how many steps of each session are needed.

    Raises:
        LedgerError: the traces contradict themselves or each other.
        ReplayMismatch: a needed step left no record.
    """

    def __init__(self, traces: Sequence[Sequence[Record]], *, stateful: bool) -> None:
        self.lives = [_lives_of(shard, records) for shard, records in enumerate(traces)]
        self.readers: Counter[State] = Counter()
        self.heirs: Counter[State] = Counter()
        self.left: Counter[int] = Counter()
        self._incarnations = [{life.incarnation: life for life in row} for row in self.lives]
        self._steps: dict[tuple[int, int], Step] = {}
        for shard, records in enumerate(traces):
            self._collect(shard, records, stateful)
        if stateful:
            self._link()
        self._mark()

    @property
    def needed(self) -> int:
        """How many steps are needed."""
        return self.left.total()

    def step(self, record: Record) -> Step:
        """The step that a record is about."""
        return self._steps[(record.session, record.seq)]

    def _collect(self, shard: int, records: Iterable[Record], stateful: bool) -> None:
        for record in records:
            if record.kind not in _PUSHED:
                continue
            key = (record.session, record.seq)
            step = self._steps.get(key)
            if step is None:
                self._steps[key] = Step(record, record.session if stateful else 0)
            elif push_of(step.record) != push_of(record):
                impossible(shard, record, f"elsewhere that step is {_describe(step.record)}")

    def _link(self) -> None:
        before: Step | None = None
        for _, step in sorted(self._steps.items(), key=lambda item: item[0]):
            if before is not None and before.session == step.session:
                step.previous = before
            before = step

    def _mark(self) -> None:
        stack: list[State | Step] = [(row[-1], row[-1].version) for row in self.lives]
        while stack:
            item = stack.pop()
            stack += self._need_step(item) if isinstance(item, Step) else self._need(*item)

    def _need(self, life: Life, version: int) -> Iterator[State | Step]:
        if version <= life.need:
            return
        if life.need < 0 and life.start is not None:
            self.heirs[life.start] += 1
            yield life.start
        reached = max(life.need, life.base)
        life.need = version
        for record, _ in life.applied[reached - life.base : version - life.base]:
            step = self.step(record)
            step.uses += 1
            yield step

    def _need_step(self, step: Step) -> Iterator[State | Step]:
        if step.needed:
            return
        step.needed = True
        self.left[step.session] += 1
        step.reads = tuple(self._read(shard, step.record) for shard in range(len(self.lives)))
        for state in step.reads:
            self.readers[state] += 1
            yield state
        if step.previous is not None:
            if step.previous.record.seq != step.record.seq - 1:
                raise ReplayMismatch(
                    "the run cannot be repeated: of the step before this one no shard has a "
                    f"record, and its worker kept a state of its own: {_describe(step.record)}"
                )
            yield step.previous

    def _read(self, shard: int, record: Record) -> State:
        incarnation, version = record.reads[shard]
        life = self._incarnations[shard].get(incarnation)
        if life is None or not life.base <= version <= life.version:
            impossible(shard, record, f"incarnation {incarnation} had no version {version} to read")
        return life, version


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
    first = records[0] if records and records[0].kind != trace.RESTORED else None
    life = Life(0 if first is None else first.incarnation, None, 0)
    lives = [life]
    snapshots: dict[int, tuple[State | None, int]] = {0: (None, 0)}
    for record in records:
        if record.kind == trace.RESTORED:
            if record.seq not in snapshots:
                impossible(shard, record, "that snapshot was never taken")
            if record.incarnation <= life.incarnation:
                impossible(shard, record, f"incarnation {life.incarnation} was there before")
            life = Life(record.incarnation, *snapshots[record.seq])
            lives.append(life)
        elif record.kind in (trace.APPLIED, trace.DROPPED, trace.SNAPSHOT):
            if record.incarnation != life.incarnation:
                impossible(shard, record, f"incarnation {life.incarnation} was alive")
            if record.kind == trace.SNAPSHOT:
                snapshots[record.seq] = ((life, life.version), life.booked)
            elif record.kind == trace.APPLIED:
                life.applied.append((record, life.booked))
            life.booked += record.samples
        else:
            continue
        if record.version != life.version:
            impossible(shard, record, f"the shard was at version {life.version}")
    return lives
