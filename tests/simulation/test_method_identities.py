"""Methods that must come to the same, in whole simulated runs."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from tardygrad.data.fragments import Permutations
from tardygrad.engines.base import RunEnd
from tardygrad.engines.inline import InlineEngine
from tardygrad.protocol import trace
from tardygrad.testing.battery import plain_network, samples
from tardygrad.testing.simulation import MemoryStore, SilentObserver, SimulatedCluster, torch_job

WORKERS, BATCH = 3, 6
RATE = 0.1
SGD = {"class": "SGD", "arguments": {"lr": RATE}}
# 90 samples are 15 batches of 6: five for each worker, and fragments of one batch.
SETTINGS: dict[str, Any] = {
    "epochs": 2,
    "batch_size": BATCH,
    "fragment_batches": 1,
    "workers": WORKERS,
    "servers": 2,
    "simulation": {"compute": 0.01},
}


def cluster(method: dict[str, Any], **settings: Any) -> SimulatedCluster:
    return SimulatedCluster(
        torch_job(plain_network, samples(), **{**SETTINGS, **settings, "method": method})
    )


def run(method: dict[str, Any], **settings: Any) -> RunEnd:
    found = cluster(method, **settings)
    end = found.run()
    found.check(end)
    return end


def same(one: RunEnd, other: RunEnd) -> bool:
    return torch.allclose(one.parameters, other.parameters, atol=2e-6)


def sync(rate: float = RATE, **settings: Any) -> dict[str, Any]:
    return {"name": "sync_sgd", "optimizer": {"arguments": {"lr": rate}}, **settings}


@pytest.mark.parametrize("method", ["sync_sgd", "all_reduce"])
def test_synchronous_sgd_is_the_serial_loop_with_the_whole_batch(method: str) -> None:
    end = run({**sync(), "name": method})
    torch.manual_seed(0)
    model = plain_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    found = cluster(sync())
    order, source = Permutations(found.job.plan), samples()
    for epoch in range(2):
        for first in range(0, 15, WORKERS):
            indices = [order.indices(epoch, first + w, 0) for w in range(WORKERS)]
            inputs, target = source.batch(np.concatenate(indices))
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), target).backward()
            optimizer.step()
    adapter = found.job.build_adapter()
    adapter.load(end.parameters[: found.job.layout.parameters_size])
    for name, value in model.state_dict().items():
        assert torch.allclose(adapter.state_dict()[name], value, atol=2e-6), name


ADAM = {"class": "Adam", "arguments": {"lr": 0.01}}
HEAVY = {"class": "SGD", "arguments": {"lr": 0.05, "momentum": 0.9}}


@pytest.mark.parametrize(
    "settings", [{}, {"in_flight": 0}, {"optimizer": ADAM}, {"optimizer": HEAVY}]
)
def test_all_reduce_is_synchronous_sgd(settings: dict[str, Any]) -> None:
    found = cluster({"name": "all_reduce", "optimizer": SGD, **settings})
    end = found.run()
    found.check(end)
    # Every step is a sum of all three.
    counts = [len(kinds(found, kind)) for kind in (trace.INCLUDED, trace.GATHERED)]
    assert counts == [2 * 2 * 5, 2 * 5]
    optimizer = settings.get("optimizer", SGD)
    assert same(end, run({"name": "sync_sgd", "optimizer": optimizer}))


def test_ranks_that_follow_come_to_what_those_that_wait_do() -> None:
    # Cut where no vector register ends, and with a rate at which rounding shows.
    section = {
        "name": "all_reduce",
        "optimizer": {"arguments": {"lr": 1 / 3}},
        "exchange_period": 2,
    }
    ends = [
        run({**section, "in_flight": in_flight}, servers=3, fragment_batches=4)
        for in_flight in (0, 1)
    ]
    assert torch.equal(ends[0].parameters, ends[1].parameters)


def test_a_rank_dies_and_one_comes_and_nothing_is_lost_or_repeated() -> None:
    crash = {"faults": [{"kind": "crash", "target": "worker-1", "at_s": 0.055}]}
    failure = {"backoff_s": 0.1, "lease_s": 0.5, "heartbeat_s": 0.1}
    found = cluster(
        {"name": "all_reduce"}, simulation={**crash, "compute": 0.01}, failure=failure, epochs=10,
        fragment_batches=2,
    )  # fmt: skip
    found.check(found.run())
    told = [what for what, how in found.observers[0].decisions if how == "together"]
    assert told[:3] == ["workers 0, 1, 2 begin", "workers 0, 2 begin", "workers 0, 1, 2 begin"]
    booked = [r for kind in (trace.INCLUDED, trace.GATHERED) for r in kinds(found, kind)]
    assert all(record.staleness == 0 for record in booked)


def test_a_bound_of_zero_is_bulk_synchronous() -> None:
    # It applies the three gradients of a clock one after the other: a sum, not a mean.
    section = {"name": "ssp", "consistency": {"name": "ssp", "bound": 0}}
    ssp = {**section, "optimizer": {"arguments": {"lr": RATE / WORKERS}}}
    assert same(run(ssp), run(sync()))


def test_a_quorum_of_everybody_is_everybody() -> None:
    quorum = sync(admission={"name": "quorum", "count": WORKERS})
    assert torch.equal(run(quorum).parameters, run(sync()).parameters)


def test_local_sgd_that_exchanges_each_step_is_synchronous() -> None:
    local = {"name": "local_sgd", "exchange_period": 1, "optimizer": SGD}
    assert same(run(local), run(sync()))


def test_diloco_without_momentum_is_local_sgd() -> None:
    settings = {"exchange_period": 2, "optimizer": SGD}
    outer = {"arguments": {"lr": 1.0}}
    diloco = run({"name": "diloco", "outer": outer, **settings}, fragment_batches=4)
    local = run({"name": "local_sgd", **settings}, fragment_batches=4)
    assert torch.equal(diloco.parameters, local.parameters)


def test_softsync_of_one_is_asynchronous() -> None:
    soft = {"name": "softsync", "admission": {"name": "collect", "updates": 1}, "optimizer": SGD}
    assert torch.equal(
        run(soft).parameters, run({"name": "async_sgd", "optimizer": SGD}).parameters
    )


def test_incremental_sgd_averages_models_that_began_alike() -> None:
    section = {"name": "incremental_sgd", "optimizer": SGD}
    end = run(section, epochs=1, fragment_batches=5)
    found = cluster(section, fragment_batches=5)
    order, source = Permutations(found.job.plan), samples()
    mean = None
    for fragment in range(3):
        torch.manual_seed(0)
        model = plain_network()
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        for batch in range(5):
            inputs, target = source.batch(order.indices(0, fragment, batch))
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), target).backward()
            optimizer.step()
        values = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        mean = values if mean is None else mean + values
    adapter = found.job.build_adapter()
    adapter.load(end.parameters[: found.job.layout.parameters_size])
    trained = torch.cat([v.reshape(-1) for v in adapter.state_dict().values()])
    assert mean is not None
    assert torch.allclose(trained, mean / 3, atol=2e-6)


def kinds(found: SimulatedCluster, kind: int) -> list[trace.Record]:
    return [record for record in found.history.records[0] if record.kind == kind]


def test_a_slow_worker_does_not_hold_a_quorum_back() -> None:
    slow = {"compute": [0.01, 0.01, 0.5]}
    everybody = cluster(sync(), simulation=slow)
    everybody.check(everybody.run())
    late = {"name": "cut_off", "below": 1}
    quorum = cluster(
        sync(admission={"name": "quorum", "count": 2}, staleness=late), simulation=slow
    )
    quorum.check(quorum.run())
    assert quorum.seconds < everybody.seconds
    assert kinds(quorum, trace.DROPPED)
    assert not kinds(everybody, trace.DROPPED)
    # Rounds of two, but for those that a lone worker ended.
    assert {record.seq for record in kinds(quorum, trace.COMMITTED)} <= {1, 2}


def test_a_grace_period_takes_in_who_is_a_little_late() -> None:
    speeds = {"compute": [0.01, 0.01, 0.012]}
    late = {"name": "cut_off", "below": 1}
    admission = {"name": "quorum", "count": 2, "grace_s": 0.02}
    found = cluster(sync(admission=admission, staleness=late), simulation=speeds)
    found.check(found.run())
    assert not kinds(found, trace.DROPPED)


def test_rennala_waits_for_nobody_and_takes_fresh_gradients_alone() -> None:
    section = {"name": "rennala", "admission": {"name": "collect", "updates": 4}}
    found = cluster(section, simulation={"compute": [0.01, 0.01, 0.1]})
    found.check(found.run())
    assert all(record.staleness == 0 for record in kinds(found, trace.GATHERED))
    # The last round of each epoch ends with it.
    sizes = [record.seq for record in kinds(found, trace.COMMITTED)]
    assert max(sizes) == 4
    assert sum(size < 4 for size in sizes) <= 2


def test_what_a_method_leaves_another_goes_on_with() -> None:
    store = MemoryStore()
    first = torch_job(plain_network, samples(), **{**SETTINGS, "method": {"name": "diloco"}})
    InlineEngine().run(first, SilentObserver(), store)
    after = store.newest(0)
    assert after is not None
    assert after.is_of(first.method)
    later = {**SETTINGS, "epochs": 3, "method": {"name": "dana"}}
    second = dataclasses.replace(
        torch_job(plain_network, samples(), **later),
        generation=1, lineage=2, first_step=after.step + 1,
    )  # fmt: skip
    assert not after.is_of(second.method)
    end = InlineEngine().run(second, SilentObserver(), store)
    assert end.outcome == "done"
    newest = store.newest(0)
    assert newest is not None
    assert newest.state["ledger"]["consumed"] == 3 * 90
