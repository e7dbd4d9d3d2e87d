"""Groups: who begins together, what ends a group, and when members train apart."""

from __future__ import annotations

from scheduler_desk import RESEND_S, Desk

from tardygrad.protocol import events as ev
from tardygrad.protocol.groups import Groups
from tardygrad.protocol.membership import DEAD, READY, WorkerEntry

PATIENCE_S = 2.0


def workers(count: int) -> list[WorkerEntry]:
    entries = [WorkerEntry(number, 0) for number in range(count)]
    for entry in entries:
        entry.state = READY
    return entries


def lease(worker: int, session: int = 0) -> ev.Lease:
    return ev.Lease(40 + worker, session or 10 + worker, worker, 0, worker, 0, 4, ())


def begun(groups: Groups, *, torn: bool = False) -> dict[int, ev.Group]:
    return {found.worker: group for _, found, group in groups.begin(torn=torn)}


def test_those_that_have_come_wait_for_the_rest_and_then_for_nobody() -> None:
    groups, entries = Groups(1, PATIENCE_S), workers(3)
    groups.comes(1, lease(2))
    assert not groups.is_due(entries, 0.0, excused=())
    groups.comes(1, lease(0))
    assert not groups.is_due(entries, 1.0, excused=())
    assert groups.is_due(entries, 1.0, excused=(1,))
    entries[1].state = DEAD
    assert groups.is_due(entries, 1.0, excused=())
    entries[1].state = READY
    assert groups.is_due(entries, PATIENCE_S, excused=())
    assert begun(groups) == {0: ev.Group(1, 0, 2), 2: ev.Group(1, 1, 2)}
    assert groups.place(2) == ev.Group(1, 1, 2) and groups.place(1) == ev.ALONE


def test_a_group_ends_when_one_leaves_or_comes() -> None:
    groups = Groups(1, PATIENCE_S)
    groups.comes(1, lease(0))
    groups.comes(1, lease(1))
    groups.begin(torn=False)
    assert groups.why_over({0: 10, 1: 11}, torn=False) == ""
    assert "worker 1" in groups.why_over({0: 10}, torn=False)
    assert "worker 1" in groups.why_over({0: 10, 1: 12}, torn=False)
    assert "worker 2 comes" in groups.why_over({0: 10, 1: 11, 2: 12}, torn=False)
    assert groups.end() == [(0, 10), (1, 11)]


def test_members_train_apart_while_shards_disagree() -> None:
    groups, entries = Groups(1, PATIENCE_S), workers(3)
    groups.comes(1, lease(0))
    groups.comes(1, lease(1))
    assert begun(groups, torn=True) == {0: ev.Group(1, 0, 1), 1: ev.Group(1, 0, 1)}
    # Who comes ends nothing, and waits for nobody.
    groups.comes(1, lease(2))
    members = {0: 10, 1: 11, 2: 12}
    assert groups.why_over(members, torn=True) == ""
    assert groups.is_due(entries, 0.0, excused=())
    assert begun(groups, torn=True) == {2: ev.Group(2, 0, 1)}
    assert groups.why_over(members, torn=False)
    assert len(groups.end()) == 3


def test_groups_that_break_in_vain_are_given_up_until_something_is_booked() -> None:
    groups = Groups(1, PATIENCE_S)
    sizes = []
    for attempt in range(5):
        if attempt == 4:
            groups.moved()
        for worker in (0, 1):
            groups.comes(1, lease(worker))
        sizes.append(begun(groups)[0].size)
        groups.end()
    assert sizes == [2, 2, 2, 1, 2]


# --- in the scheduler -------------------------------------------------------------------------


def desk() -> Desk:
    made = Desk(uses_clocks=True, uses_groups=True)
    made.serve()
    return made


def seen(made: Desk) -> dict[int, ev.Granted]:
    """Both servers know the members; what the workers are granted."""
    newest = made.machine._desk._roster
    assert newest is not None
    found: dict[int, ev.Granted] = {}
    for shard in range(2):
        made.do(ev.MembersSeen(shard, newest.generation))
        for effect in made.effects:
            message = getattr(effect, "message", None)
            if isinstance(message, ev.Granted):
                found[message.lease.worker] = message
    return found


def test_leases_are_told_when_all_are_there() -> None:
    made = desk()
    assert made.ask(0) is None
    assert seen(made) == {}
    assert made.ask(1) is None
    granted = seen(made)
    groups = {worker: grant.group for worker, grant in granted.items()}
    assert groups == {0: ev.Group(1, 0, 2), 1: ev.Group(1, 1, 2)}


def test_a_death_ends_the_sessions_of_all_and_the_rest_go_on() -> None:
    made = desk()
    made.ask(0)
    made.ask(1)
    seen(made)
    made.do(ev.WorkerDied(1, 0, "killed", fatal=False))
    [over] = made.sent(ev.SessionEnded)
    assert over.session == made.machine.workers[0].session
    assert len(made.sent(ev.FenceAsked)) == 4
    # One that asks without knowing it hears it again.
    made.do(ev.LeaseAsked(0, 0, 1, 9, 0, False, False, "", 0))
    assert made.sent(ev.SessionEnded) == [over]
    # The dead one's successor is not due yet.
    [granted] = seen(made).values()
    assert granted.group == ev.Group(2, 0, 1)
    made.do(ev.Tick(), after=RESEND_S)
    made.do(ev.WorkerReady(1, 1))
    made.ask(1, incarnation=1)
    assert made.sent(ev.SessionEnded)
