"""Re-execute a recorded run from its traces alone and compare the parameters, bit for bit.

Theory of operation. A trace says in which order its shard applied the updates, and of each update
which batches it was made of and which version of *every* shard its worker had read. The order in
time of anything else is irrelevant: an update is a function of the parameters read, the batches,
and (where a method keeps a replica, or a model buffers) the session's earlier steps, or those of
workers whose replicas were averaged with it. So a run is a
graph (``protocol.history``), and this module computes what the final parameters need of it, with
the same worker and shard hosts as the engines, in one process.

Shards take in their updates in turn, and a step is computed when the first shard asks for it. A
state is kept until the last step that reads it is computed, an update until the last shard has
applied it, a snapshot until the last life that begins with it: memory does not grow with the run.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from tardygrad.engines import sums
from tardygrad.engines.base import Job, Tensors
from tardygrad.engines.gloo import Rehearsal
from tardygrad.engines.packing import Packer
from tardygrad.engines.peers import PastMeetings
from tardygrad.engines.shard_host import NoTrace, ShardHost, digest
from tardygrad.engines.worker_host import WorkerHost
from tardygrad.errors import LedgerError, RunDirectoryError
from tardygrad.metrics import sink
from tardygrad.protocol import trace
from tardygrad.protocol.effects import Apply, Commit, Compute, Gather, Include
from tardygrad.protocol.events import Lease
from tardygrad.protocol.history import History, State, Step, impossible, push_of
from tardygrad.protocol.history import Life as ShardLife
from tardygrad.protocol.meetings import Met
from tardygrad.protocol.residuals import Chains, Life, Residual, Returned
from tardygrad.protocol.trace import Record
from tardygrad.storage.run_directory import RunDirectory
from tardygrad.storage.traces import cuts, read_meetings, read_residuals, read_traces
from tardygrad.turns import Turns

__all__ = ["ReplayReport", "check_repeatable", "replay", "replay_traces"]

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the steps computed so far and the steps to compute in all."""

Part: TypeAlias = tuple[torch.Tensor, torch.Tensor | None]
"""A shard's parameters, and the averaged buffers if it is shard 0."""

_REPORT_EVERY_S = 0.05


@dataclass(frozen=True)
class ReplayReport:
    """What a replay gave. Digests are hexadecimal; ``updates`` were computed in ``seconds``."""

    expected: str
    found: str
    updates: int
    seconds: float

    @property
    def matches(self) -> bool:
        """Whether the parameters are the recorded run's, bit for bit."""
        return self.expected == self.found


def replay(
    run: str | os.PathLike[str],
    progress: Progress | None = None,
    *,
    data: Any = None,
    test_data: Any = None,
) -> ReplayReport:
    """Repeat a run that has ended, and compare the digest of its parameters.

    Nothing is written. The caller's random state and thread count are left as they were.

    Args:
        run: The run's directory.
        progress: Called now and then.
        data: The training data again, if they were too large to be kept in the run directory.
        test_data: Likewise.

    Raises:
        RunDirectoryError: There is no run, or it has not ended.
        LedgerError: A trace is damaged, missing, or impossible.
        ReplayMismatch: The traces lack a step that the parameters depend on.
    """
    from tardygrad.training import job_of_run

    directory = RunDirectory.open(run)
    expected = _recorded_digest(directory)
    check_repeatable(directory)
    traces, residuals = read_traces(directory.trace), read_residuals(directory.trace)
    meetings = read_meetings(directory.trace)
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng(devices=[]):
            job = job_of_run(directory.path, None if data is None else {"data": (data, test_data)})
            torch.set_num_threads(job.config.threads)
            began = time.perf_counter()
            execution = _Execution(job, traces, residuals, progress, meetings)
            found = digest([execution.run()])
            return ReplayReport(expected, found, execution.done, time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)


def replay_traces(
    job: Job,
    traces: Sequence[Sequence[Record]],
    residuals: Sequence[Residual] = (),
    progress: Progress | None = None,
    meetings: Sequence[Met] = (),
) -> torch.Tensor:
    """The final parameters and averaged buffers of a run, float32 ``[layout.size]``.

    Args:
        job: What the run was given; its ``trace_directory`` and engine are not looked at.
        traces: For each shard its records, oldest first.
        residuals: What workers wrote down of their residuals, oldest first.
        progress: Called now and then.
        meetings: What workers wrote down of their meetings, oldest first.

    Raises:
        LedgerError: The traces are impossible: something was read that never was, say.
        ReplayMismatch: The traces lack a step that the parameters depend on.
    """
    return _Execution(job, traces, residuals, progress, meetings).run()


def _recorded_digest(directory: RunDirectory) -> str:
    last: dict[str, Any] = {}
    for event in sink.read(directory.metrics_jsonl):
        if event.get("event") in ("run_start", "run_end"):
            last = event
    if not isinstance(last.get("digest"), str):
        raise RunDirectoryError(
            f"{directory} has no end to compare with: it is going on or was killed; resume it, "
            "and replay it when it has ended"
        )
    return str(last["digest"])


def check_repeatable(directory: RunDirectory) -> None:
    """See that a run kept its method and its shards, as one that is repeated must have.

    Raises:
        RunDirectoryError: it did not.
    """
    starts = [e for e in sink.read(directory.metrics_jsonl) if e.get("event") == "run_start"]
    methods = [start["method"] for start in starts if "method" in start]
    if any(method != methods[0] for method in methods):
        names = " and ".join(dict.fromkeys(str(method["name"]) for method in methods))
        raise RunDirectoryError(
            f"{directory} was resumed with another method or other settings of it ({names}); only "
            "a run that kept its method can be repeated from its beginning"
        )
    if cuts(directory.path):
        raise RunDirectoryError(
            f"{directory} was resumed with another number of servers; only a run that kept its "
            "shards can be repeated from its beginning"
        )


class _Memory:
    """What is kept of states that something will need: copies, and how often they are needed."""

    def __init__(self, history: History) -> None:
        self._readers, self._heirs = history.readers, history.heirs
        self._copies: dict[State, Part] = {}
        self._snapshots: dict[State, Tensors] = {}

    def reached(self, state: State, host: ShardHost, buffers: torch.Tensor | None) -> None:
        """Keep of a shard's state what is needed of it."""
        if self._readers[state]:
            copy = None if buffers is None else buffers.clone()
            self._copies[state] = (host.parameters.clone(), copy)
        if self._heirs[state]:
            self._snapshots[state] = host.snapshot()

    def has(self, state: State) -> bool:
        """Whether the state can be read."""
        return state in self._copies

    def read(self, state: State) -> Part:
        """The shard's parameters, and the averaged buffers if it is shard 0; a reader less."""
        self._readers[state] -= 1
        return self._copies[state] if self._readers[state] else self._copies.pop(state)

    def snapshot(self, state: State) -> Tensors:
        """The snapshot that a life begins with; an heir less."""
        self._heirs[state] -= 1
        return self._snapshots[state] if self._heirs[state] else self._snapshots.pop(state)


class _Averages:
    """Averages updates of a group as the run's engine did, to the bit."""

    def __init__(self, job: Job) -> None:
        self._by_gloo = job.config.engine == "processes"
        self._rehearsals: dict[int, Rehearsal] = {}

    def __call__(self, updates: list[torch.Tensor], samples: list[int]) -> torch.Tensor:
        """The mean, weighted by samples."""
        ranks = len(updates)
        # Two numbers have one sum.
        if not self._by_gloo or ranks == 2:
            return sums.mean(updates, samples)
        if ranks not in self._rehearsals:
            self._rehearsals[ranks] = Rehearsal(ranks, updates[0].numel())
        return self._rehearsals[ranks].mean(updates, samples)


class _Shard:
    """One shard on its way through its lives."""

    def __init__(
        self, job: Job, number: int, lives: Iterable[ShardLife], flat: torch.Tensor,
        memory: _Memory, average: _Averages,
    ) -> None:  # fmt: skip
        self._job = job
        self._average = average
        self._memory = memory
        self._where = job.ranges[number].slice
        self._parameters = flat[self._where]
        self._buffers_at = job.layout.parameters_size
        self._buffers = flat[self._buffers_at :] if number == 0 else None
        self._lives = [life for life in lives if life.need >= 0]
        self._parts: list[tuple[Record, torch.Tensor]] = []
        self.reached = 0
        """How many states were reached so far."""
        self._begin()

    def next(self) -> tuple[Record, int] | None:
        """The next move and the samples booked before it; None at the end."""
        while self._state == self._lives[0].need:
            if len(self._lives) == 1:
                return None
            self._lives.pop(0)
            self._begin()
        return self._lives[0].moves[self._state]

    def move(self, record: Record, consumed: int, update: torch.Tensor | None) -> None:
        """Apply or gather an update, float32 ``[layout.size]``, or commit what was gathered."""
        if update is None:
            self._host.commit(Commit(consumed, record))
        elif record.kind == trace.INCLUDED:
            self._parts.append((record, update))
            self._host.include(Include(push_of(record), record), update[self._buffers_at :])
        elif record.kind == trace.GATHERED:
            own = update[self._buffers_at :]
            parts, self._parts = [*self._parts, (record, update)], []
            if len(parts) > 1:
                # In the order of the ranks, and the whole vector, as the group did it.
                parts.sort(key=lambda part: part[0].worker)
                whole = [u[: self._buffers_at] for _, u in parts]
                update = self._average(whole, [r.samples for r, _ in parts])
            weight = sum(r.scale * self._job.weight_of(r) for r, _ in parts)
            self._host.gather(Gather(push_of(record), weight, record), update[self._where], own)
        else:
            apply = Apply(push_of(record), record.scale, consumed, record)
            self._host.apply(apply, update[self._where], update[self._buffers_at :])
        self._reached(self._state + 1)

    def _begin(self) -> None:
        """Begin the next life as an engine starts a server."""
        self._parameters.copy_(self._job.initial[self._where])
        if self._buffers is not None:
            self._buffers.copy_(self._job.initial[self._buffers_at :])
        self._host = ShardHost(self._job.method, self._parameters, self._buffers, NoTrace())
        self._parts = []
        life = self._lives[0]
        if life.start is not None:
            self._host.restore(self._memory.snapshot(life.start))
        self._reached(0)

    def _reached(self, state: int) -> None:
        self._state = state
        self.reached += 1
        self._memory.reached((self._lives[0], state), self._host, self._buffers)


class _Execution:
    """Computes what is needed of a run; ``done`` counts the steps."""

    def __init__(
        self,
        job: Job,
        traces: Sequence[Sequence[Record]],
        residuals: Sequence[Residual],
        progress: Progress | None,
        meetings: Sequence[Met] = (),
    ) -> None:
        if len(traces) != len(job.ranges):
            raise LedgerError(
                f"there are traces of {len(traces)} shards, the run has {len(job.ranges)}; restore "
                "the run directory from a copy"
            )
        self.done = 0
        self._job = job
        self._progress = progress
        self._reported = 0.0
        stateful = job.method.keeps_replica or job.layout.buffers_size > 0
        self._chains = Chains(residuals) if job.method.codec.remembers else None
        met = meetings if job.method.uses_peers else None
        self._history = History(traces, stateful=stateful, chains=self._chains, meetings=met)
        self._meetings = PastMeetings() if job.method.uses_peers else None
        self._total = self._history.needed
        self._memory = _Memory(self._history)
        self._computed: set[Step] = set()
        self._updates: dict[Step, torch.Tensor] = {}
        self._hosts: dict[Life, WorkerHost] = {}
        self._returned: dict[Life, deque[Returned]] = {}
        self._idle: list[WorkerHost] = []

    def run(self) -> torch.Tensor:
        """The final parameters and buffers, float32 ``[layout.size]``."""
        flat = self._job.initial.clone()
        average = _Averages(self._job)
        shards = [
            _Shard(self._job, number, lives, flat, self._memory, average)
            for number, lives in enumerate(self._history.lives)
        ]
        reached = -1
        while sum(shard.reached for shard in shards) > reached:
            reached = sum(shard.reached for shard in shards)
            for shard in shards:
                self._advance(shard)
        for number, shard in enumerate(shards):
            if (item := shard.next()) is not None:
                impossible(number, item[0], "it was computed from something that came after it")
        self._report(last=True)
        return flat

    def _advance(self, shard: _Shard) -> None:
        """Move a shard on as far as it can go now."""
        while (item := shard.next()) is not None:
            record, consumed = item
            if record.kind == trace.COMMITTED:
                shard.move(record, consumed, None)
                continue
            step = self._history.step(record)
            if not self._compute(step):
                break
            shard.move(record, consumed, self._updates[step])
            step.uses -= 1
            if not step.uses:
                del self._updates[step]

    def _compute(self, step: Step) -> bool:
        """Compute a step and all that must go before; False if a read is to come."""
        todo = [step]
        while todo:
            one = todo[-1]
            missing = [s for s in one.before if s not in self._computed]
            if one in self._computed:
                todo.pop()
            elif missing:
                todo += missing
                self._look_for_circles(todo)
            elif not all(map(self._memory.has, one.reads)):
                return False
            else:
                self._execute(todo.pop())
        return True

    def _look_for_circles(self, todo: list[Step]) -> None:
        if len(todo) > 3 * self._total:
            raise LedgerError(
                "the meetings are impossible: a step depends on itself; restore the folder trace "
                "from a copy of the run directory"
            )

    def _execute(self, step: Step) -> None:
        host = self._hosts.get(step.chain)
        if host is None:
            host = self._hosts[step.chain] = self._idle.pop() if self._idle else self._new_host()
            host.packer = self._new_packer(step.chain)
        before = step.previous
        fresh = before is None or before.record.session != step.record.session
        parts = [self._memory.read(state) for state in step.reads]
        # Zeros, because a model that computes nothing writes nothing.
        update = torch.zeros(self._job.layout.size)
        turns = self._job.method.turns
        if turns is None or fresh:
            if parts:
                self._pull(host, parts, range(len(parts)), fresh=fresh)
            host.pulled(fresh=fresh, buffers=parts[0][1] if parts else None)
            if self._meetings is not None:
                self._meetings.before(step, host.replica)
            host.compute(_compute_effect(step.record), update)
        else:
            assert before is not None
            self._in_turn(host, turns, before.record, step.record, parts, update)
        host.adapter.release()
        if host.packer is not None:
            self._pack(host.packer, step, update)
        self._computed.add(step)
        if step.uses:
            self._updates[step] = update
        self._history.left[step.chain] -= 1
        if not self._history.left[step.chain]:
            self._idle.append(self._hosts.pop(step.chain))
        self.done += 1
        self._report()

    def _pull(
        self, host: WorkerHost, parts: list[Part], shards: Iterable[int], *, fresh: bool
    ) -> None:
        target = host.pull_target(fresh=fresh)
        for shard in shards:
            target[self._job.ranges[shard].slice] = parts[shard][0]

    def _in_turn(
        self, host: WorkerHost, turns: Turns, before: Record, record: Record,
        parts: list[Part], update: torch.Tensor,
    ) -> None:  # fmt: skip
        """Train from where the step before ended, taking in on the way what has come back."""
        first = before.stop if record.fence == before.fence else record.first
        pairs = zip(record.reads, before.reads, strict=True)
        arrived = [shard for shard, (now, then) in enumerate(pairs) if now != then]
        if arrived:
            until = turns.returns_at(first, record.stop)
            host.compute(_compute_effect(record._replace(first=first, stop=until)), update)
            self._pull(host, parts, arrived, fresh=False)
            host.arrived([self._job.ranges[shard] for shard in arrived])
            first = until
        host.compute(_compute_effect(record._replace(first=first)), update)

    def _new_host(self) -> WorkerHost:
        job = self._job
        return WorkerHost(job.method, job.build_adapter(), job.train, job.plan)

    def _new_packer(self, chain: Life) -> Packer | None:
        if self._job.method.codec.is_plain:
            return None
        if self._chains is not None:
            self._returned[chain] = deque(self._chains.returned(chain))
        return Packer(self._job.push_format, chain[0], lambda entry: None)

    def _pack(self, packer: Packer, step: Step, update: torch.Tensor) -> None:
        """Leave in ``update`` what the codec makes of it."""
        seq, returned = step.record.seq, self._returned.get(step.chain, deque())
        while returned and returned[0].at <= seq:
            entry = returned.popleft()
            packer.answered(entry.seq, entry.shards)
        turns, shards = self._job.method.turns, None
        if turns is not None:
            shards = turns.shards(turns.stripe(step.shard), of=len(self._job.ranges))
        push = torch.empty(self._job.push_format.nbytes, dtype=torch.uint8)
        packer.pack(seq, update, push, shards)
        if all(entry.seq != seq for entry in returned):
            packer.answered(seq, ())
        packer.unpack(push, update, shards)

    def _report(self, *, last: bool = False) -> None:
        if self._progress is None:
            return
        now = time.monotonic()
        if last or now - self._reported >= _REPORT_EVERY_S:
            self._reported = now
            self._progress(self.done, self._total)


def _compute_effect(record: Record) -> Compute:
    r = record
    lease = Lease(r.fence, r.session, r.worker, r.epoch, r.fragment, r.first, r.stop, ())
    return Compute(r.seq, lease, r.first, r.stop)
