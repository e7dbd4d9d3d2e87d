"""Balanced runs in virtual time: rounds that end together, and identities where nobody differs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tardygrad.engines.worker_host import WorkerHost
from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev
from tardygrad.protocol import trace
from tardygrad.testing.battery import network, plain_network, samples
from tardygrad.testing.fuzz import check_replay
from tardygrad.testing.simulation import SimulatedCluster, null_job, torch_job

UNEVEN = [0.01, 0.013, 0.026, 0.057]
STEPS, BATCH = {"balance": {"name": "steps"}}, {"balance": {"name": "batch"}}
STOPS = {"name": "cut_off", "below": 3, "again": True, "stops": True}


def null(method: dict[str, Any], **settings: Any) -> SimulatedCluster:
    values: dict[str, Any] = {
        "samples": 64 * 4000, "workers": 4, "servers": 2, "epochs": 1, "fragment_batches": 40,
        "simulation": {"compute": UNEVEN},
    }  # fmt: skip
    found = SimulatedCluster(null_job(**{**values, **settings, "method": method}))
    found.check(found.run())
    return found


def real(method: dict[str, Any], **settings: Any) -> tuple[SimulatedCluster, torch.Tensor]:
    values: dict[str, Any] = {
        "epochs": 6, "batch_size": 6, "fragment_batches": 5, "workers": 4, "servers": 2,
        "simulation": {"compute": UNEVEN},
    }  # fmt: skip
    job = torch_job(network, samples(), **{**values, **settings, "method": method})
    found = SimulatedCluster(job)
    end = found.run()
    found.check(end)
    check_replay(found, end)
    return found, end.parameters


def gathered(found: SimulatedCluster) -> list[trace.Record]:
    return [r for r in found.history.records[0] if r.kind == trace.GATHERED]


def lengths(found: SimulatedCluster, worker: int) -> list[int]:
    """Batches of the worker's exchanges of the second half of the run."""
    records = [r for r in found.history.records[0] if r.kind in trace.BOOKED]
    return [r.stop - r.first for r in records[len(records) // 2 :] if r.worker == worker]


# --- local steps ------------------------------------------------------------------------------


def test_local_steps_by_speed_let_rounds_end_together() -> None:
    section = {"name": "local_sgd", "exchange_period": 40}
    fixed, balanced = null(section), null({**section, **STEPS})
    # Everybody's 40 batches at the slowest's 57 ms: 70 batches/s. By speed, 40 + 30 + 15 + 7 in
    # 0.4 s or so; a fragment's end cuts some of them short.
    assert fixed.seconds > 2 * balanced.seconds
    assert [max(lengths(balanced, worker)) for worker in range(4)] == [40, 30, 15, 7]
    decided = [what for what, _ in balanced.observers[0].decisions]
    assert [what for what in decided if what.startswith("worker")] == [
        "worker 1: 77% of the local steps",
        "worker 2: 38% of the local steps",
        "worker 3: 18% of the local steps",
    ]


def test_a_worker_that_slows_down_gets_fewer_steps() -> None:
    slow = {"kind": "slow", "target": "worker-1", "at_s": 5.0, "factor": 4.0}
    simulation = {"compute": 0.01, "faults": [slow]}
    section = {"name": "local_sgd", "exchange_period": 20, **STEPS}
    found = null(section, simulation=simulation)
    assert set(lengths(found, 0)) == {20}
    # A quarter of 20, or a little more: what is less than a tenth from the last decision stays.
    assert max(lengths(found, 1)[-20:]) in (5, 6)


@pytest.mark.parametrize(
    "section",
    [
        {"name": "local_sgd", "exchange_period": 3},
        {"name": "async_diloco", "exchange_period": 3},
        {"name": "async_sgd", "exchange_period": 2, "mixing": 0.5},
        {"name": "easgd"},
    ],
    ids=lambda section: section["name"],
)
def test_equal_workers_are_not_balanced(section: dict[str, Any]) -> None:
    """Not even where their steps vary a little: the same run, bit for bit."""
    times = {"distribution": "uniform", "mean_s": 0.01, "spread": 0.0004}
    equal = {"simulation": {"compute": times}}
    fixed, before = real(section, **equal)
    balanced, after = real({**section, **STEPS}, **equal)
    assert torch.equal(before, after)
    assert fixed.history.digest() == balanced.history.digest()


# --- merged batches ---------------------------------------------------------------------------


def test_merged_batches_let_rounds_end_together() -> None:
    fixed, balanced = null({"name": "sync_sgd"}), null({"name": "sync_sgd", **BATCH})
    assert fixed.seconds > 2 * balanced.seconds
    assert [max(lengths(balanced, worker)) for worker in range(4)] == [5, 4, 2, 1]


@pytest.mark.parametrize("name", ["sync_sgd", "async_sgd", "dc_asgd", "diloco"])
def test_equal_workers_merge_nothing(name: str) -> None:
    equal = {"simulation": {"compute": 0.01}}
    fixed, before = real({"name": name}, **equal)
    balanced, after = real({"name": name, **BATCH}, **equal)
    assert torch.equal(before, after)
    assert fixed.history.digest() == balanced.history.digest()


def test_at_once_the_rate_grows_with_the_batch() -> None:
    section = {"name": "async_sgd", "staleness": {"name": "inverse"}, **BATCH}
    found, _ = real(section)
    applied = [r for r in found.history.records[0] if r.kind == trace.APPLIED]
    assert max(r.stop - r.first for r in applied) == 5
    for record in applied:
        size = max(1.0, record.samples / 6)
        assert record.scale == pytest.approx(size / max(record.staleness, 1))


def test_a_merged_step_is_the_mean_of_its_batches_and_weighs_as_much_as_they() -> None:
    job = torch_job(
        plain_network, samples(), batch_size=6, fragment_batches=3, method={"name": "ssp", **BATCH}
    )
    host = WorkerHost(job.method, job.build_adapter(), job.train, job.plan)

    def update(first: int, stop: int) -> torch.Tensor:
        host.pull_target(fresh=True).copy_(job.initial)
        host.pulled(fresh=True, buffers=None)
        out = torch.zeros(job.layout.size)
        lease = ev.Lease(1, 1, 0, 0, 0, 0, 3, ())
        outcome = host.compute(ef.Compute(1, lease, first, stop), out)
        assert outcome.batches == stop - first
        return out

    whole, parts = update(0, 3), [update(batch, batch + 1) for batch in range(3)]
    push = ev.Push(1, 0, 1, 1, 1, 0, 0, 0, 3, 18, 0, ())
    assert job.weight_of(push) == 3.0
    assert torch.allclose(3.0 * whole, torch.stack(parts).sum(dim=0), atol=1e-6)


@pytest.mark.parametrize(
    "section",
    [
        {"name": "local_sgd", "exchange_period": 5, **STEPS},
        {"name": "async_sgd", "exchange_period": 2, "mixing": 0.5, **BATCH},
        {"name": "async_diloco", "exchange_period": 4, **STEPS},
        {"name": "sync_sgd", "exchange_period": 2, **BATCH},
        {
            "name": "diloco", "exchange_period": 2, **BATCH,
            "admission": {"name": "quorum", "count": 3, "weights": "tokens"},
        },
        {
            "name": "local_sgd",
            "exchange_schedule": {"name": "piecewise", "at": [[0, 1], [90, 2], [200, 5]]}, **STEPS,
        },
        {"name": "async_sgd", "exchange_period": 3, "staleness": STOPS},
        {"name": "async_sgd", "mixing": 0.5, "exchange_period": 3, "staleness": STOPS},
    ],
    ids=str,
)  # fmt: skip
def test_uneven_runs_are_repeated(section: dict[str, Any]) -> None:
    """``real`` replays them; here it must be seen that something was balanced or stopped."""
    found, _ = real(section, epochs=8)
    decided = [what for what, _ in found.observers[0].decisions]
    assert any(what.startswith(("worker", "leases of worker")) for what in decided)


# --- weights and schedules --------------------------------------------------------------------


def test_token_weights_count_the_size_of_steps() -> None:
    tokens = {"admission": {"name": "quorum", "weights": "tokens"}, **BATCH}
    found, weighted = real({"name": "diloco", "exchange_period": 1, **tokens})
    _, plain = real({"name": "diloco", "exchange_period": 1, **BATCH})
    assert not torch.equal(weighted, plain)
    large = [r for r in gathered(found) if r.stop - r.first == 5]
    assert large
    for record in large:
        assert found.job.weight_of(record) == record.samples**2


def test_token_weights_of_equal_steps_are_sample_weights() -> None:
    # 90 samples in batches of 6: no batch is short.
    section = {"name": "local_sgd", "exchange_period": 2}
    tokens = {**section, "admission": {"name": "quorum", "weights": "tokens"}}
    _, plain = real(section)
    _, weighted = real(tokens)
    assert torch.allclose(plain, weighted, atol=1e-6)


def test_a_schedule_of_one_entry_is_a_fixed_period() -> None:
    one = {"name": "piecewise", "at": [[0, 3]]}
    _, scheduled = real({"name": "local_sgd", "exchange_period": 1, "exchange_schedule": one})
    _, fixed = real({"name": "local_sgd", "exchange_period": 3})
    assert torch.equal(scheduled, fixed)


def test_the_period_follows_the_schedule() -> None:
    growing = {"name": "piecewise", "at": [[64 * 1000, 4], [64 * 2000, 10]]}
    found = null({"name": "local_sgd", "exchange_period": 1, "exchange_schedule": growing})
    for record in gathered(found):
        consumed = found.job.plan.position(record.epoch, record.fragment, record.first)
        expected = 1 if consumed < 64_000 else 4 if consumed < 128_000 else 10
        assert record.stop - record.first == expected


# --- calculation stops ------------------------------------------------------------------------


class Stopped:
    """Looks on: how computations ended."""

    def __init__(self) -> None:
        self.computed = self.overtaken = 0

    def see(self, event: Any) -> None:
        self.computed += type(event) is ev.Computed
        self.overtaken += type(event) is ev.Overtaken


def test_a_computation_that_is_too_stale_is_not_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(**changes: Any) -> tuple[SimulatedCluster, Stopped, float]:
        seen = Stopped()
        staleness = {**STOPS, **changes}
        section = {"name": "async_sgd", "in_flight": 0, "staleness": staleness}
        job = null_job(
            samples=64 * 600, workers=4, epochs=1, fragment_batches=4, method=section,
            simulation={"compute": UNEVEN},
        )  # fmt: skip
        found = SimulatedCluster(job)
        handled = found.history.handled

        def watch(now: float, address: Any, machine: Any, event: Any, effects: list[Any]) -> None:
            handled(now, address, machine, event, effects)
            seen.see(event)

        monkeypatch.setattr(found.history, "handled", watch)
        end = found.run()
        found.check(end)
        workers = end.figures["statistics"].workers(found.seconds)
        return found, seen, sum(worker["computing_s"] for worker in workers)

    late, finished, late_s = run(stops=False)
    early, stopped, early_s = run()
    assert finished.overtaken == 0 and stopped.overtaken > 50
    refused = [r for r in late.history.records[0] if r.kind == trace.REFUSED]
    # What would have been refused is not even pushed, but for what was overtaken on its way.
    assert len([r for r in early.history.records[0] if r.kind == trace.REFUSED]) < len(refused) / 3
    assert early.seconds <= late.seconds
    assert early_s < late_s, "and what it would have taken is saved"
    reasons = [why for what, why in early.observers[0].decisions if what.startswith("leases of")]
    assert "stopped: staleness 3 on shard 0, limit 3" in reasons


def test_what_is_too_stale_as_it_begins_is_stopped_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters travel for as long as many updates take, so they are old when they arrive."""
    early = 0

    def watch(now: float, address: Any, machine: Any, event: Any, effects: list[Any]) -> None:
        nonlocal early
        handled(now, address, machine, event, effects)
        if type(event) is ev.Pulled:
            began[address] = now
        elif type(event) is ev.Overtaken:
            early += now - began[address] < 0.07

    began: dict[Any, float] = {}
    job = null_job(
        samples=64 * 300, workers=3, epochs=1, fragment_batches=4,
        method={"name": "async_sgd", "in_flight": 0, "staleness": STOPS},
        simulation={"compute": [0.01, 0.01, 1.0], "network": [0.001, 0.001, 0.06]},
    )  # fmt: skip
    found = SimulatedCluster(job)
    handled = found.history.handled
    monkeypatch.setattr(found.history, "handled", watch)
    found.check(found.run())
    assert early > 0
    refused = [r for r in found.history.records[0] if r.kind == trace.REFUSED and r.worker == 2]
    assert not refused, "it is never left to finish a step of a second"


def test_only_steps_that_ended_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither those that were stopped nor those in which their worker died."""
    # Right after a report: what a process does after its last one nobody learns.
    crash = {"kind": "crash", "target": "worker-3", "at_s": 1.001}
    for staleness, faults in ((STOPS, []), ({"name": "constant"}, [crash])):
        found = SimulatedCluster(
            null_job(
                samples=64 * 300, batch_size=64, workers=4, epochs=1, fragment_batches=4,
                method={"name": "async_sgd", "in_flight": 0, "staleness": staleness},
                simulation={"compute": UNEVEN, "faults": faults},
            )
        )  # fmt: skip
        computed = 0
        handled = found.history.handled

        def watch(
            now: float, address: Any, machine: Any, event: Any, effects: list[Any],
            handled: Any = handled,
        ) -> None:  # fmt: skip
            nonlocal computed
            handled(now, address, machine, event, effects)
            computed += event.samples if type(event) is ev.Computed else 0

        monkeypatch.setattr(found.history, "handled", watch)
        statistics = found.run().figures["statistics"]
        counted = statistics.totals("samples")
        assert counted == 64 * statistics.totals("batches") == 64 * statistics.totals("exchanges")
        assert counted == computed >= 64 * 300


def test_stopping_a_worker_twice_is_stopping_it_once() -> None:
    """Both shards tell it; the second word comes when it has let go."""
    found = null(
        {"name": "async_sgd", "staleness": STOPS}, samples=64 * 300, fragment_batches=4,
        simulation={"compute": UNEVEN, "faults": [{"kind": "duplicate", "rate": 0.5}]},
    )  # fmt: skip
    effects = [why for what, why in found.observers[0].decisions if why.startswith("stopped")]
    assert effects
    assert isinstance(found.history.stretches[0].finished, ef.Finished)
