"""Workers that join and leave in virtual time: the ledger stays exact, the rest follows."""

from __future__ import annotations

from typing import Any

import pytest

from tardygrad.engines.base import RunEnd
from tardygrad.protocol import trace
from tardygrad.testing.battery import plain_network, samples
from tardygrad.testing.simulation import SimulatedCluster, null_job, torch_job

CHANGES = [{"at_s": 0.3, "add": 2}, {"at_s": 0.9, "remove": 3}, {"at_s": 1.4, "add": 1}]


def simulated(**settings: Any) -> tuple[SimulatedCluster, RunEnd]:
    job = null_job(
        **{"samples": 3200, "epochs": 1, "batch_size": 8, "workers": 2, "servers": 2, **settings}
    )
    cluster = SimulatedCluster(job)
    end = cluster.run()
    cluster.check(end)
    assert end.outcome == "done", end.reason
    return cluster, end


@pytest.mark.parametrize(
    "method",
    ["async_sgd", "ssp", "sync_sgd", "all_reduce", "rennala", "easgd", "dana", "ringleader"],
)
def test_every_kind_of_method_takes_it(method: str) -> None:
    cluster, _ = simulated(method=method, epochs=2, simulation={"changes": CHANGES})
    members = [(e["state"], e["id"]) for e in cluster.observers[0].of("member")]
    assert ("started", 3) in members and members.count(("leaving", 3)) == 1


def test_more_workers_take_less_time() -> None:
    _, two = simulated()
    _, four = simulated(simulation={"changes": [{"at_s": 0.0, "add": 2}]})
    assert four.figures["seconds"] < 0.6 * two.figures["seconds"]


def test_leaving_costs_no_computation() -> None:
    _, end = simulated(workers=3, simulation={"changes": [{"at_s": 0.5, "remove": 2}]})
    assert end.figures["statistics"].totals("samples") == 3200


def test_a_false_death_costs_what_was_not_pushed() -> None:
    """Cut off for a while, worker 1 is taken for dead while it works on."""
    method = {"name": "async_sgd", "exchange_period": 2, "in_flight": 1}
    fault = {"kind": "blackout", "target": "worker-1", "at_s": 0.5, "for_s": 3.0}
    cluster, end = simulated(
        method=method, samples=8000, failure={"lease_s": 1.0}, simulation={"faults": [fault]}
    )
    states = [e["state"] for e in cluster.observers[0].of("member") if e["id"] == 1]
    assert states.count("suspected") == 1
    redone = end.figures["statistics"].totals("samples") - 8000
    # Two exchanges of two batches: the one in flight and the one at hand.
    assert 0 < redone <= 2 * 2 * 8


def test_the_learning_rate_follows_if_it_is_told_to() -> None:
    changes = [{"at_s": 0.5, "add": 2}]
    cluster, _ = simulated(elastic={"learning_rate": "linear"}, simulation={"changes": changes})
    scales = {r.scale for r in cluster.history.records[0] if r.samples}
    assert scales == {1.0, 2.0}


def test_a_backup_knows_how_many_workers_there_are() -> None:
    """It takes over after the change, and the rate goes on where its predecessor left it."""
    deaths = [{"kind": "crash", "target": f"server-{s}", "at_s": 0.8} for s in range(2)]
    cluster, _ = simulated(
        replicas=1,
        elastic={"learning_rate": "linear"},
        simulation={"changes": [{"at_s": 0.5, "add": 2}], "faults": deaths, "tick_s": 0.02},
    )
    for records in cluster.history.records:
        kinds = [r.kind for r in records]
        promotion = kinds.index(trace.PROMOTED)
        before, after = records[:promotion], records[promotion:]
        assert {r.scale for r in before if r.samples} == {1.0, 2.0}
        assert {r.scale for r in after if r.samples} == {2.0}
        assert {r.worker for r in after if r.samples} == {0, 1, 2, 3}


@pytest.mark.parametrize("method", ["sync_sgd", "easgd", "dana", "ringleader"])
def test_backups_follow_workers_that_join_and_leave(method: str) -> None:
    """Tables that have grown are filled into backups; each is compared bit by bit."""
    deaths = [
        {"kind": "crash", "target": target, "at_s": at_s}
        for at_s, target in ((0.5, "server-0"), (0.7, "backup-0"), (1.2, "server-0"))
    ]
    job = torch_job(
        plain_network, samples(), epochs=40, batch_size=8, workers=2, replicas=1, method=method,
        failure={"backoff_s": 0.01},
        simulation={"changes": CHANGES, "faults": deaths, "tick_s": 0.02},
    )  # fmt: skip
    cluster = SimulatedCluster(job)
    end = cluster.run()
    cluster.check(end)
    assert end.outcome == "done", end.reason
    promoted = [r for r in cluster.history.records[0] if r.kind == trace.PROMOTED]
    assert len(promoted) == 2


def test_delay_adaptive_reckons_with_those_that_are_there() -> None:
    # Of two workers a staleness of 3 is unusual, of four it is not.
    times = {"compute": 0.01, "changes": [{"at_s": 0.0, "add": 2}]}
    method = {"name": "async_sgd", "staleness": "delay_adaptive"}
    cluster, _ = simulated(method=method, simulation=times)
    late = [r.scale for r in cluster.history.records[0] if r.samples and r.staleness in (3, 4)]
    assert late and set(late[5:]) == {1.0}
