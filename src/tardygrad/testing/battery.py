"""Conformance batteries: what every method and every engine must do, whoever wrote it.

A method needs no registration: ``check_method("my_method")`` finds the file as a run would. It
passes if its rules work on a small model, its server's state survives a snapshot to the bit, a run
under crashes and lost messages ends with an exact ledger, the same seed gives the same run, and
where servers have backups a replay comes to the same bits as the run. If
it says which serial optimizer it equals (``Method.serial_optimizer``), one worker that waits for
each answer must reach the very parameters of the plain loop.

An engine passes if it ends a small run with an exact ledger and a complete last checkpoint, goes on
after an interruption, and computes with one worker what the simulator computes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from tardygrad.config import merge
from tardygrad.data.fragments import FragmentPlan, Permutations
from tardygrad.data.sources import ArraySource
from tardygrad.engines.base import Engine, Job, RunEnd, SnapshotStore
from tardygrad.engines.inline import InlineEngine
from tardygrad.errors import ConfigError
from tardygrad.layout import partition
from tardygrad.methods import parse
from tardygrad.methods.base import Method, Step
from tardygrad.protocol import trace
from tardygrad.protocol.ledger import Ledger
from tardygrad.testing.checks import require
from tardygrad.testing.fuzz import check_replay
from tardygrad.testing.simulation import (
    MemoryStore,
    SilentObserver,
    SimulatedCluster,
    torch_job,
)

__all__ = ["check_engine", "check_method", "in_memory"]

SAMPLES, BATCH, EPOCHS = 90, 8, 2
_NEVER_ENDING = 100_000

Place = Callable[[Job], tuple[Job, SnapshotStore]]
"""Gives a job the place that an engine needs, and the store of that place."""


def network() -> nn.Module:
    """The batteries' model: two layers and a BatchNorm, 207 parameters."""
    return nn.Sequential(nn.Linear(6, 15), nn.BatchNorm1d(15), nn.Tanh(), nn.Linear(15, 4))


def plain_network() -> nn.Module:
    """The same without buffers, for bit-for-bit comparisons of parameters."""
    return nn.Sequential(nn.Linear(6, 15), nn.Tanh(), nn.Linear(15, 4))


def samples() -> ArraySource:
    """The batteries' data: 90 samples in four classes, always the same."""
    generator = torch.Generator().manual_seed(11)
    inputs = torch.randn(SAMPLES, 6, generator=generator)
    return ArraySource(inputs, torch.randint(0, 4, (SAMPLES,), generator=generator))


def _job(build: Callable[[], nn.Module], method: dict[str, Any], **settings: Any) -> Job:
    model = {"factory": f"{__name__}:{build.__name__}"}
    base = {"epochs": EPOCHS, "batch_size": BATCH, "fragment_batches": 3, "model": model}
    return torch_job(build, samples(), **merge(base, settings), method=method)


def _most_servers(method: Method, wanted: int) -> int:
    layout = _job(network, {}).layout
    for servers in range(wanted, 1, -1):
        try:
            partition(layout, servers, method.locality)
        except ConfigError:
            continue
        return servers
    return 1


# --- methods ----------------------------------------------------------------------------------


def check_method(name: str, **settings: Any) -> None:
    """Check the method in ``tardygrad/methods/<name>.py``.

    Args:
        name: the method's name.
        **settings: keys of its section, for checking more than its defaults.

    Raises:
        AssertionError: it does not do what a method must; the message says what.
        ConfigError: there is no such method, or it refuses the settings.
        InvariantViolation: a run with it broke a promise of the protocol.
    """
    section = {"name": name, **settings}
    method = parse(section)
    _check_rules(method)
    _check_state(method)
    _check_serial(method, section)
    _check_run(section)
    _check_replicas(section)


def _steps(count: int) -> Iterator[Step]:
    source = samples()
    plan = FragmentPlan(samples=SAMPLES, batch_size=BATCH, fragment_batches=count, seed=5)
    order = Permutations(plan)
    for batch in range(count):
        position = plan.position(0, 0, batch)
        yield Step(source.batch(order.indices(0, 0, batch)), 17 + batch, position)


def _check_rules(method: Method) -> None:
    job = _job(network, {})
    adapter = job.build_adapter()
    size = job.layout.parameters_size
    rule = method.worker_rule(adapter)
    moved = False
    for fresh in (True, False):
        target = rule.target(fresh=fresh)
        require(target.shape == (size,), f"target() has shape {tuple(target.shape)}")
        require(target.data_ptr() == rule.target(fresh=fresh).data_ptr(), "target() moves")
        target.copy_(job.initial[:size])
        rule.pulled(fresh=fresh)
        update = torch.full((size,), torch.nan)
        outcome = rule.compute(_steps(2), update)
        require(outcome.batches == 2, f"compute() counts {outcome.batches} batches of 2")
        require(bool(torch.isfinite(update).all()), "an update is not finite everywhere")
        moved = moved or bool(update.any())
    require(moved, "every update is zero everywhere")
    rate = method.learning_rate(0)
    require(rate >= 0, f"the learning rate begins at {rate}")


def _check_state(method: Method) -> None:
    torch.manual_seed(3)
    size = 48
    whole, updates = torch.randn(size), [torch.randn(size) for _ in range(6)]
    rule = method.server_rule(whole)
    for number, update in enumerate(updates[:3]):
        rule.apply(update, 1.0, BATCH * number)
    state = {key: value.clone() for key, value in rule.state().items()}
    restored = method.server_rule(rule.parameters.clone())
    restored.load_state(state)
    for number, update in enumerate(updates[3:], 3):
        for each in (rule, restored):
            each.apply(update.clone(), 0.5, BATCH * number)
        same = torch.equal(rule.parameters, restored.parameters)
        require(same, f"a restored server differs after {number - 2} updates")
    now, there = rule.state(), restored.state()
    equal = now.keys() == there.keys() and all(torch.equal(now[k], there[k]) for k in now)
    require(equal, "the state of a restored server differs")
    require(bool(torch.isfinite(rule.parameters).all()), "the parameters are not finite")


def _check_serial(method: Method, section: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = plain_network()
    optimizer = method.serial_optimizer(list(model.parameters()))
    if optimizer is None:
        return
    alone = {**section, "in_flight": 0, "exchange_period": 1}
    job = _job(plain_network, alone, workers=1, servers=_most_servers(method, 3))
    order, source = Permutations(job.plan), samples()
    for epoch in range(EPOCHS):
        for fragment in range(job.plan.fragments_per_epoch):
            for batch in range(job.plan.batches(fragment)):
                inputs, target = source.batch(order.indices(epoch, fragment, batch))
                optimizer.zero_grad()
                torch.autograd.backward(nn.functional.cross_entropy(model(inputs), target))
                optimizer.step()
    end = InlineEngine().run(job, SilentObserver(), MemoryStore())
    adapter = job.build_adapter()
    adapter.load(end.parameters[: job.layout.parameters_size])
    trained = adapter.state_dict()
    for name, value in model.state_dict().items():
        require(torch.equal(trained[name], value), f"{name} differs from the serial loop's")


def troubled(section: dict[str, Any], seed: int) -> Job:
    """A run of the method in ``section`` whose members die and whose messages are lost."""
    faults = [
        {"kind": "crash", "target": "worker-1", "at_s": 0.04},
        {"kind": "crash", "target": "server-0", "at_s": 0.06},
        {"kind": "hang", "target": "worker-2", "at_s": 0.05, "for_s": 2.0},
        {"kind": "loss", "rate": 0.05},
        {"kind": "duplicate", "rate": 0.1},
        {"kind": "delay", "rate": 0.1, "factor": 20.0},
    ]
    return _job(
        network,
        section,
        seed=seed,
        workers=3,
        servers=_most_servers(parse(section), 2),
        checkpoint={"every_s": 0.03},
        failure={"lease_s": 0.5, "heartbeat_s": 0.1, "restarts": 20, "backoff_s": 0.05},
        simulation={"faults": faults, "compute": {"distribution": "exponential", "mean_s": 0.01}},
    )


def _check_run(section: dict[str, Any]) -> None:
    digests = []
    for seed in (1, 1, 2):
        cluster = SimulatedCluster(troubled(section, seed))
        end = cluster.run()
        cluster.check(end)
        require(end.outcome == "done", f"a run under faults ends as {end.outcome}: {end.reason}")
        require(bool(torch.isfinite(end.parameters).all()), "the parameters are not finite")
        digests.append((str(end.figures["digest"]), cluster.history.digest()))
    require(digests[0] == digests[1], "the same seed gives two different runs")
    require(digests[0] != digests[2], "another seed gives the same run")


def _check_replicas(section: dict[str, Any]) -> None:
    promoted = 0
    for seed in (1, 2):
        faults = [
            {"kind": "crash", "target": "server-0", "at_s": 0.05},
            {"kind": "crash", "target": "server-0", "at_s": 0.11},
            {"kind": "crash", "target": "backup-0", "at_s": 0.14},
            {"kind": "loss", "rate": 0.02},
            {"kind": "duplicate", "rate": 0.1},
        ]
        job = _job(
            network,
            section,
            seed=seed,
            workers=2,
            servers=_most_servers(parse(section), 2),
            replicas=1,
            checkpoint={"every_s": 0.1},
            failure={"lease_s": 0.3, "heartbeat_s": 0.01, "restarts": 20, "backoff_s": 0.01},
            simulation={
                "faults": faults, "compute": {"distribution": "exponential", "mean_s": 0.01},
            },
        )  # fmt: skip
        cluster = SimulatedCluster(job)
        end = cluster.run()
        cluster.check(end)
        require(end.outcome == "done", f"a run with backups ends as {end.outcome}: {end.reason}")
        check_replay(cluster, end)
        for records in cluster.history.records:
            promoted += sum(record.kind == trace.PROMOTED for record in records)
    require(promoted > 0, "no backup was promoted")


# --- engines ----------------------------------------------------------------------------------


def in_memory(job: Job) -> tuple[Job, SnapshotStore]:
    """The place of a run that leaves nothing behind."""
    return job, MemoryStore()


def check_engine(engine: Engine, place: Place = in_memory) -> None:
    """Check an engine.

    Args:
        engine: it will run several small jobs, one after the other.
        place: gives a job the place that the engine needs.

    Raises:
        AssertionError: it does not do what an engine must; the message says what.
    """
    _check_engine_run(engine, place)
    _check_engine_alone(engine, place)
    _check_engine_interrupted(engine, place)


def _check_ledgers(job: Job, store: SnapshotStore, end: RunEnd) -> None:
    for shard, key_range in enumerate(job.ranges):
        snapshot = store.newest(shard)
        if snapshot is None:
            raise AssertionError("the run is done and there is no checkpoint")
        ledger = Ledger.from_state(job.plan, snapshot.state["ledger"])
        consumed = job.config.epochs * job.plan.samples
        require(ledger.consumed == consumed, f"shard {shard} has booked {ledger.consumed} samples")
        saved = snapshot.tensors["parameters"]
        same = torch.equal(saved, end.parameters[key_range.slice])
        require(same, f"shard {shard}: the last checkpoint is not the result")


def _check_engine_run(engine: Engine, place: Place) -> None:
    job, store = place(_job(network, {"name": "async_sgd"}, workers=2, servers=2))
    observer = SilentObserver()
    end = engine.run(job, observer, store)
    require(end.outcome == "done", f"the run ends as {end.outcome}: {end.reason}")
    require(end.parameters.shape == (job.layout.size,), "the result is not the whole vector")
    require(bool(torch.isfinite(end.parameters).all()), "the parameters are not finite")
    _check_ledgers(job, store, end)
    epochs = [fields["epoch"] for fields in observer.of("epoch")]
    require(epochs == [1, 2], f"it tells of the epochs {epochs}")
    members = {(f["kind"], f["id"]) for f in observer.of("member") if f["state"] == "ready"}
    trains = {member for member in members if member[0] in ("worker", "server")}
    require(len(trains) == 4, f"it tells of these members only: {sorted(members)}")
    require(len(observer.of("checkpoint")) >= 1, "it tells of no checkpoint")
    require(len(observer.of("progress")) >= 1, "it tells of no progress")


def _check_engine_alone(engine: Engine, place: Place) -> None:
    method = {"name": "async_sgd", "in_flight": 0}
    job, store = place(_job(network, method, workers=1, servers=1))
    end = engine.run(job, SilentObserver(), store)
    same = InlineEngine().run(
        dataclasses.replace(job, run_directory=None, trace_directory=None),
        SilentObserver(),
        MemoryStore(),
    )
    require(torch.equal(end.parameters, same.parameters), "one worker differs from the simulator")


class _Impatient(SilentObserver):
    """Interrupts the run once something is trained."""

    def __init__(self) -> None:
        super().__init__()
        self._told = 0

    def interrupted(self) -> str:
        """A wish to stop, from the first progress that counts a sample on."""
        news = self.events[self._told :]
        trained = any(kind == "progress" and fields["samples"] for kind, fields in news)
        if not trained:
            self._told = len(self.events)
        return "the battery has seen enough" if trained else ""


def _check_engine_interrupted(engine: Engine, place: Place) -> None:
    # No machine gets through so many epochs before the interruption; after it, few are left.
    job, store = place(
        _job(network, {"name": "async_sgd"}, workers=2, servers=2, epochs=_NEVER_ENDING)
    )
    end = engine.run(job, _Impatient(), store)
    require(end.outcome == "preempted", f"an interrupted run ends as {end.outcome}")
    snapshot = store.newest(0)
    if snapshot is None:
        raise AssertionError("an interrupted run leaves no checkpoint")
    consumed = Ledger.from_state(job.plan, snapshot.state["ledger"]).consumed
    require(consumed > 0, "an interrupted run has booked nothing")
    again = dataclasses.replace(
        job,
        config=job.config.model_copy(update={"epochs": consumed // job.plan.samples + 3}),
        generation=1,
        lineage=job.lineage + 1,
        first_step=snapshot.step + 1,
    )
    end = engine.run(again, SilentObserver(), store)
    require(end.outcome == "done", f"a resumed run ends as {end.outcome}: {end.reason}")
    _check_ledgers(again, store, end)
