"""What every engine is given, what it gives back, and what it tells on the way.

An engine interprets the machines' effects. It gets a ``Job`` (everything decided before the run
begins), reports through an ``Observer``, and returns a ``RunEnd``. The machines are built here, in
one place, so that the simulator and the real engine cannot differ in how they are configured.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch

from tardygrad.balancing import steps_of
from tardygrad.codecs.pushes import PushFormat
from tardygrad.config import RunConfig
from tardygrad.data.fragments import FragmentPlan
from tardygrad.data.sources import Source
from tardygrad.engines.packing import Packer
from tardygrad.errors import CheckpointError
from tardygrad.layout import KeyRange, Layout
from tardygrad.methods.base import Method
from tardygrad.models.base import ModelAdapter
from tardygrad.protocol.effects import CommitCheckpoint, Outcome
from tardygrad.protocol.events import Push
from tardygrad.protocol.promotion import PromotableServer
from tardygrad.protocol.residuals import Inherited, Residual
from tardygrad.protocol.scheduler import Scheduler
from tardygrad.protocol.scheduler_settings import SchedulerSettings
from tardygrad.protocol.server import ServerSettings
from tardygrad.protocol.silence import SilenceLimits
from tardygrad.protocol.striped import StripedWorker
from tardygrad.protocol.trace import Record
from tardygrad.protocol.worker import Worker
from tardygrad.protocol.worker_settings import WorkerSettings

_log = logging.getLogger(__name__)

Tensors = dict[str, torch.Tensor]


def checkpoint_fields(effect: CommitCheckpoint, seconds: float) -> dict[str, Any]:
    """The ``checkpoint`` event of a checkpoint whose manifest took ``seconds`` to write."""
    samples: Any = effect.state["samples"]
    return {
        "step": effect.step,
        "samples": min(samples),
        "seconds": seconds,
        "bytes": sum(size for _, size, _ in effect.files),
        "path": f"checkpoints/{effect.step:012d}",
    }


@dataclass(frozen=True)
class Snapshot:
    """A restored shard: its tensors, version and ledger, and the step it was taken at."""

    step: int
    tensors: Tensors
    state: dict[str, Any]

    def is_of(self, method: Method) -> bool:
        """Whether the method can take up its state."""
        return bool(self.state.get("rule", method.kind) == method.kind)


@dataclass(frozen=True)
class WorkerState:
    """What a worker that left in good order has left for its slot's next process.

    ``pushes`` and ``codec`` say of what it is: ``Method.pushes`` and the codec's section.
    """

    worker: int
    incarnation: int
    pushes: str
    codec: dict[str, Any]
    tensors: Tensors = field(default_factory=dict, repr=False)


class SnapshotStore(Protocol):
    """Where snapshots and checkpoints are kept."""

    def write(
        self, step: int, shard: int, tensors: Tensors, state: dict[str, Any]
    ) -> tuple[str, int, str]:
        """Keep one shard's snapshot; returns (name, bytes, checksum). Raises StorageError."""
        ...

    def commit(
        self, step: int, files: tuple[tuple[str, int, str], ...], state: dict[str, Any]
    ) -> None:
        """Make the checkpoint ``step`` valid, with what those in ``state["left"]`` wrote.

        Raises StorageError.
        """
        ...

    def write_worker(self, state: WorkerState) -> None:
        """Keep what a worker leaves until the run's last checkpoint takes it up.

        Raises StorageError.
        """
        ...

    def worker(self, step: int, worker: int) -> WorkerState | None:
        """What the checkpoint ``step`` has of a worker's slot, or None.

        Raises CheckpointError if it is gone or damaged.
        """
        ...

    def newest(self, shard: int) -> Snapshot | None:
        """The shard's snapshot in the newest valid checkpoint, or None."""
        ...


@dataclass(frozen=True)
class Job:
    """Everything that is decided before a run begins.

    ``run`` is the run's id; ``lineage`` tells this stretch of it from every other; ``generation``
    counts how often it was resumed; ``first_step`` is the number of the next checkpoint;
    ``consumed_before`` are the samples in the checkpoint that it goes on from; ``residuals`` is
    that checkpoint's number if workers go on with what it has of them, else 0; ``trace_directory``
    is None where no trace files are wanted.
    """

    config: RunConfig
    method: Method
    plan: FragmentPlan
    layout: Layout
    ranges: tuple[KeyRange, ...]
    initial: torch.Tensor
    train: Source
    test: Source | None
    build_adapter: Callable[[], ModelAdapter]
    run: str = ""
    lineage: int = 1
    generation: int = 0
    first_step: int = 1
    epochs_reported: int = 0
    consumed_before: int = 0
    residuals: int = 0
    trace_directory: Path | None = None
    run_directory: Path | None = None
    by_value: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def push_format(self) -> PushFormat:
        """How a push lies in bytes; ``push_format.sent[shard]`` bytes travel to a shard."""
        return PushFormat(self.method.codec, self.layout, self.ranges)

    def packer(
        self, worker: int, incarnation: int, store: SnapshotStore, log: Callable[[Residual], None]
    ) -> Packer | None:
        """A new process's packer; None where updates travel as they are.

        The first process of a resumed run's slot goes on with what the last one left, if it is
        still there: one that comes late may find the checkpoint deleted, as newer ones are there.
        """
        codec = self.method.codec
        if codec.is_plain:
            return None
        packer = Packer(self.push_format, worker, log)
        first = incarnation == self.generation << 10 and worker < self.config.workers
        left = None
        if self.residuals and first:
            try:
                left = store.worker(self.residuals, worker)
            except CheckpointError as error:
                _log.warning("worker %d begins without what its slot had left: %s", worker, error)
        if left is not None:
            entry = Inherited(worker, incarnation, left.incarnation)
            same = left.codec == codec.model_dump(mode="json")
            packer.take_over(left.tensors, entry, same_codec=same)
        return packer

    def leave(
        self, worker: int, incarnation: int, packer: Packer | None, store: SnapshotStore
    ) -> None:
        """Keep what a worker that leaves in good order has for its slot's next process."""
        codec = self.method.codec
        if packer is None or not codec.remembers:
            return
        section = codec.model_dump(mode="json")
        left = WorkerState(worker, incarnation, self.method.pushes, section, packer.leave())
        store.write_worker(left)

    def push_bytes(self, shard: int) -> int:
        """Bytes of an update on its way to a shard; averaged buffers go to shard 0."""
        return self.push_format.sent[shard]

    def pull_bytes(self, shard: int) -> int:
        """Bytes of a shard's parameters on their way to a worker; buffers come from shard 0."""
        return 4 * (self.ranges[shard].size + (0 if shard else self.layout.buffers_size))

    @property
    def resend_s(self) -> float:
        """Seconds after which an unanswered message is sent again."""
        return max(4 * self.config.failure.heartbeat_s, self.config.failure.lease_s / 4)

    @cached_property
    def tick_s(self) -> float:
        """Seconds between two looks at deadlines."""
        usual = min(self.config.failure.lease_s / 8, self.config.failure.heartbeat_s)
        grace = self.method.admission.grace
        return min(usual, max(grace / 4, 0.005)) if grace else usual

    @property
    def linear_rate(self) -> bool:
        """Whether the servers' learning rate follows the number of workers."""
        return self.config.elastic.learning_rate == "linear"

    @property
    def _weighs(self) -> bool:
        return self.method.admission.gathers or self.method.balance.name != "fixed"

    def weight_of(self, update: Push | Record) -> float:
        """What an update counts (``Method.weight``), from its batch range alone."""
        consumed = self.plan.position(update.epoch, update.fragment, update.first)
        period = self.method.period_at(consumed)
        steps = steps_of(update.stop - update.first, period)
        usual = period * self.plan.batch_size
        return self.method.weight(update.samples, steps=steps, usual=usual)

    def scheduler(self, start_s: float | None = None) -> Scheduler:
        """The run's scheduler machine; ``start_s`` replaces the configuration's."""
        failure = self.config.failure
        return Scheduler(
            SchedulerSettings(
                plan=self.plan,
                epochs=self.config.epochs,
                workers=self.config.workers,
                workers_max=self.config.workers_max,
                shards=len(self.ranges),
                lease_s=failure.lease_s,
                silence=SilenceLimits(failure.lease_s, *failure.silence_s),
                start_s=failure.start_s if start_s is None else start_s,
                stop_s=failure.stop_s,
                resend_s=self.resend_s,
                restarts=failure.restarts,
                put_aside_after=failure.put_aside_after,
                backoff_s=failure.backoff_s,
                backoff_max_s=failure.backoff_max_s,
                checkpoint_every_s=self.config.checkpoint.every_s,
                uses_clocks=self.method.workers_wait,
                balance=self.method.balance,
                uses_groups=self.method.uses_groups,
                uses_peers=self.method.uses_peers,
                counts_crew=self.method.staleness.counts_workers or self.linear_rate,
                open_epochs=self.method.admission.open_epochs,
                replicas=self.config.replicas,
                generation=self.generation,
                first_step=self.first_step,
                epochs_reported=self.epochs_reported,
            )
        )

    def server(
        self, shard: int, incarnation: int, floor: int, snapshot: Snapshot | None = None
    ) -> PromotableServer:
        """A server machine, restored if there is a snapshot; also what a backup runs."""
        settings = ServerSettings(
            lineage=self.lineage,
            plan=self.plan,
            workers=self.config.workers,
            staleness=self.method.staleness,
            consistency=self.method.consistency,
            admission=self.method.admission,
            rule=self.method.kind,
            round_of=f"{self.method.name}, {self.method.admission.name}",
            weigh=self.weight_of if self._weighs else None,
            uses_peers=self.method.uses_peers,
            linear_rate=self.linear_rate,
            resend_s=self.resend_s,
        )
        return PromotableServer(
            shard,
            settings,
            incarnation=incarnation,
            floor=floor,
            restored_step=0 if snapshot is None else snapshot.step,
            snapshot=None if snapshot is None else snapshot.state,
        )

    def worker(self, worker: int, incarnation: int) -> Worker:
        """A worker machine."""
        settings = WorkerSettings(
            lineage=self.lineage,
            shards=len(self.ranges),
            exchange_period=self.method.period_at,
            plan=self.plan,
            in_flight=self.method.outstanding,
            consistency=self.method.consistency,
            awaits_commit=self.method.admission.waits,
            follows=self.method.follows,
            turns=self.method.turns,
            resend_s=self.resend_s,
        )
        make = Worker if settings.turns is None else StripedWorker
        return make(worker, settings, incarnation=incarnation)


class Observer(Protocol):
    """Who is told what happens; called from the engine's own thread."""

    def emit(self, event: str, **fields: Any) -> None:
        """An event for metrics.jsonl."""
        ...

    def decided(self, decision: str, reason: str) -> None:
        """A decision and why, for events.log."""
        ...

    def now(self) -> float:
        """Seconds since the run's first start."""
        ...

    def interrupted(self) -> str:
        """Why the run must stop now, or an empty string."""
        ...

    def wishes(self) -> Sequence[tuple[int, int]]:
        """How many workers are to join and to leave, wish by wish; each is told once."""
        ...


@dataclass
class RunEnd:
    """How a run (or one stretch of it) ended.

    ``parameters`` is float32 ``[layout.size]``: the parameters, then the averaged buffers.
    ``figures`` are the fields of the ``run_end`` event.
    """

    outcome: Outcome
    reason: str
    parameters: torch.Tensor
    figures: dict[str, Any] = field(default_factory=dict)


class Engine(Protocol):
    """Runs a job to its end."""

    def run(self, job: Job, observer: Observer, store: SnapshotStore) -> RunEnd:
        """Train until the work is done, the run is interrupted, or it cannot go on."""
        ...
