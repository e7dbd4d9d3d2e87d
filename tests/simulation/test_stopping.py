"""How simulated runs end, and where they go on: deadlines, late disks, epochs that were told."""

from __future__ import annotations

from typing import Any, Literal

from tardygrad.config import Duration
from tardygrad.engines.base import Job
from tardygrad.protocol import trace
from tardygrad.testing.simulation import MemoryStore, SimulatedCluster, Stop, counting_job, null_job
from tardygrad.testing.simulation import resumed as resume


def crash(target: str, at_s: float) -> dict[str, Any]:
    return {"kind": "crash", "target": target, "at_s": at_s}


def job_with(*faults: dict[str, Any], **settings: Any) -> Job:
    failure = {"backoff_s": 20.0, "backoff_max_s": 20.0}
    simulation = {"faults": list(faults), "compute": 0.01}
    return null_job(
        **{"samples": 64 * 400, "workers": 2, "epochs": 1, "failure": failure, **settings},
        simulation=simulation,
    )


def test_the_end_does_not_wait_for_a_worker_that_is_yet_to_be_started() -> None:
    cluster = SimulatedCluster(job_with(crash("worker-1", 1.0)))
    end = cluster.run()
    cluster.check(end)
    assert end.outcome == "done" and cluster.seconds < 6.0
    states = [c.state for _, c in cluster.history.stretches[0].changes if c.id == 1]
    assert states[-3:] == ["died", "started", "left"], "the spawn is cancelled"


def test_nor_does_a_stop() -> None:
    stops = [Stop("preempt", 1.2)]
    cluster = SimulatedCluster(job_with(crash("worker-1", 1.0)), stops=stops)
    cluster.run()
    [stopped] = [s for s in cluster.history.stretches[:1] if s.finished is not None]
    assert stopped.finished is not None and stopped.finished.outcome == "preempted"
    assert stopped.finished_s < 2.0


def test_workers_that_got_on_may_die_as_often_as_the_budget_says() -> None:
    """All of them twice, before any fragment is whole."""
    kills = [crash(f"worker-{w}", at_s) for at_s in (1.0, 2.0) for w in range(4)]
    job = null_job(
        samples=64 * 400, workers=4, epochs=1, fragment_batches=32, failure={"restarts": 20},
        simulation={"faults": kills, "compute": 0.1},
    )  # fmt: skip
    cluster = SimulatedCluster(job)
    end = cluster.run()
    cluster.check(end)
    assert end.outcome == "done"


def test_a_checkpoint_that_becomes_visible_after_a_shard_went_back() -> None:
    """The server dies before the manifest is written, goes back by two, and then by one."""
    job = counting_job(
        samples=64 * 100, workers=2, servers=1, epochs=1, checkpoint={"every_s": 0.4},
        simulation={"faults": [crash("server-0", 1.0), crash("server-0", 1.3)], "compute": 0.05},
    )  # fmt: skip
    cluster = SimulatedCluster(job, disk=Duration(mean_s=0.25))
    end = cluster.run()
    cluster.check(end)
    records = cluster.history.records[0]
    restored = [r.seq for r in records if r.kind == trace.RESTORED]
    assert restored == [0, 1], "the disks of this test are no longer too late"
    assert end.outcome == "done"


def test_a_power_cut_loses_a_manifest_that_is_not_written() -> None:
    job = null_job(samples=6400, workers=2, epochs=2, checkpoint={"every_s": 0.2})
    stops = [Stop("power_cut", 0.4)]
    cluster = SimulatedCluster(job, stops=stops, disk=Duration(mean_s=0.15))
    end = cluster.run()
    cluster.check(end)
    assert end.outcome == "done" and cluster.observers[0].of("checkpoint") == []


def test_a_resumed_run_tells_again_what_its_checkpoint_does_not_have() -> None:
    def told(stop: Literal["preempt", "power_cut"]) -> list[list[int]]:
        job = null_job(samples=640, workers=2, epochs=6, checkpoint={"every_s": float("inf")})
        cluster = SimulatedCluster(job, stops=[Stop(stop, 0.15)])
        cluster.check(cluster.run())
        return [[e["epoch"] for e in observer.of("epoch")] for observer in cluster.observers]

    first, second = told("power_cut")
    assert first and second == [1, 2, 3, 4, 5, 6]
    first, second = told("preempt")
    assert first and first + second == [1, 2, 3, 4, 5, 6]


def test_a_resumed_job_reports_no_more_epochs_than_were_told() -> None:
    cluster = SimulatedCluster(null_job(samples=640, epochs=3))
    cluster.run()
    assert resume(cluster.job, cluster.store, told=2).epochs_reported == 2
    there = resume(cluster.job, cluster.store, told=9)
    assert there.epochs_reported == 3 and there.consumed_before == 3 * 640
    assert resume(cluster.job, MemoryStore(), told=9).epochs_reported == 0
