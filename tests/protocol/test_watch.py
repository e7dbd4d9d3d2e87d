"""Who is alive and does nothing: signs of life come from a thread of its own, work does not."""

from __future__ import annotations

from typing import Any

from scheduler_desk import LEASE_S, Desk

from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev
from tardygrad.protocol.scheduler import RUNNING

START_S = 60.0


def stand_still(desk: Desk, *workers: int, most_s: float = 1000.0) -> Any:
    """All show signs of life and nothing else, until somebody is killed; who, or None."""
    began = desk.now
    while desk.now - began < most_s:
        desk.beat(*workers)
        killed = [*desk.of(ef.KillWorker), *desk.of(ef.KillServer)]
        if killed:
            return killed[0]
    return None


def test_a_worker_that_hangs_while_it_builds_its_model() -> None:
    desk = Desk(workers=1)
    desk.serve()
    killed = stand_still(desk, 0)
    assert killed.worker == 0 and killed.reason == "not ready after 60.5 s (allowed: 60 s)"
    # Perhaps it was only slow: the next one may take longer.
    assert stand_still(desk, 0).reason.endswith("(allowed: 120 s)")


def test_the_time_before_a_worker_is_started_does_not_count() -> None:
    desk = Desk(workers=1, backoff_s=200.0, backoff_max_s=200.0)
    desk.serve()
    desk.do(ev.WorkerDied(0, 0, "killed", False))
    assert stand_still(desk, 0, most_s=319.0) is None
    assert stand_still(desk, 0, most_s=3.0).worker == 0


def test_a_worker_that_hangs_in_its_first_step() -> None:
    desk = Desk(workers=1)
    desk.serve()
    assert desk.ask(0) is not None
    assert stand_still(desk, 0, most_s=START_S) is None
    assert stand_still(desk, 0, most_s=1.0).reason.startswith("no progress for 60.5 s")


def test_a_first_step_may_take_as_long_as_the_steps_of_others() -> None:
    desk = Desk(workers=2)
    desk.serve()
    for steps in (1, 2):
        desk.do(ev.Heartbeat("worker", 1, 0, steps), after=4.0 * (steps - 1))
    desk.do(ev.WorkerReady(1, 0))
    desk.ask(0)
    assert stand_still(desk, 0, 1, most_s=79.0) is None
    assert stand_still(desk, 0, 1, most_s=2.0).worker == 0


def test_a_worker_without_a_lease_does_not_hang() -> None:
    desk = Desk(workers=1)
    desk.do(ev.WorkerReady(0, 0))
    desk.serve()
    assert stand_still(desk, 0, most_s=300.0) is None


def command(desk: Desk) -> None:
    """All servers are asked to fence something, and do not answer."""
    desk.ask(0)
    desk.do(ev.WorkerDied(0, 0, "killed", False))
    assert len(desk.machine.outbox) == len(desk.machine.servers)


def test_a_server_that_answers_nothing() -> None:
    desk = Desk(restarts=0)
    desk.do(ev.WorkerReady(1, 0))
    desk.serve()
    command(desk)
    killed = stand_still(desk, 1)
    assert killed.shard == 0 and killed.reason == "no answer for 60.5 s (allowed: 60 s)"
    assert [k.shard for k in desk.of(ef.KillServer)] == [0, 1]
    assert [s.shard for s in desk.of(ef.SpawnServer)] == [0, 1] and desk.machine.phase == RUNNING


def test_a_server_that_applies_updates_is_not_stuck() -> None:
    desk = Desk(shards=1, restarts=0)
    desk.do(ev.WorkerReady(1, 0))
    desk.serve()
    command(desk)
    for steps in range(1, 300):
        desk.do(ev.Heartbeat("server", 0, 0, steps))
        desk.do(ev.Heartbeat("worker", 1, 0, 0))
        desk.do(ev.Tick(), after=0.5)
        assert not desk.of(ef.KillServer)


def test_a_snapshot_may_take_its_time() -> None:
    desk = Desk(checkpoint_every_s=1.0)
    for worker in (0, 1):
        desk.do(ev.WorkerReady(worker, 0))
    desk.serve()
    assert stand_still(desk, 0, 1, most_s=300.0) is None
    assert len(desk.machine.outbox) == 2


def test_a_pause_of_the_scheduler_forgives_everybody() -> None:
    desk = Desk(workers=2, restarts=10)
    desk.serve()
    desk.ask(0)
    desk.do(ev.WorkerDied(0, 0, "killed", False))
    desk.do(ev.WorkerReady(1, 0))
    desk.do(ev.Tick(), after=500.0)
    assert stand_still(desk, 0, 1, most_s=START_S - 1) is None
    assert LEASE_S < START_S


# --- workers that wait for each other -----------------------------------------------------------


def waiting(*clocks: int) -> Desk:
    """Workers at work that have come so far, those with the highest clocks first."""
    desk = Desk(workers=len(clocks), uses_clocks=True)
    desk.serve()
    for worker in sorted(range(len(clocks)), key=lambda w: -clocks[w]):
        desk.ask(worker)
        [told, _] = desk.sent(ev.MembersChanged)
        for shard in (0, 1):
            desk.do(ev.MembersSeen(shard, told.generation))
        for steps in (1, 2):
            session = desk.machine.workers[worker].session
            desk.do(ev.Heartbeat("worker", worker, 0, steps, session, clocks[worker]), after=0.1)
    return desk


def hold(desk: Desk, clocks: list[int], most_s: float = 1000.0) -> Any:
    """All stand still with these clocks, until one is killed; who, or None."""
    began = desk.now
    while desk.now - began < most_s:
        desk.now += 0.5
        for shard in range(2):
            desk.do(ev.Heartbeat("server", shard, 0, 0))
        for worker, clock in enumerate(clocks):
            entry = desk.machine.workers[worker]
            beat = ev.Heartbeat("worker", worker, 0, entry.steps, entry.session, clock)
            desk.do(beat)
        desk.do(ev.Tick())
        if killed := desk.of(ef.KillWorker):
            return killed[0].worker
    return None


def test_the_one_with_the_lowest_clock_is_awaited_however_long_others_stand_still() -> None:
    # Worker 1 stands still longest, and waits for worker 0.
    assert hold(waiting(4, 5, 5), [4, 5, 5]) == 0


def test_whoever_was_waited_for_frees_the_others() -> None:
    clocks = [4, 5, 5]
    desk = waiting(*clocks)
    limit = 10 * LEASE_S
    assert hold(desk, clocks, most_s=limit - 2.0) is None
    desk.do(ev.Heartbeat("worker", 0, 0, 3, desk.machine.workers[0].session, 5))
    # The others stood still as long, but had to.
    assert hold(desk, [5, 5, 5], most_s=limit - 2.0) is None
    assert hold(desk, [5, 5, 5], most_s=4.0) == 1


def test_whoever_begins_anew_gives_nobody_more_time() -> None:
    desk = waiting(5, 5, 5)
    began = desk.now
    clocks = [5, 5, 5]
    while (killed := hold(desk, clocks, most_s=20.0)) is None:
        # Worker 2 begins a session again and again, and comes as far each time.
        clocks[2] = 0 if clocks[2] else 5
        desk.do(ev.Heartbeat("worker", 1, 0, desk.machine.workers[1].steps + 1))
        assert desk.now - began < 200.0
    assert killed == 0


def test_a_clock_of_a_session_that_is_over_says_nothing() -> None:
    desk = waiting(9, 5)
    stale = desk.machine.workers[0].session - 1
    desk.do(ev.Heartbeat("worker", 0, 0, 2, stale, 9))
    assert [w.clock for w in desk.machine.workers] == [0, 5]


def test_a_new_process_is_behind_all_others() -> None:
    desk = waiting(9, 5)
    desk.do(ev.WorkerDied(0, 0, "killed", False))
    assert [w.clock for w in desk.machine.workers] == [0, 5]


# --- deaths in vain -----------------------------------------------------------------------------


def die(desk: Desk, worker: int) -> None:
    desk.do(ev.WorkerDied(worker, desk.machine.workers[worker].incarnation, "killed", False))


def test_lives_that_computed_something_are_not_in_vain() -> None:
    desk = Desk(workers=4, restarts=20)
    desk.serve()
    for _ in range(4):
        for worker, entry in enumerate(desk.machine.workers):
            desk.do(ev.Heartbeat("worker", worker, entry.incarnation, 1))
        for worker in range(4):
            die(desk, worker)
    assert desk.machine.phase == RUNNING and desk.machine.restarts.used == 16


def test_what_the_servers_have_of_the_dead_was_not_in_vain() -> None:
    """All die before a heartbeat could tell of a step, yet each time a batch more is booked."""
    desk = Desk(workers=1, shards=1, restarts=1000)
    desk.serve()
    lease = desk.ask(0)
    for round_ in range(8):
        die(desk, 0)
        [asked] = desk.sent(ev.FenceAsked)
        standing = lease.first + 1
        desk.do(ev.Fenced(0, 0, lease.epoch, lease.fragment, asked.fence, standing))
        assert desk.machine.phase == RUNNING, round_
        lease = desk.ask(0, incarnation=round_ + 1)


def test_what_the_servers_had_before_does_not_count() -> None:
    desk = Desk(workers=1, shards=2, restarts=1000)
    desk.serve()
    desk.ask(0)
    deaths = 0
    while desk.machine.phase == RUNNING:
        die(desk, 0)
        deaths += 1
        for asked in desk.sent(ev.FenceAsked)[:1]:
            # The shards stand apart, and stay where they are.
            for shard in range(2):
                where = (asked.epoch, asked.fragment)
                desk.do(ev.Fenced(shard, 0, *where, asked.fence, 1 + shard))
        desk.ask(0, incarnation=deaths)
    # The first of them had moved the shards.
    assert deaths == 5 and "had done anything" in desk.machine.reason
