"""Clocks: the table against a naive model, and the roster that holds leases back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tardygrad.protocol.clocks import NOBODY, ClockTable, Roster
from tardygrad.protocol.effects import Send
from tardygrad.protocol.events import FenceAsked, Lease, MembersChanged, SnapshotAsked
from tardygrad.protocol.outbox import Outbox

workers, sessions, clocks = st.integers(0, 3), st.integers(1, 2), st.integers(0, 6)
lists = st.dictionaries(workers, st.tuples(sessions, clocks), max_size=4)


@given(st.lists(st.tuples(workers, sessions, clocks) | lists, max_size=40))
def test_the_slowest_member_is_published_and_never_goes_back(script: list[object]) -> None:
    table = ClockTable()
    model: dict[int, tuple[int, int]] = {}
    slowest = 0
    for generation, what in enumerate(script):
        if isinstance(what, dict):
            before, model = model, {}
            for worker, (session, clock) in sorted(what.items()):
                known = before.get(worker, (0, 0))
                kept = known[1] if known[0] == session else 0
                model[worker] = (session, max(clock, kept, slowest))
            members = tuple((w, s, c) for w, (s, c) in sorted(what.items()))
            table.change(MembersChanged(generation, members))
            table.change(MembersChanged(generation - 1, ()))
        else:
            assert isinstance(what, tuple)
            worker, session, clock = what
            if model.get(worker, (0, 0))[0] == session:
                model[worker] = (session, max(clock, model[worker][1]))
            table.pushed(worker, session, clock)
        slowest = max([slowest, *([min(c for _, c in model.values())] if model else [])])
        assert table.published == (slowest if model else NOBODY)


def lease(worker: int, session: int = 1, fence: int = 1, clock: int = 0) -> Lease:
    return Lease(fence, session, worker, 0, 0, 0, 1, (), clock)


def test_the_roster_sets_leases_free_when_every_server_knows() -> None:
    roster = Roster(2)
    first, second = lease(0, clock=4), lease(1, session=2)
    assert not roster.join(7, first)
    assert roster.told() == MembersChanged(1, ((0, 1, 4),)) and not roster.changed
    assert not roster.join(9, second)
    assert roster.told() == MembersChanged(2, ((0, 1, 4), (1, 2, 0)))
    assert roster.seen(0, 2) == []
    assert roster.seen(1, 1) == [(7, first)]
    assert roster.seen(1, 1) == []
    assert roster.seen(1, 2) == [(9, second)]
    assert roster.join(10, lease(0, fence=5))


def test_a_held_lease_is_told_under_the_newest_number() -> None:
    roster = Roster(1)
    assert not roster.asks_again(0, 8)
    roster.join(7, lease(0))
    roster.told()
    assert roster.asks_again(0, 8)
    assert roster.seen(0, 1) == [(8, lease(0))]


def test_whoever_leaves_gets_no_lease() -> None:
    roster = Roster(1)
    roster.join(7, lease(0))
    roster.told()
    roster.leave(0)
    assert roster.changed and roster.told().workers == ()
    assert roster.seen(0, 2) == []
    roster.leave(0)
    assert not roster.changed


def test_a_restored_server_empties_the_roster() -> None:
    roster = Roster(1)
    roster.join(7, lease(0))
    roster.told()
    roster.seen(0, 1)
    roster.clear()
    assert roster.told() == MembersChanged(2, ())
    assert not roster.join(8, lease(0, fence=2)), "it is new again"


def test_commands_are_due_again_until_they_are_answered() -> None:
    outbox = Outbox()
    asked = SnapshotAsked(1, 0, 0)
    send = outbox.command("snapshot", 0, asked, 0.0)
    assert send == Send(("server", 0), asked)
    assert outbox.due(0.5, 1.0) == []
    assert outbox.due(1.0, 1.0) == [send] and outbox.due(1.5, 1.0) == []
    outbox.answered("snapshot", SnapshotAsked(0, 0, 0))
    outbox.answered("another", asked)
    assert len(outbox) == 1
    outbox.answered("snapshot", asked)
    assert len(outbox) == 0 and outbox.due(9.0, 1.0) == []


def test_a_newer_command_takes_the_place_of_an_older_one() -> None:
    outbox = Outbox()
    outbox.command("fence", 0, FenceAsked(0, 0, 1), 0.0)
    newer = outbox.command("fence", 0, FenceAsked(0, 0, 2), 0.0)
    outbox.answered("fence", FenceAsked(0, 0, 1))
    assert outbox.due(1.0, 1.0) == [newer]
    outbox.forget("fence")
    outbox.forget("fence")
    assert len(outbox) == 0
