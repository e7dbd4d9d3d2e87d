"""What a simulation needs and a user's run has elsewhere: jobs, a store, an observer, a cluster.

``SimulatedCluster`` is the short way: it runs a job in virtual time to its very end, through
interruptions and power cuts, keeps the whole history, and checks all invariants.

>>> from tardygrad.testing.simulation import SimulatedCluster, null_job
>>> cluster = SimulatedCluster(null_job(workers=3, servers=2, epochs=1, samples=640))
>>> end = cluster.run()
>>> cluster.check(end)
>>> end.outcome, len(cluster.history.records)
('done', 2)
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from tardygrad.config import Duration, RunConfig, merge
from tardygrad.data.fragments import FragmentPlan
from tardygrad.data.sources import ArraySource, Source
from tardygrad.engines.base import Job, RunEnd, Snapshot, Tensors, WorkerState
from tardygrad.engines.inline import InlineEngine
from tardygrad.errors import InvariantViolation, StorageError
from tardygrad.methods import parse
from tardygrad.models.base import ModelAdapter
from tardygrad.models.null import NullAdapter
from tardygrad.models.torch import TorchAdapter
from tardygrad.protocol.ledger import Ledger
from tardygrad.resuming import with_residuals
from tardygrad.testing.counting import CountingAdapter
from tardygrad.testing.history import History

__all__ = [
    "MemoryStore",
    "SilentObserver",
    "SimulatedCluster",
    "Stop",
    "counting_job",
    "make_job",
    "null_job",
    "resumed",
    "torch_job",
]

_INSTANT = Duration(mean_s=0.0)

# --- jobs -------------------------------------------------------------------------------------


def make_job(
    build_adapter: Callable[[], ModelAdapter],
    train: Source | None,
    *,
    samples: int,
    test: Source | None = None,
    **settings: Any,
) -> Job:
    """A job for any model.

    Args:
        build_adapter: makes a new model, the same every time.
        train: the samples; None where the model never looks at them.
        samples: how many of them are trained.
        test: samples to evaluate with.
        **settings: keys of the configuration (``workers``, ``method``, ``simulation``, ...).

    Raises:
        ConfigError: a setting is unknown or of the wrong kind.
    """
    here = {"model": {"factory": "by-value"}, "data": {"source": "by-value"}, "engine": "inline"}
    config = RunConfig.model_validate(merge(here, settings))
    method = parse(config.method)
    adapter = build_adapter()
    plan = FragmentPlan(
        samples=samples,
        batch_size=config.batch_size,
        fragment_batches=config.fragment_batches_for(samples),
        seed=config.seed,
    )
    return Job(
        config=config,
        method=method,
        plan=plan,
        layout=adapter.layout,
        ranges=method.ranges(adapter.layout, config.servers),
        initial=adapter.flat.clone(),
        train=ArraySource(torch.zeros(1), torch.zeros(1)) if train is None else train,
        test=test,
        build_adapter=build_adapter,
    )


def null_job(*, samples: int = 640, parameters: int = 64, **settings: Any) -> Job:
    """A job that computes nothing: the protocol alone."""
    return make_job(lambda: NullAdapter(parameters), None, samples=samples, **settings)


def counting_job(*, samples: int = 640, **settings: Any) -> Job:
    """A job whose parameters count how often each sample was applied to each shard."""
    shards = int(settings.get("servers", 1))
    optimizer = {"class": "SGD", "arguments": {"lr": 1.0}}
    settings["method"] = merge({"optimizer": optimizer}, settings.get("method", {}))
    source = CountingAdapter.source(samples)
    return make_job(lambda: CountingAdapter(samples, shards), source, samples=samples, **settings)


def torch_job(
    build: Callable[[], nn.Module],
    train: ArraySource,
    *,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = nn.functional.cross_entropy,
    metrics: Mapping[str, Callable[[torch.Tensor, torch.Tensor], Any]] | None = None,
    test: Source | None = None,
    **settings: Any,
) -> Job:
    """A job for a small torch model; ``build`` is called under the run's seed."""
    seed = int(settings.get("seed", 0))

    def build_adapter() -> TorchAdapter:
        torch.manual_seed(seed)
        return TorchAdapter(build(), loss, dict(metrics or {}))

    return make_job(build_adapter, train, samples=len(train), test=test, **settings)


def resumed(job: Job, store: MemoryStore, *, told: int = 0) -> Job:
    """The job that goes on from the store's newest checkpoint.

    Args:
        job: the one that was stopped.
        store: what it kept.
        told: the last epoch of which it said that it has ended. What is told of epochs that the
            checkpoint does not have is told again.
    """
    ledgers = store.ledgers(job.plan)
    complete = min((ledger.epochs_complete for ledger in ledgers), default=0)
    job, _ = with_residuals(job, store)
    return dataclasses.replace(
        job,
        generation=job.generation + 1,
        first_step=max(store.last_step + 1, job.first_step),
        epochs_reported=min(complete, told),
        consumed_before=min((ledger.consumed for ledger in ledgers), default=0),
    )


# --- what an engine is given ------------------------------------------------------------------


class MemoryStore:
    """Snapshots and checkpoints in memory, deep copies all.

    Args:
        failing: the numbers (from 0) of the writes that fail as on a full disk.
        torn: the numbers of those that succeed, and are found damaged when they are read.
        full: the numbers of the manifests that fail as on a full disk.

    A snapshot of a checkpoint that is already visible must never change, and what is committed must
    be there: both are checked, and broken promises raise ``InvariantViolation``.
    """

    def __init__(
        self,
        failing: Collection[int] = (),
        torn: Collection[int] = (),
        full: Collection[int] = (),
    ) -> None:
        self.checkpoints: dict[int, dict[str, Any]] = {}
        self.last_step = 0
        self._files: dict[tuple[int, int], Snapshot] = {}
        self._workers: dict[tuple[int, int], WorkerState] = {}
        self._left: dict[int, dict[int, WorkerState]] = {}
        self._failing, self._torn, self._full = failing, torn, full
        self._writes = self._manifests = 0
        self.damaged: set[tuple[int, int]] = set()
        """Which shard's snapshots, each as ``(step, shard)``, nobody can read."""

    def write(
        self, step: int, shard: int, tensors: Tensors, state: dict[str, Any]
    ) -> tuple[str, int, str]:
        """Keep one shard's snapshot.

        Raises:
            StorageError: this write is one of those that fail.
            InvariantViolation: the snapshot belongs to a checkpoint that is visible.
        """
        number, self._writes = self._writes, self._writes + 1
        if number in self._failing:
            raise StorageError(f"no space left for snapshot {step} of shard {shard}")
        if step in self.checkpoints:
            raise InvariantViolation(f"checkpoint {step} is visible and shard {shard} changes it")
        self.last_step = max(self.last_step, step)
        if number in self._torn:
            self.damaged.add((step, shard))
        kept = {key: value.clone() for key, value in tensors.items()}
        self._files[(step, shard)] = Snapshot(step, kept, copy.deepcopy(state))
        size = sum(value.numel() * value.element_size() for value in kept.values())
        return (f"{step}/shard-{shard}", size, "")

    def commit(
        self, step: int, files: tuple[tuple[str, int, str], ...], state: dict[str, Any]
    ) -> None:
        """Make a checkpoint visible.

        Raises:
            StorageError: this manifest is one of those that fail.
            InvariantViolation: it is not complete, or not new.
        """
        number, self._manifests = self._manifests, self._manifests + 1
        if number in self._full:
            raise StorageError(f"no space left for the manifest of checkpoint {step}")
        wanted = [f"{step}/shard-{shard}" for shard in range(len(files))]
        there = all((step, shard) in self._files for shard in range(len(files)))
        if [name for name, _, _ in files] != wanted or not there:
            raise InvariantViolation(f"checkpoint {step} is committed with {files}")
        if step <= max(self.checkpoints, default=0):
            raise InvariantViolation(f"checkpoint {step} comes after {max(self.checkpoints)}")
        self.checkpoints[step] = copy.deepcopy(state)
        members: Any = state.get("left", ())
        found = [self._workers[w, i] for w, i in members if (w, i) in self._workers]
        self._left[step] = {kept.worker: kept for kept in found}
        self._workers = {}

    def write_worker(self, state: WorkerState) -> None:
        """Keep what a worker leaves until the next checkpoint takes it up."""
        self._workers[state.worker, state.incarnation] = copy.deepcopy(state)

    def worker(self, step: int, worker: int) -> WorkerState | None:
        """A copy of what the checkpoint has of a worker's slot."""
        return copy.deepcopy(self._left.get(step, {}).get(worker))

    def workers(self) -> tuple[int, dict[int, WorkerState], list[str]]:
        """The newest checkpoint's number, what it has of workers, and why not all: memory keeps."""
        newest = max(self.checkpoints, default=0)
        return newest, copy.deepcopy(self._left.get(newest, {})), []

    def newest(self, shard: int) -> Snapshot | None:
        """A copy of the shard's snapshot in the newest checkpoint where it is whole."""
        whole = [step for step in self.checkpoints if (step, shard) not in self.damaged]
        return copy.deepcopy(self._files[(max(whole), shard)]) if whole else None

    def ledgers(self, plan: FragmentPlan) -> list[Ledger]:
        """The ledgers that all shards go on with; none without a checkpoint."""
        newest = max(self.checkpoints, default=0)
        shards = sorted(shard for step, shard in self._files if step == newest)
        found = [self.newest(shard) for shard in shards]
        return [
            Ledger(plan) if s is None else Ledger.from_state(plan, s.state["ledger"]) for s in found
        ]


class PowerCut(Exception):
    """Everything stops at once, as if all processes were killed together."""


class Stop(NamedTuple):
    """The run is stopped at ``at_s`` virtual seconds of its stretch, and resumed."""

    kind: Literal["preempt", "power_cut"]
    at_s: float


class SilentObserver:
    """Keeps what an engine tells, prints nothing.

    Args:
        clock: tells the virtual time.
        stop: when the run is to be stopped, if at all.
    """

    def __init__(self, clock: Callable[[], float] = lambda: 0.0, stop: Stop | None = None) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.decisions: list[tuple[str, str]] = []
        self._clock = clock
        self._stop = stop

    def emit(self, event: str, **fields: Any) -> None:
        """An event for metrics.jsonl."""
        self.events.append((event, fields))

    def decided(self, decision: str, reason: str) -> None:
        """A decision and why."""
        self.decisions.append((decision, reason))

    def now(self) -> float:
        """The virtual time."""
        return self._clock()

    def interrupted(self) -> str:
        """Why the run must stop now, or an empty string.

        Raises:
            PowerCut: nobody is asked.
        """
        if self._stop is None or self._clock() < self._stop.at_s:
            return ""
        if self._stop.kind == "power_cut":
            raise PowerCut
        return "preempted by the test"

    def wishes(self) -> tuple[tuple[int, int], ...]:
        """Nobody wants workers to join or leave, but the simulation's own plan."""
        return ()

    def of(self, event: str) -> list[dict[str, Any]]:
        """The fields of all events of one kind."""
        return [fields for kind, fields in self.events if kind == event]


# --- the cluster ------------------------------------------------------------------------------


class SimulatedCluster:
    """A whole cluster in virtual time, from a job to the end of its run.

    Args:
        job: what to train, with the simulated times and the faults in its configuration.
        store: where checkpoints are kept.
        stops: the run is stopped then (one stop a stretch) and resumed from its checkpoint.
        start_s: after so many virtual seconds a process that does not come up counts as dead.
        linger_s: the world goes on for so long after the end, to see that nothing happens any more.
        disk: virtual seconds that each snapshot and each manifest takes until it is there.
        log: is handed every event of the history as a line of text.
    """

    def __init__(
        self,
        job: Job,
        *,
        store: MemoryStore | None = None,
        stops: Sequence[Stop] = (),
        start_s: float = 5.0,
        linger_s: float = 1.0,
        disk: Duration = _INSTANT,
        log: Callable[[str], None] | None = None,
    ) -> None:
        self.job = job
        self.store = MemoryStore() if store is None else store
        self.history = History(job, log=log)
        self.observers: list[SilentObserver] = []
        self.events = 0
        self.seconds = 0.0
        self._stops = list(stops)
        self._start_s = start_s
        self._linger_s = linger_s
        self._disk = disk

    def run(self) -> RunEnd:
        """Run, resuming as often as it is stopped, until the run is done or has failed.

        Raises:
            InvariantViolation: the protocol broke one of its promises.
        """
        while True:
            stop = self._stops.pop(0) if self._stops else None
            end = self._stretch(stop)
            if end is not None and end.outcome != "preempted":
                return end
            epochs = [e["epoch"] for o in self.observers for e in o.of("epoch")]
            self.job = resumed(self.job, self.store, told=max(epochs, default=0))

    def _stretch(self, stop: Stop | None) -> RunEnd | None:
        engine = InlineEngine(
            self.history, start_s=self._start_s, linger_s=self._linger_s, disk=self._disk
        )
        observer = SilentObserver(lambda: engine.now, stop)
        self.observers.append(observer)
        self.history.begins(self.job)
        try:
            return engine.run(self.job, observer, self.store)
        except PowerCut:
            return None
        finally:
            self.events += engine.events
            self.seconds = engine.now

    def check(self, end: RunEnd) -> None:
        """Check everything that can be checked after the end.

        Raises:
            InvariantViolation: a promise does not hold.
        """
        self.history.check(end)
        if end.outcome == "done":
            self._check_last_checkpoint(end)
            self._check_counts(end)

    def _check_last_checkpoint(self, end: RunEnd) -> None:
        newest = max(self.store.checkpoints, default=0)
        for shard, key_range in enumerate(self.job.ranges):
            if (newest, shard) in self.store.damaged:
                continue
            snapshot = self.store.newest(shard)
            if snapshot is None:
                raise InvariantViolation("the run is done and there is no checkpoint")
            if not torch.equal(snapshot.tensors["parameters"], end.parameters[key_range.slice]):
                raise InvariantViolation(f"shard {shard}: its last snapshot is not its end")
            ledger = Ledger.from_state(self.job.plan, snapshot.state["ledger"])
            if len(ledger.complete()) != self.job.config.epochs:
                raise InvariantViolation(f"shard {shard}: the last checkpoint lacks samples")

    def _check_counts(self, end: RunEnd) -> None:
        adapter = self.job.build_adapter()
        if not isinstance(adapter, CountingAdapter):
            return
        counted = adapter.counts(end.parameters, self.job.plan.samples)
        expected = self.history.applied_per_sample()
        if not torch.equal(counted, expected):
            shard, sample = (counted != expected).nonzero()[0].tolist()
            raise InvariantViolation(
                f"shard {shard} has applied sample {sample} {int(counted[shard, sample])} times; "
                f"by its trace it is {int(expected[shard, sample])}"
            )
