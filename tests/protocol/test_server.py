"""The server: every push is answered, and applied in order, once, and to the life that it read."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tardygrad.consistency import ASP, SSP
from tardygrad.data.fragments import FragmentPlan
from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev
from tardygrad.protocol import trace
from tardygrad.protocol.clocks import NOBODY
from tardygrad.protocol.invariants import Auditor
from tardygrad.protocol.server import Server, ServerSettings
from tardygrad.staleness import Constant, CutOff, Inverse, StalenessPolicy

PLAN = FragmentPlan(samples=46, batch_size=4, fragment_batches=4, seed=0)
LINEAGE = 7


def server(
    *,
    staleness: StalenessPolicy | None = None,
    consistency: ASP | SSP | None = None,
    **options: Any,
) -> Server:
    settings = ServerSettings(
        lineage=LINEAGE,
        plan=PLAN,
        workers=3,
        staleness=staleness or Constant(),
        consistency=consistency or ASP(),
        resend_s=1.0,
    )
    return Server(0, settings, **options)


def push(first: int, stop: int, version: int = 0, **changes: Any) -> ev.Push:
    fragment = changes.get("fragment", 0)
    made = ev.Push(
        LINEAGE, worker=1, session=4, seq=9, fence=5, epoch=0, fragment=fragment, first=first,
        stop=stop, samples=PLAN.samples_in(fragment, first, stop), clock=0, reads=((0, version),),
    )  # fmt: skip
    return made._replace(**changes)


def answer(effects: list[ef.Effect]) -> ev.Acked:
    [acked] = [e.message for e in effects if isinstance(e, ef.Send) and type(e.message) is ev.Acked]
    return acked


def of(effects: list[ef.Effect], kind: type) -> list[Any]:
    return [e for e in effects if type(e) is kind]


def sent(effects: list[ef.Effect]) -> list[ev.Event]:
    return [e.message for e in effects if isinstance(e, ef.Send)]


# --- pushes -----------------------------------------------------------------------------------


def test_a_push_in_turn_is_applied_and_acknowledged() -> None:
    machine = server()
    effects = machine.handle(push(0, 2), 0.0)
    [apply] = of(effects, ef.Apply)
    assert (apply.scale, apply.consumed, apply.record.version) == (1.0, 0, 1)
    assert answer(effects) == ev.Acked(0, 4, 9, ev.APPLIED, 2, "")
    assert machine.version == 1 and machine.ledger.consumed == 8


def test_what_is_known_is_acknowledged_and_not_applied() -> None:
    machine = server()
    machine.handle(push(0, 2), 0.0)
    effects = machine.handle(push(0, 2), 0.0)
    assert answer(effects).outcome == ev.DUPLICATE and answer(effects).next == 2
    assert not of(effects, ef.Apply) and machine.version == 1


def test_what_is_ahead_of_its_turn_is_a_gap() -> None:
    machine = server()
    effects = machine.handle(push(2, 3), 0.0)
    assert answer(effects).outcome == ev.GAP and answer(effects).next == 0
    assert not of(effects, ef.Apply) and machine.ledger.consumed == 0


def test_what_lies_across_the_border_is_refused() -> None:
    machine = server()
    machine.handle(push(0, 2), 0.0)
    effects = machine.handle(push(1, 3), 0.0)
    assert answer(effects).outcome == ev.REFUSED and answer(effects).next == 2
    assert not of(effects, ef.Apply)


def test_the_last_batch_of_a_fragment_is_reported_until_it_is_seen() -> None:
    machine = server()
    effects = machine.handle(push(0, 4), 0.0)
    [booked] = [m for m in sent(effects) if type(m) is ev.Booked]
    assert (booked.epoch, booked.fragment) == (0, 0)
    machine.handle(ev.ServerSeen(0), 0.0)
    assert sent(machine.handle(ev.Tick(), 0.5)) == []
    assert sent(machine.handle(ev.Tick(), 1.0)) == [booked]
    machine.handle(ev.BookedSeen(booked.number), 1.0)
    assert sent(machine.handle(ev.Tick(), 9.0)) == []


def test_another_runs_push_changes_nothing_and_gets_no_answer() -> None:
    machine = server()
    before = machine.ledger.state()
    assert machine.handle(push(0, 2, lineage=LINEAGE + 1), 0.0) == []
    assert machine.ledger.state() == before and machine.version == 0


def test_pushes_under_an_old_fence_are_refused() -> None:
    machine = server()
    [reply] = sent(machine.handle(ev.FenceAsked(0, 0, 6), 0.0))
    assert reply == ev.Fenced(0, 0, 0, 0, 6, 0)
    assert "overtaken by a newer lease" in answer(machine.handle(push(0, 2), 0.0)).reason
    # Asked again, and for an older lease: the fence stays, the answer is the newest standing.
    machine.handle(push(0, 2, fence=6), 0.0)
    [reply] = sent(machine.handle(ev.FenceAsked(0, 0, 3), 0.0))
    assert reply == ev.Fenced(0, 0, 0, 0, 3, 2)
    assert machine.ledger.fence(0, 0) == 6


def test_a_restored_server_refuses_its_predecessors_pushes() -> None:
    machine = server(incarnation=1, floor=20)
    assert "below the floor" in answer(machine.handle(push(0, 2, fence=19), 0.0)).reason
    refused = answer(machine.handle(push(0, 2, fence=20, reads=((0, 0),)), 0.0))
    assert refused.outcome == ev.REFUSED and "incarnation 0" in refused.reason
    accepted = machine.handle(push(0, 2, fence=20, reads=((1, 0),)), 0.0)
    assert answer(accepted).outcome == ev.APPLIED


# --- staleness --------------------------------------------------------------------------------


def advance(machine: Server, versions: int) -> None:
    for batch in range(versions):
        machine.handle(push(batch, batch + 1, machine.version), 0.0)


def test_staleness_scales_the_learning_rate() -> None:
    machine = server(staleness=Inverse())
    advance(machine, 3)
    [apply] = of(machine.handle(push(0, 1, 0, fragment=1), 0.0), ef.Apply)
    assert apply.record.staleness == 3 and apply.scale == 1 / 3


def test_what_is_too_stale_is_booked_as_dropped() -> None:
    machine = server(staleness=CutOff(below=2))
    advance(machine, 2)
    effects = machine.handle(push(0, 1, 0, fragment=1), 0.0)
    assert answer(effects).outcome == ev.DROPPED and answer(effects).next == 1
    [log] = of(effects, ef.Log)
    assert log.record.kind == trace.DROPPED and log.record.version == machine.version == 2
    state = machine.ledger.state()
    assert (state["applied"], state["dropped"]) == ([(0, 8)], [(0, 4)])


def test_what_is_too_stale_can_be_computed_again() -> None:
    machine = server(staleness=CutOff(below=2, again=True))
    advance(machine, 2)
    before = machine.ledger.state()
    assert answer(machine.handle(push(0, 1, 0, fragment=1), 0.0)).outcome == ev.AGAIN
    assert machine.ledger.state() == before
    again = push(0, 1, 2, fragment=1, seq=10)
    assert answer(machine.handle(again, 0.0)).outcome == ev.APPLIED


# --- snapshots and new lives ------------------------------------------------------------------


def snapshot_of(machine: Server, step: int) -> dict[str, Any]:
    effects = machine.handle(ev.SnapshotAsked(step, 0, 0), 0.0)
    assert [type(e) for e in effects] == [ef.Log, ef.SaveSnapshot]
    saved = effects[1]
    assert isinstance(saved, ef.SaveSnapshot)
    return {"version": saved.version, **saved.state}


def test_a_snapshot_is_taken_once_and_answered_as_often_as_asked() -> None:
    machine = server()
    snapshot_of(machine, 3)
    asked = ev.SnapshotAsked(3, 0, 0)
    assert machine.handle(asked, 0.0) == []
    taken = machine.handle(ev.SnapshotWritten(3, 0, 0, ("f", 1, "c"), ""), 0.0)
    assert sent(taken) == [ev.SnapshotTaken(0, 0, 3, 0, 0, ("f", 1, "c"))]
    assert machine.handle(asked, 0.0) == taken


def test_a_late_request_never_changes_an_older_checkpoint() -> None:
    machine = server()
    snapshot_of(machine, 3)
    snapshot_of(machine, 4)
    assert machine.handle(ev.SnapshotAsked(3, 0, 0), 0.0) == []
    again = server(incarnation=1, restored_step=4)
    assert again.handle(ev.SnapshotAsked(4, 0, 1), 0.0) == []
    # Its predecessor took 5, and the manifest became visible only after it had died.
    assert again.handle(ev.SnapshotAsked(5, 0, 0), 0.0) == []
    assert of(again.handle(ev.SnapshotAsked(5, 0, 1), 0.0), ef.SaveSnapshot)


def test_an_earlier_snapshot_does_not_answer_for_the_newest() -> None:
    machine = server()
    snapshot_of(machine, 3)
    snapshot_of(machine, 4)
    asked = ev.SnapshotAsked(4, 0, 0)
    machine.handle(ev.SnapshotWritten(3, 0, 0, ("f3", 1, "c"), ""), 0.0)
    assert machine.handle(asked, 0.0) == []
    taken = machine.handle(ev.SnapshotWritten(4, 0, 0, ("f4", 1, "c"), ""), 0.0)
    machine.handle(ev.SnapshotWritten(3, 0, 0, ("f3", 1, "c"), ""), 0.0)
    assert machine.handle(asked, 0.0) == taken


def test_a_snapshot_that_fails_is_reported() -> None:
    machine = server()
    snapshot_of(machine, 1)
    failed = machine.handle(ev.SnapshotWritten(1, 0, 0, ("", 0, ""), "disk full"), 0.0)
    assert sent(failed) == [ev.SnapshotFailed(0, 0, 1, "disk full")]


def test_nothing_is_applied_after_the_last_snapshot() -> None:
    machine = server()
    machine.handle(ev.SnapshotAsked(1, 30, 0), 0.0)
    assert answer(machine.handle(push(0, 2, fence=29), 0.0)).outcome == ev.REFUSED
    assert answer(machine.handle(push(0, 2, fence=30), 0.0)).outcome == ev.APPLIED


def test_a_new_life_goes_on_from_its_snapshot() -> None:
    machine = server()
    advance(machine, 3)
    saved = snapshot_of(machine, 8)
    advance(machine, 4)
    again = server(incarnation=2, floor=6, restored_step=8, snapshot=saved)
    effects = again.handle(ev.Started(), 0.0)
    [log] = of(effects, ef.Log)
    assert (log.record.kind, log.record.version, log.record.seq) == (trace.RESTORED, 3, 8)
    assert sent(effects) == [ev.ServerReady(0, 2, 3, (), ((0, 0, 3),))]
    assert sent(again.handle(ev.Tick(), 0.1)) == sent(effects)
    again.handle(ev.ServerSeen(1), 0.1)
    assert sent(again.handle(ev.Tick(), 0.2)) == sent(effects)
    again.handle(ev.ServerSeen(2), 0.2)
    assert sent(again.handle(ev.Tick(), 0.3)) == []


def test_an_answer_to_an_earlier_lifes_report_is_not_taken_for_this_ones() -> None:
    first = server()
    [old] = [m for m in sent(first.handle(push(0, 4), 0.0)) if type(m) is ev.Booked]
    again = server(incarnation=1)
    again.handle(push(0, 4, reads=((1, 0),)), 0.0)
    again.handle(ev.ServerSeen(1), 0.0)
    again.handle(ev.BookedSeen(old.number), 0.0)
    assert len(sent(again.handle(ev.Tick(), 5.0))) == 1


# --- clocks -----------------------------------------------------------------------------------


def members(generation: int, *workers: tuple[int, int, int]) -> ev.MembersChanged:
    return ev.MembersChanged(generation, workers)


def test_a_pull_waits_for_the_slowest_member() -> None:
    machine = server(consistency=SSP(bound=1))
    machine.handle(members(1, (1, 4, 0), (2, 5, 0)), 0.0)
    assert machine.handle(ev.PullAsked(1, 3, 1), 0.0) == []
    assert not of(machine.handle(push(0, 1), 0.0), ef.SendParameters)
    other = push(0, 1, fragment=1, worker=2, session=5)
    [answered] = of(machine.handle(other, 0.0), ef.SendParameters)
    assert answered == ef.SendParameters(1, 3, (0, 2), 1)


def test_a_repeated_pull_is_answered_once() -> None:
    machine = server(consistency=SSP(bound=0))
    machine.handle(members(1, (1, 4, 0)), 0.0)
    for _ in range(3):
        assert machine.handle(ev.PullAsked(1, 3, 1), 0.0) == []
    assert len(of(machine.handle(push(0, 1), 0.0), ef.SendParameters)) == 1


def test_only_the_members_own_session_moves_its_clock() -> None:
    machine = server(consistency=SSP(bound=0))
    machine.handle(members(1, (1, 8, 0)), 0.0)
    assert not of(machine.handle(push(0, 1, session=4), 0.0), ef.PublishClock)
    assert not of(machine.handle(push(1, 2, 1, worker=2, session=8), 0.0), ef.PublishClock)
    assert of(machine.handle(push(2, 3, 2, session=8), 0.0), ef.PublishClock)


def test_whoever_leaves_holds_nobody_back() -> None:
    machine = server(consistency=SSP(bound=0))
    machine.handle(members(1, (1, 4, 0), (2, 5, 0)), 0.0)
    machine.handle(push(0, 1), 0.0)
    machine.handle(ev.PullAsked(1, 3, 1), 0.0)
    effects = machine.handle(members(2, (1, 4, 0)), 0.0)
    assert of(effects, ef.PublishClock) == [ef.PublishClock(1)]
    assert of(effects, ef.SendParameters) == [ef.SendParameters(1, 3, (0, 1), 1)]
    assert of(machine.handle(members(3), 0.0), ef.PublishClock) == [ef.PublishClock(NOBODY)]


def test_older_news_of_the_members_is_seen_and_ignored() -> None:
    machine = server(consistency=SSP(bound=0))
    machine.handle(members(5, (1, 4, 7)), 0.0)
    effects = machine.handle(members(4), 0.0)
    assert sent(effects) == [ev.MembersSeen(0, 4)] and len(effects) == 1


def test_a_member_that_joins_late_starts_at_the_slowest_clock() -> None:
    machine = server(consistency=SSP(bound=0))
    assert machine.handle(members(1, (1, 4, 6)), 0.0)[1:] == [ef.PublishClock(6)]
    # A clock never goes back, and a new one counts from the moment it is known.
    machine.handle(members(2, (1, 4, 0), (2, 9, 0)), 0.0)
    assert machine.handle(ev.PullAsked(2, 1, 6), 0.0) == [ef.SendParameters(2, 1, (0, 0), 6)]
    machine.handle(push(0, 1, clock=6), 0.0)
    assert machine.handle(ev.PullAsked(1, 2, 7), 0.0) == []


def test_without_clocks_pulls_never_wait() -> None:
    machine = server()
    assert of(machine.handle(ev.PullAsked(2, 1, -1), 0.0), ef.SendParameters)


# --- anything in any order --------------------------------------------------------------------


@st.composite
def pushes(draw: st.DrawFn) -> ev.Push:
    fragment = draw(st.integers(0, PLAN.fragments_per_epoch - 1))
    first = draw(st.integers(0, PLAN.batches(fragment) - 1))
    stop = draw(st.integers(first + 1, PLAN.batches(fragment)))
    return push(
        first, stop, draw(st.integers(0, 6)), fragment=fragment, epoch=draw(st.integers(0, 1)),
        worker=draw(st.integers(0, 2)), fence=draw(st.integers(1, 4)), seq=draw(st.integers(1, 9)),
        lineage=draw(st.sampled_from([LINEAGE] * 9 + [1])),
    )  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.lists(pushes() | st.builds(ev.FenceAsked, st.just(0), st.integers(0, 2), st.integers(1, 4)))
)
def test_any_stream_of_messages_keeps_the_books(stream: list[Any]) -> None:
    machine = server(staleness=CutOff(below=3))
    auditor = Auditor(PLAN, 1, limit=3)
    for event in stream * 2:
        version, consumed = machine.version, machine.ledger.consumed
        effects = machine.handle(event, 0.0)
        applied = of(effects, ef.Apply)
        for effect in effects:
            if isinstance(effect, ef.Apply | ef.Log):
                auditor.feed(0, effect.record)
        assert machine.version == version + len(applied)
        if type(event) is ev.Push and event.lineage == LINEAGE:
            acked = answer(effects)
            booked = acked.outcome in (ev.APPLIED, ev.DROPPED)
            assert (acked.outcome == ev.APPLIED) == bool(applied)
            assert machine.ledger.consumed == consumed + booked * event.samples
            assert acked.next == machine.ledger.next(event.epoch, event.fragment)
        else:
            assert machine.ledger.consumed == consumed
