"""Workers that join, leave and are put aside, event by event."""

from __future__ import annotations

from scheduler_desk import Desk

from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev
from tardygrad.protocol import membership as mb
from tardygrad.protocol.scheduler import RUNNING


def working(**changes: object) -> Desk:
    """Everybody is ready, has a lease and has computed something."""
    desk = Desk(**changes)
    desk.serve()
    for worker in range(len(desk.machine.workers)):
        desk.do(ev.WorkerReady(worker, 0))
        desk.do(ev.Heartbeat("worker", worker, 0, 1))
    return desk


def change(desk: Desk, add: int = 0, remove: int = 0) -> ef.CrewAnswered:
    desk.do(ev.CrewWanted(5, add, remove))
    [answer] = desk.of(ef.CrewAnswered)
    assert answer.number == 5
    found: ef.CrewAnswered = answer
    return found


def test_who_joins_is_started_and_gets_a_lease() -> None:
    desk = working()
    assert change(desk, add=2) == ef.CrewAnswered(5, (2, 3), (), "")
    assert desk.of(ef.SpawnWorker) == [ef.SpawnWorker(2, 0, 0.0), ef.SpawnWorker(3, 0, 0.0)]
    assert desk.ask(3) is not None and desk.ask(2) is not None


def test_there_is_no_more_room_than_was_stated() -> None:
    desk = working()
    answer = change(desk, add=5)
    assert "there can be 6" in answer.refused and not answer.added
    assert not desk.of(ef.SpawnWorker) and len(desk.machine.workers) == 2


def test_who_leaves_gives_back_what_is_not_booked() -> None:
    desk = working(shards=1)
    desk.ask(0)
    lease = desk.ask(1)
    assert change(desk, remove=1).leaving == (1,)
    assert desk.sent(ev.StopAsked) == [ev.StopAsked(ev.ASKED_TO_LEAVE)]
    assert desk.ask(1) is None and desk.sent(ev.StopAsked)
    desk.do(ev.WorkerLeft(1, 0))
    assert desk.machine.workers[1].state == mb.LEFT
    [asked] = desk.sent(ev.FenceAsked)
    desk.do(ev.Fenced(0, 0, lease.epoch, lease.fragment, asked.fence, lease.first + 1))
    again = desk.ask(0)
    assert (again.fragment, again.first) == (lease.fragment, lease.first + 1)
    assert not desk.of(ef.SpawnWorker)


def test_the_wish_is_repeated_until_he_is_gone() -> None:
    desk = working()
    change(desk, remove=1)
    for _ in range(3):
        desk.do(ev.Tick(), after=0.5)
        assert len(desk.sent(ev.StopAsked)) == 1
    desk.do(ev.WorkerLeft(1, 0))
    desk.do(ev.Tick(), after=0.5)
    assert not desk.sent(ev.StopAsked)


def test_who_dies_while_he_leaves_is_not_replaced() -> None:
    desk = working()
    change(desk, remove=1)
    desk.do(ev.WorkerDied(1, 0, "killed", False))
    assert not desk.of(ef.SpawnWorker) and desk.machine.phase == RUNNING
    assert change(desk, add=1).added == (1,)


def test_one_must_stay() -> None:
    desk = working()
    assert change(desk, remove=2).refused == "there are 2 workers, and one must stay"
    assert change(desk, remove=1).leaving == (1,)
    assert change(desk, remove=1).refused == "there are 1 workers, and one must stay"


def test_who_joins_takes_the_place_of_one_that_left() -> None:
    desk = working(workers=3)
    change(desk, remove=2)
    desk.do(ev.WorkerLeft(1, 0))
    assert change(desk, add=2).added == (1, 3)
    assert desk.of(ef.SpawnWorker)[0] == ef.SpawnWorker(1, 1, 0.0)
    # A wish to stop from before that reaches the new process: it is replaced.
    desk.do(ev.WorkerLeft(1, 1))
    assert [s.worker for s in desk.of(ef.SpawnWorker)] == [1]


def test_who_waits_for_his_start_leaves_at_once() -> None:
    desk = working(backoff_s=10.0, backoff_max_s=10.0)
    desk.do(ev.WorkerDied(1, 0, "killed", False))
    change(desk, remove=1)
    assert desk.of(ef.KillWorker) and desk.machine.workers[1].state == mb.LEFT


def test_a_run_that_ends_takes_nobody() -> None:
    desk = working()
    desk.do(ev.Interrupted("Ctrl-C"))
    assert change(desk, add=1).refused == "the run is about to end"


def test_servers_hear_of_the_number_until_they_answer() -> None:
    desk = working(counts_crew=True)
    change(desk, add=2)
    assert desk.sent(ev.CrewCounted) == [ev.CrewCounted(1, 4)] * 2
    desk.do(ev.CrewSeen(0, 1))
    desk.do(ev.Tick(), after=1.5)
    assert [e.to for e in desk.of(ef.Send) if type(e.message) is ev.CrewCounted] == [("server", 1)]
    # A new server knows the configured number alone.
    desk.do(ev.ServerDied(0, 0, "killed", False))
    desk.serve(0, incarnation=1)
    assert desk.sent(ev.CrewCounted) == [ev.CrewCounted(1, 4)]


def test_a_death_changes_no_number() -> None:
    desk = working(counts_crew=True)
    desk.do(ev.WorkerDied(1, 0, "killed", False))
    assert not desk.sent(ev.CrewCounted)


# --- put aside --------------------------------------------------------------------------------


def fail(desk: Desk, worker: int, *, fatal: bool = False) -> None:
    incarnation = desk.machine.workers[worker].incarnation
    desk.do(ev.WorkerReady(worker, incarnation))
    desk.do(ev.Heartbeat("worker", worker, incarnation, 1))
    desk.do(ev.WorkerDied(worker, incarnation, "ValueError: no", fatal, own=True))


def test_who_keeps_failing_is_put_aside_while_others_work() -> None:
    desk = working(restarts=10)
    for _ in range(2):
        fail(desk, 1)
        assert desk.of(ef.SpawnWorker)
    fail(desk, 1)
    assert not desk.of(ef.SpawnWorker) and desk.machine.phase == RUNNING
    [aside] = [e for e in desk.of(ef.MemberChanged) if e.state == "put_aside"]
    assert "it died 3 times in a row" in aside.reason and "ValueError: no" in aside.reason
    assert desk.machine.restarts.used == 2


def test_what_was_booked_begins_the_count_anew() -> None:
    desk = working(restarts=10, shards=1)
    for number in range(4):
        fail(desk, 1)
        fail(desk, 1)
        incarnation = desk.machine.workers[1].incarnation
        desk.do(ev.WorkerReady(1, incarnation))
        lease = desk.ask(1, incarnation=incarnation)
        desk.book(lease, number + 1)
    assert desk.machine.workers[1].alive


def test_alone_it_is_tried_until_the_restarts_are_used_up() -> None:
    desk = working(workers=1, restarts=5)
    for _ in range(6):
        assert desk.machine.phase == RUNNING
        fail(desk, 0)
    assert "no worker is left and all 5 restarts are used up" in desk.machine.reason


def test_what_would_fail_again_is_put_aside_at_once_if_others_work() -> None:
    desk = working()
    fail(desk, 1, fatal=True)
    assert desk.machine.workers[1].state == mb.PUT_ASIDE and desk.machine.phase == RUNNING
    fail(desk, 0, fatal=True)
    assert desk.machine.outcome == "failed" and desk.machine.reason == "ValueError: no"


def test_somebody_can_give_it_another_try() -> None:
    desk = working(workers_max=2)
    fail(desk, 1, fatal=True)
    assert change(desk, add=1).added == (1,)
