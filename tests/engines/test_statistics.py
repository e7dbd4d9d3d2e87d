"""Counts of processes that come, die and are replaced, added up."""

from __future__ import annotations

from typing import Any

import pytest

from tardygrad.engines.statistics import RunStatistics, ServerCounters, WorkerCounters


def statistics(workers: int = 2, shards: int = 2) -> RunStatistics:
    found = RunStatistics(workers, shards, samples_per_epoch=1000)
    found.begin(0, 0, 0.0)
    return found


def worker_report(batches: int, *, loss: float = 2.0, epoch: int = 0) -> dict[str, Any]:
    counters = WorkerCounters()
    for _ in range(batches):
        counters.computed(epoch, 10, 1, loss, 0.5)
    counters.waiting_s = 0.25
    counters.pushed_bytes = 100 * batches
    return counters.report()


def server_report(consumed: int, *staleness: int, first: float | None = None) -> dict[str, Any]:
    counters = ServerCounters()
    counters.consumed = consumed
    counters.first_update_s = first
    for value in staleness:
        counters.applied(0, value)
    return counters.report()


def rate(consumed: int) -> float:
    return 0.1 / (1 + consumed)


def test_progress_counts_what_every_shard_has(monkeypatch: pytest.MonkeyPatch) -> None:
    s = statistics()
    s.server_report(0, 0, server_report(400, 0, 1, first=3.0))
    s.server_report(1, 0, server_report(300, 1, 2, first=2.5))
    s.worker_report(0, 0, worker_report(20))
    fields = s.progress(2.0, rate)
    assert (fields["samples"], fields["epoch"], fields["samples_per_s"]) == (300, 0.3, 150.0)
    assert fields["learning_rate"] == rate(300)
    assert fields["loss"] == 2.0
    assert fields["staleness"]["mean"] == 1.0 and fields["staleness"]["max"] == 2
    assert s.first_update_s == 2.5
    assert s.staleness_histogram() == {"0": {"0": 1, "1": 2, "2": 1}, "1": {}}
    later = s.progress(4.0, rate)
    assert (later["samples_per_s"], later["loss"]) == (0.0, None)


def test_the_loss_is_of_the_batches_since_last_time() -> None:
    s = statistics()
    s.worker_report(0, 0, worker_report(10, loss=4.0))
    assert s.progress(1.0, rate)["loss"] == 4.0
    counters = worker_report(10, loss=4.0)
    counters["losses"] = [[0, 10 * 4.0 + 5 * 1.0, 15]]
    counters["batches"] = 15
    s.worker_report(0, 0, counters)
    assert s.progress(2.0, rate)["loss"] == 1.0
    assert s.epoch_loss(0) == pytest.approx(45 / 15)
    assert s.epoch_loss(1) is None


def test_a_replaced_worker_keeps_its_slots_counts() -> None:
    s = statistics()
    s.member("worker", 0, 0, "started")
    s.member("worker", 0, 0, "ready")
    s.worker_report(0, 0, worker_report(10))
    s.member("worker", 0, 0, "died")
    assert s.workers(1.0)[0]["state"] == "dead"
    s.member("worker", 0, 1, "started")
    assert s.workers(1.0)[0]["state"] == "restarting"
    s.worker_report(0, 0, worker_report(99))  # late news of the dead one
    s.worker_report(0, 1, worker_report(5))
    s.worker_report(0, 1, worker_report(3))  # overtaken on the way
    row = s.workers(1.0)[0]
    assert (row["samples"], row["restarts"], row["incarnation"]) == (150, 1, 1)
    assert row["computing_s"] == pytest.approx(7.5)
    assert s.totals("pushed_bytes") == 1500


def test_who_comes_back_because_work_did_was_not_restarted() -> None:
    s = statistics()
    for state, incarnation in (("started", 0), ("ready", 0), ("left", 0), ("started", 1)):
        s.member("worker", 0, incarnation, state)
    # The other had not left yet.
    for state, incarnation in (("started", 0), ("ready", 0), ("started", 1)):
        s.member("worker", 1, incarnation, state)
    assert [row["restarts"] for row in s.workers(1.0)] == [0, 0]
    assert [row["state"] for row in s.workers(1.0)] == ["starting", "starting"]
    s.member("worker", 0, 1, "died")
    s.member("worker", 0, 2, "started")
    assert [row["restarts"] for row in s.workers(1.0)] == [1, 0]


def test_a_server_that_is_being_restored_says_nothing_of_samples() -> None:
    s = statistics(shards=1)
    s.server_report(0, 0, server_report(500))
    s.server_report(0, 1, ServerCounters().report())
    assert s.consumed == 500
    s.server_report(0, 1, server_report(200))
    assert s.consumed == 200


def test_at_the_end_a_workers_speed_is_that_of_the_whole_stretch() -> None:
    s = statistics()
    s.worker_report(0, 0, worker_report(20))
    assert [row["samples_per_s"] for row in s.progress(4.0, rate)["workers"]] == [50.0, 0.0]
    s.worker_report(0, 0, worker_report(30))
    assert s.workers(5.0)[0]["samples_per_s"] == 60.0
    assert s.workers(5.0)[0]["samples_per_s"] == 60.0
    assert s.progress(6.0, rate)["workers"][0]["samples_per_s"] == 50.0


def test_a_restored_server_counts_from_its_snapshot() -> None:
    s = statistics(shards=1)
    s.server_report(0, 0, server_report(500, 1))
    s.server_report(0, 1, server_report(200, 3))
    s.server_report(0, 0, server_report(500, 1))  # late
    assert s.consumed == 200
    assert dict(s.histograms()[0]) == {1: 1, 3: 1}


def test_a_resumed_run_begins_with_what_it_had() -> None:
    s = statistics(shards=1)
    s.begin(1024, 700, 50.0)
    assert s.progress(51.0, rate)["samples_per_s"] == 0.0
    s.member("worker", 0, 1024, "started")
    s.server_report(0, 1024, server_report(900))
    fields = s.progress(52.0, rate)
    assert (fields["samples"], fields["samples_per_s"]) == (900, 200.0)
    assert fields["workers"][0]["restarts"] == 0


def test_waiting_is_a_state_of_the_living() -> None:
    s = statistics()
    s.member("worker", 0, 0, "ready")
    s.waiting(0, True)
    s.waiting(1, True)
    assert [row["state"] for row in s.workers(1.0)] == ["waiting", "starting"]
    s.waiting(0, False)
    s.member("worker", 1, 0, "put_aside")
    assert [row["state"] for row in s.workers(1.0)] == ["training", "put_aside"]


def test_old_epochs_losses_are_dropped_from_reports() -> None:
    counters = WorkerCounters()
    for epoch in range(10):
        counters.computed(epoch, 10, 2, 1.0, 0.1)
    assert [entry[0] for entry in counters.report()["losses"]] == [6, 7, 8, 9]
