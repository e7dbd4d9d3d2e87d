"""The scheduler's checkpoints and the end of a run, which may turn out not to be one."""

from __future__ import annotations

from scheduler_desk import Desk

from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev
from tardygrad.protocol.checkpointing import CheckpointRound
from tardygrad.protocol.membership import ServerEntry
from tardygrad.protocol.outbox import Outbox
from tardygrad.protocol.scheduler import OVER, RUNNING, SAVING, STOPPING


def test_a_checkpoint_is_committed_when_all_snapshots_are_there() -> None:
    desk = Desk(checkpoint_every_s=1.0)
    desk.serve()
    desk.beat(0, 1)
    desk.beat(0, 1)
    assert desk.sent(ev.SnapshotAsked) == [ev.SnapshotAsked(1, 0, 0)] * 2
    desk.snapshot(1, 1)
    assert not desk.of(ef.CommitCheckpoint)
    desk.snapshot(0, 1)
    [commit] = desk.of(ef.CommitCheckpoint)
    assert commit.step == 1 and [name for name, _, _ in commit.files] == ["0", "1"]
    assert commit.state["versions"] == [4, 4] and commit.state["samples"] == [16, 16]


def test_a_round_that_loses_a_server_is_given_up_with_its_number() -> None:
    desk = Desk(checkpoint_every_s=1.0)
    desk.serve()
    desk.beat(0, 1)
    desk.beat(0, 1)
    desk.snapshot(1, 1)
    desk.do(ev.ServerDied(0, 0, "killed", False))
    assert len(desk.machine.outbox) == 0, "nobody is asked for the snapshot any more"
    desk.serve(0, incarnation=1)
    desk.do(ev.SnapshotTaken(0, 1, 1, 4, 16, ("0", 1, "")))
    assert not desk.of(ef.CommitCheckpoint)
    desk.beat(0, 1)
    desk.beat(0, 1)
    assert {a.step for a in desk.sent(ev.SnapshotAsked)} == {2}


def test_a_snapshot_that_fails_gives_the_round_up() -> None:
    desk = Desk(checkpoint_every_s=1.0)
    desk.serve()
    desk.beat(0, 1)
    desk.beat(0, 1)
    desk.do(ev.SnapshotFailed(0, 0, 1, "disk full"))
    assert desk.of(ef.Decided) == [ef.Decided("checkpoint 1 is given up", "disk full")]
    desk.snapshot(1, 1)
    assert not desk.of(ef.CommitCheckpoint) and desk.machine.phase == RUNNING


def leave(desk: Desk) -> None:
    for worker in desk.machine.workers:
        if worker.alive:
            desk.do(ev.WorkerLeft(worker.worker, worker.incarnation))


def test_done_means_all_left_all_saved() -> None:
    desk = Desk()
    desk.serve()
    desk.finish()
    assert desk.machine.phase == STOPPING and desk.machine.outcome == "done"
    leave(desk)
    [asked] = set(desk.sent(ev.SnapshotAsked))
    assert desk.machine.phase == SAVING and asked.floor == desk.machine.book.next_fence - 1
    desk.snapshot(0, asked.step)
    desk.snapshot(1, asked.step)
    assert [type(e) for e in desk.effects] == [ef.CommitCheckpoint, ef.Finished]
    assert desk.machine.phase == OVER and desk.do(ev.Tick(), 1.0) == []


def test_whoever_does_not_leave_in_time_is_killed() -> None:
    desk = Desk(stop_s=3.0)
    desk.serve()
    desk.do(ev.Interrupted("SIGTERM"))
    assert len(desk.sent(ev.StopAsked)) == 2
    desk.do(ev.WorkerLeft(0, 0))
    for _ in range(6):
        desk.beat(1)
        assert desk.sent(ev.StopAsked)
    desk.beat(1)
    assert [k.worker for k in desk.of(ef.KillWorker)] == [1]
    assert desk.machine.phase == SAVING and desk.machine.outcome == "preempted"


def saving() -> Desk:
    """A scheduler that was interrupted, and whose workers have left."""
    desk = Desk()
    desk.serve()
    desk.do(ev.Interrupted("SIGTERM"))
    leave(desk)
    return desk


def test_a_last_checkpoint_that_fails_is_a_failure() -> None:
    desk = saving()
    for step in range(1, 100):
        desk.do(ev.SnapshotFailed(1, 0, step, "disk full"))
        if finished := desk.of(ef.Finished):
            break
        assert step < 99 and desk.of(ef.Decided)
        tick_until_asked(desk, step + 1)
    assert finished[0].outcome == "failed" and "disk full" in finished[0].reason
    assert desk.now > 30.0, "what a disk may take"


def tick_until_asked(desk: Desk, step: int) -> None:
    for _ in range(10):
        desk.beat()
        if step in {a.step for a in desk.sent(ev.SnapshotAsked)}:
            return
    raise AssertionError(f"nobody is asked for snapshot {step}")


def test_a_last_checkpoint_waits_for_its_disk() -> None:
    desk = saving()
    desk.do(ev.SnapshotFailed(1, 0, 1, "disk full"))
    assert desk.machine.phase == SAVING and not desk.of(ef.Finished)
    tick_until_asked(desk, 2)
    desk.snapshot(0, 1)
    assert not desk.of(ef.CommitCheckpoint), "one of the round that was given up"
    desk.snapshot(0, 2)
    desk.snapshot(1, 2)
    assert [type(e) for e in desk.effects] == [ef.CommitCheckpoint, ef.Finished]
    assert desk.machine.outcome == "preempted"


def test_a_server_that_dies_while_its_disk_is_away_is_waited_for() -> None:
    desk = saving()
    desk.do(ev.SnapshotFailed(1, 0, 1, "disk full"))
    desk.do(ev.ServerDied(0, 0, "killed", False))
    for _ in range(4):
        desk.beat(1)
        assert not desk.sent(ev.SnapshotAsked)
    desk.serve(0, incarnation=1)
    assert {a.step for a in desk.sent(ev.SnapshotAsked)} == {2}


def test_each_last_checkpoint_has_the_whole_patience() -> None:
    round_ = CheckpointRound(1, 1, Outbox())
    servers = [ServerEntry(0, 0)]
    for began in (0.0, 100.0):
        for tried in (began, began + 4.0):
            round_.begin(servers, 0, tried)
            assert round_.refused(tried, 5.0) and not round_.due_again(tried)
            assert round_.due_again(tried + 4.0)
        round_.begin(servers, 0, began + 6.0)
        assert not round_.refused(began + 6.0, 5.0)


def test_the_patience_begins_anew_when_work_comes_back() -> None:
    round_ = CheckpointRound(1, 1, Outbox())
    servers = [ServerEntry(0, 0)]
    for began in (0.0, 100.0):
        round_.begin(servers, 0, began)
        assert round_.refused(began, 5.0)
        round_.reopen()
        assert not round_.active and not round_.due_again(began + 50.0)


def test_nobody_waits_for_a_worker_that_is_yet_to_be_started() -> None:
    desk = Desk(backoff_s=20.0, backoff_max_s=20.0)
    desk.serve()
    desk.do(ev.WorkerDied(1, 0, "killed", False))
    assert desk.of(ef.SpawnWorker) == [ef.SpawnWorker(1, 1, 20.0)]
    desk.do(ev.Interrupted("SIGTERM"))
    assert desk.of(ef.KillWorker) == [ef.KillWorker(1, 1, "SIGTERM")]
    assert [s.to for s in desk.of(ef.Send)] == [("worker", 0)], "one that is there is asked"
    assert [(c.id, c.state) for c in desk.of(ef.MemberChanged)] == [(1, "left")]
    desk.do(ev.WorkerLeft(0, 0))
    assert desk.machine.phase == SAVING


def test_whoever_left_before_it_was_started_comes_back_with_the_work() -> None:
    desk = Desk(backoff_s=20.0, backoff_max_s=20.0)
    desk.serve()
    desk.do(ev.WorkerDied(1, 0, "killed", False))
    desk.finish()
    desk.do(ev.WorkerLeft(0, 0))
    desk.do(ev.ServerDied(0, 0, "killed", False))
    desk.serve(0, incarnation=1)
    assert [(s.worker, s.incarnation) for s in desk.of(ef.SpawnWorker)] == [(0, 1), (1, 2)]


def to_the_last_checkpoint(desk: Desk) -> None:
    desk.serve()
    desk.do(ev.Interrupted("SIGTERM"))
    leave(desk)
    assert desk.machine.phase == SAVING


def wait_for_snapshots(desk: Desk, stop_s: float) -> None:
    for _ in range(int(stop_s / 0.5)):
        desk.beat()
        assert not desk.of(ef.KillServer) and desk.machine.phase == SAVING
    desk.beat()


def test_a_server_that_does_not_write_its_last_snapshot_is_replaced_once() -> None:
    desk = Desk(stop_s=3.0)
    to_the_last_checkpoint(desk)
    desk.snapshot(0, 1)
    wait_for_snapshots(desk, 3.0)
    assert [k.shard for k in desk.of(ef.KillServer)] == [1]
    assert [s.shard for s in desk.of(ef.SpawnServer)] == [1]
    assert len(desk.machine.outbox) == 0, "the round is given up"
    desk.serve(1, incarnation=1)
    assert {a.step for a in desk.sent(ev.SnapshotAsked)} == {2}
    desk.snapshot(0, 2)
    desk.snapshot(1, 2)
    assert [f.outcome for f in desk.of(ef.Finished)] == ["preempted"]


def test_a_last_snapshot_that_never_comes_ends_the_run() -> None:
    desk = Desk(stop_s=3.0)
    to_the_last_checkpoint(desk)
    wait_for_snapshots(desk, 3.0)
    assert [k.shard for k in desk.of(ef.KillServer)] == [0, 1]
    desk.serve(0, 1, incarnation=1)
    wait_for_snapshots(desk, 3.0)
    [finished] = desk.of(ef.Finished)
    assert finished.outcome == "failed"
    assert "no snapshot of server 0, server 1 within 3 s, for the second time" in finished.reason
    assert "resume the run" in finished.reason


def test_a_pause_of_the_scheduler_is_not_held_against_the_last_snapshot() -> None:
    desk = Desk(stop_s=3.0)
    to_the_last_checkpoint(desk)
    desk.do(ev.Tick(), after=100.0)
    assert "paused" in desk.of(ef.Decided)[0].reason
    wait_for_snapshots(desk, 3.0)
    assert desk.of(ef.KillServer)


def test_a_server_lost_at_the_end_brings_the_work_and_the_workers_back() -> None:
    desk = Desk()
    desk.serve()
    desk.finish()
    desk.do(ev.WorkerLeft(0, 0))
    desk.do(ev.WorkerDied(1, 0, "killed", False))
    assert desk.machine.phase == SAVING
    desk.do(ev.ServerDied(0, 0, "killed", False))
    desk.serve(0, incarnation=1)
    assert desk.machine.phase == RUNNING and desk.machine.outcome == ""
    assert [(s.worker, s.incarnation) for s in desk.of(ef.SpawnWorker)] == [(0, 1), (1, 1)]
    # A wish to leave from before: it may not cost the run a worker.
    desk.do(ev.WorkerLeft(0, 1))
    assert [(s.worker, s.incarnation) for s in desk.of(ef.SpawnWorker)] == [(0, 2)]


def test_a_server_lost_at_the_end_whose_snapshot_has_everything_changes_nothing() -> None:
    desk = Desk()
    desk.serve()
    desk.finish()
    leave(desk)
    desk.do(ev.ServerDied(0, 0, "killed", False))
    desk.serve(0, incarnation=1, complete=(0,))
    assert desk.machine.phase == SAVING and {a.step for a in desk.sent(ev.SnapshotAsked)} == {2}
