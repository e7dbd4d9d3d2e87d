"""The scheduler: leases, deaths, restorations and members, event by event."""

from __future__ import annotations

import random

import pytest
from scheduler_desk import EVERYTHING, FRAGMENTS, LEASE_S, PLAN, Desk

from tardygrad.errors import InvariantViolation
from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev
from tardygrad.protocol import membership as mb
from tardygrad.protocol.scheduler import OVER, RUNNING


def test_it_begins_by_starting_everybody() -> None:
    desk = Desk()
    assert desk.of(ef.SpawnServer) == [ef.SpawnServer(0, 0, 1), ef.SpawnServer(1, 0, 1)]
    assert desk.of(ef.SpawnWorker) == [ef.SpawnWorker(0, 0, 0.0), ef.SpawnWorker(1, 0, 0.0)]


# --- leases -----------------------------------------------------------------------------------


def test_no_lease_before_every_shard_is_there() -> None:
    desk = Desk()
    assert desk.ask(0) is None
    desk.serve(0)
    assert not desk.sent(ev.Granted)
    desk.serve(1)
    [granted] = desk.sent(ev.Granted)
    assert granted.ask == 1 and granted.lease.fence > 1
    assert (granted.lease.fragment, granted.lease.first, granted.lease.stop) == (0, 0, 3)


def test_whoever_has_nothing_comes_before_whoever_provides() -> None:
    desk = Desk(workers=3, shards=1)
    desk.ask(0, prefetch=True)
    desk.ask(1)
    desk.serve(0)
    assert [g.lease.worker for g in desk.sent(ev.Granted)] == [1, 0]


def test_near_the_end_nothing_is_kept_in_reserve() -> None:
    desk = Desk(workers=2)
    desk.serve()
    for _ in range(FRAGMENTS - 1):
        assert desk.ask(0) is not None
    assert desk.ask(0, prefetch=True, received=EVERYTHING) is None
    assert desk.ask(1) is not None


def test_a_grant_that_was_lost_is_repeated() -> None:
    desk = Desk()
    desk.serve()
    lease = desk.ask(0)
    assert desk.ask(0, received=lease.fence - 1) == lease
    assert desk.ask(0, received=lease.fence) != lease


def test_an_old_ask_is_ignored() -> None:
    desk = Desk()
    desk.serve()
    desk.ask(0, ask=9)
    assert desk.ask(0, ask=8) is None and desk.effects == []
    assert desk.ask(0, incarnation=1) is None and desk.effects == []


def test_a_session_that_was_given_up_is_fenced_and_leased_again() -> None:
    desk = Desk()
    desk.serve()
    lease = desk.ask(0)
    other = desk.ask(0, received=lease.fence, abandoned=True, session=lease.session)
    assert other is not None and other.session > lease.session and other.fragment == 1
    asked = desk.sent(ev.FenceAsked)
    assert [(a.epoch, a.fragment) for a in asked] == [(0, 0)] * 2 and asked[0].fence > lease.fence
    # The shards stand at different batches: it goes on at the lower, with the other as a cut.
    desk.do(ev.Fenced(0, 0, 0, 0, asked[0].fence, 2))
    assert desk.ask(1, ask=2) is not None and desk.machine.book.fencing
    desk.do(ev.Fenced(1, 0, 0, 0, asked[0].fence, 1))
    again = desk.ask(1, received=EVERYTHING)
    assert (again.fragment, again.first, again.stop, again.cuts) == (0, 1, 3, (2,))
    # The same news again changes nothing: that session is over already.
    assert not desk.sent(ev.FenceAsked)


def test_a_lost_grant_of_a_session_that_was_given_up_is_not_repeated() -> None:
    desk = Desk()
    desk.serve()
    lease = desk.ask(0)
    given_up = desk.ask(0, received=lease.fence - 1, abandoned=True, session=lease.session)
    assert given_up.fence > lease.fence and given_up.session != lease.session


# --- commands are repeated until they are answered ----------------------------------------------


def test_fences_are_asked_for_until_all_have_answered() -> None:
    desk = Desk()
    desk.serve()
    lease = desk.ask(0)
    desk.do(ev.WorkerDied(0, 0, "killed", False))
    [fence] = {a.fence for a in desk.sent(ev.FenceAsked)}
    desk.do(ev.Fenced(1, 0, 0, lease.fragment, fence, 0))
    for _ in range(3):
        desk.beat(1)
    assert len(desk.machine.outbox) == 1
    desk.do(ev.Fenced(0, 0, 0, lease.fragment, fence, 0))
    assert len(desk.machine.outbox) == 0
    # A late second answer to a fence that is done with.
    desk.do(ev.Fenced(0, 0, 0, lease.fragment, fence, 0))
    assert len(desk.machine.outbox) == 0


def test_a_fence_that_a_restored_server_must_hear_is_repeated_and_then_forgotten() -> None:
    desk = Desk()
    desk.serve()
    desk.ask(0)
    desk.do(ev.WorkerDied(0, 0, "killed", False))
    [fence] = {a.fence for a in desk.sent(ev.FenceAsked)}
    desk.do(ev.Fenced(0, 0, 0, 0, fence, 0))
    desk.do(ev.ServerDied(0, 0, "killed", False))
    desk.serve(0, incarnation=1)
    desk.do(ev.Fenced(0, 0, 0, 0, fence, 0))
    assert desk.machine.book.fencing, "the answer of its earlier life does not count"
    desk.do(ev.Fenced(1, 0, 0, 0, fence, 0))
    desk.do(ev.Fenced(0, 1, 0, 0, fence, 0))
    assert not desk.machine.book.fencing and len(desk.machine.outbox) == 0


# --- death --------------------------------------------------------------------------------------


def test_silence_beyond_the_lease_is_death() -> None:
    desk = Desk()
    desk.serve()
    desk.ask(0)
    desk.ask(1)
    for _ in range(int(LEASE_S / 0.5) + 1):
        desk.beat(1)
    [killed] = desk.of(ef.KillWorker)
    assert killed.worker == 0 and killed.reason.startswith("no sign of life for 5.5 s")
    [spawned] = desk.of(ef.SpawnWorker)
    assert spawned == ef.SpawnWorker(0, 1, 0.5)
    states = [(c.id, c.state) for c in desk.of(ef.MemberChanged)]
    assert states == [(0, "suspected"), (0, "died"), (0, "started")]


def test_a_pause_of_the_scheduler_itself_is_nobodys_fault() -> None:
    desk = Desk()
    desk.serve()
    desk.ask(0)
    desk.do(ev.Tick(), after=100.0)
    [decided] = desk.of(ef.Decided)
    assert "paused 100.0 s" in decided.reason
    desk.beat(0, 1)
    assert not desk.of(ef.KillWorker)


def stand_still(desk: Desk, *workers: int) -> list[int]:
    """Half a second after another without progress; who is killed for it in the end."""
    for _ in range(200):
        desk.beat(*workers)
        if killed := desk.of(ef.KillWorker):
            return [k.worker for k in killed]
    return []


def test_alive_without_progress_is_hung() -> None:
    desk = Desk(shards=1)
    desk.serve()
    desk.ask(0)
    for steps in (1, 2, 3):
        desk.do(ev.Heartbeat("worker", 0, 0, steps), after=0.2)
    assert stand_still(desk, 0, 1) == [0]
    assert "no progress for" in desk.of(ef.KillWorker)[0].reason
    assert desk.now > 10 * LEASE_S


def test_to_wait_long_for_a_lease_is_not_to_hang() -> None:
    desk = Desk(shards=1, workers=1)
    desk.ask(0)
    desk.do(ev.Heartbeat("worker", 0, 0, 1))
    desk.do(ev.Heartbeat("worker", 0, 0, 2))
    for _ in range(150):
        desk.beat(0)
    desk.serve()
    assert desk.sent(ev.Granted)
    desk.beat(0)
    assert not desk.of(ef.KillWorker)


def test_nobody_hangs_while_a_server_is_missing() -> None:
    desk = Desk(shards=1, workers=1, start_s=1e6)
    desk.serve()
    desk.ask(0)
    for steps in (1, 2):
        desk.do(ev.Heartbeat("worker", 0, 0, steps))
    desk.do(ev.ServerDied(0, 0, "killed", False))
    assert stand_still(desk, 0) == []


def test_where_clocks_bind_only_the_one_that_is_awaited_hangs() -> None:
    desk = Desk(shards=1, uses_clocks=True)
    desk.serve()
    desk.ask(0)
    desk.ask(1)
    for steps in (1, 2):
        desk.do(ev.Heartbeat("worker", 1, 0, steps), after=0.1)
        desk.do(ev.Heartbeat("worker", 0, 0, steps), after=0.1)
    assert stand_still(desk, 0, 1) == [1]
    desk.beat(0, 1)
    assert not desk.of(ef.KillWorker)


def test_restarts_are_counted_and_wait_longer_each_time() -> None:
    desk = Desk(restarts=3)
    desk.serve()
    delays = []
    for incarnation in range(3):
        desk.do(ev.WorkerDied(0, incarnation, "killed", False))
        delays += [s.delay_s for s in desk.of(ef.SpawnWorker)]
    assert delays == [0.5, 1.0, 2.0]
    desk.do(ev.WorkerDied(0, 3, "killed", False))
    assert not desk.of(ef.SpawnWorker) and desk.machine.workers[0].state == mb.PUT_ASIDE
    assert desk.machine.phase == RUNNING
    # Progress, so that it is not "dying in vain" that ends the run.
    desk.book(desk.ask(1))
    desk.do(ev.WorkerDied(1, 0, "killed", False))
    assert desk.machine.outcome == "failed" and "no worker is left" in desk.machine.reason


def test_dying_again_and_again_before_anything_is_done_ends_the_run() -> None:
    desk = Desk(restarts=1000, workers=1)
    desk.serve()
    for incarnation in range(4):
        assert desk.machine.phase == RUNNING
        desk.do(ev.WorkerDied(0, incarnation, "exited with status 1", False))
    assert "4 workers died in a row" in desk.machine.reason


def test_a_fatal_death_ends_the_run() -> None:
    desk = Desk()
    desk.serve()
    desk.do(ev.WorkerDied(1, 0, "your model raised", fatal=True))
    assert (desk.machine.outcome, desk.machine.reason) == ("failed", "your model raised")


def test_a_lost_server_stops_the_granting_and_ends_every_lease() -> None:
    desk = Desk()
    desk.serve()
    lease = desk.ask(0)
    desk.do(ev.ServerDied(1, 0, "killed", False))
    [spawned] = desk.of(ef.SpawnServer)
    assert spawned.incarnation == 1 and spawned.floor > lease.fence
    assert desk.ask(1) is None
    # Its snapshot has what was trained before; the rest is fenced on all shards.
    desk.serve(1, incarnation=1, nexts=((0, 0, 1),))
    assert [(a.fragment, a.fence > spawned.floor) for a in desk.sent(ev.FenceAsked)] == [
        (0, True)
    ] * 2
    [granted] = desk.sent(ev.Granted)
    assert granted.lease.fence > spawned.floor and granted.lease.fragment == 1


def test_a_server_that_keeps_dying_ends_the_run_once() -> None:
    desk = Desk(restarts=2, shards=2)
    desk.serve()
    for incarnation in range(2):
        desk.do(ev.ServerDied(0, incarnation, "killed", False))
    desk.do(ev.ServerDied(1, 0, "killed", False))
    desk.do(ev.ServerDied(1, 1, "killed", False))
    desk.do(ev.ServerDied(0, 2, "killed", False))
    assert desk.of(ef.Finished) == [ef.Finished("failed", "server 0: killed")]
    assert desk.machine.phase == OVER and desk.do(ev.ServerDied(1, 2, "killed", False)) == []


def test_two_servers_that_fall_silent_together_end_the_run_once() -> None:
    desk = Desk(restarts=0, shards=2)
    desk.serve()
    for incarnation in (0,):
        for shard in (0, 1):
            desk.do(ev.ServerDied(shard, incarnation, "killed", False))
            desk.serve(shard, incarnation=1)
    for _ in range(11):
        desk.now += 0.5
        desk.do(ev.Tick())
    assert len(desk.of(ef.Finished)) == 1


# --- members ------------------------------------------------------------------------------------


def test_a_lease_that_makes_a_member_waits_until_all_servers_know() -> None:
    desk = Desk(uses_clocks=True)
    desk.serve()
    assert desk.ask(0, clock=3) is None
    session = desk.machine.workers[0].session
    told = desk.sent(ev.MembersChanged)
    assert {t.workers for t in told} == {((0, session, 3),)}
    desk.do(ev.MembersSeen(0, told[0].generation))
    assert desk.ask(0, clock=3, received=0) is None, "asked again, and still held back"
    desk.do(ev.MembersSeen(1, told[0].generation))
    [granted] = desk.sent(ev.Granted)
    assert granted.ask == 2 and (granted.lease.session, granted.lease.clock) == (session, 3)


def know(desk: Desk) -> None:
    generation = desk.sent(ev.MembersChanged)[0].generation
    for shard in range(len(desk.machine.servers)):
        desk.do(ev.MembersSeen(shard, generation))


def test_a_member_gets_its_next_lease_at_once() -> None:
    desk = Desk(uses_clocks=True)
    desk.serve()
    desk.ask(0)
    know(desk)
    [first] = desk.sent(ev.Granted)
    desk.book(first.lease)
    assert not desk.sent(ev.MembersChanged)
    assert desk.ask(0, received=first.lease.fence) is not None


def test_whoever_finds_no_work_is_no_member() -> None:
    desk = Desk(uses_clocks=True)
    desk.serve()
    desk.ask(0)
    know(desk)
    desk.ask(1)
    know(desk)
    [granted] = desk.sent(ev.Granted)
    lease = granted.lease
    for _ in range(FRAGMENTS - 2):
        desk.book(lease)
        lease = desk.ask(1)
    desk.ask(1)
    assert not desk.sent(ev.MembersChanged), "it still holds a lease"
    desk.book(lease)
    assert {tuple(w for w, _, _ in m.workers) for m in desk.sent(ev.MembersChanged)} == {(0,)}


def test_the_dead_and_the_departed_are_no_members() -> None:
    desk = Desk(uses_clocks=True)
    desk.serve()
    desk.ask(0)
    desk.ask(1)
    desk.do(ev.WorkerDied(0, 0, "killed", False))
    assert [w for w, _, _ in desk.sent(ev.MembersChanged)[0].workers] == [1]
    desk.do(ev.Interrupted("SIGTERM"))
    desk.do(ev.WorkerLeft(1, 0))
    assert desk.sent(ev.MembersChanged)[0].workers == ()


# --- anything in any order ------------------------------------------------------------------------


@pytest.mark.parametrize("uses_clocks", [False, True])
def test_nothing_is_granted_while_a_shard_is_not_ready(uses_clocks: bool) -> None:
    for seed in range(60):
        rng = random.Random(seed)
        desk = Desk(workers=3, shards=2, epochs=3, restarts=1000, uses_clocks=uses_clocks)
        for _ in range(300):
            someone(desk, rng)
            if desk.sent(ev.Granted):
                assert desk.machine.serving and desk.machine.phase == RUNNING
            fragments = [(x.epoch, x.fragment) for x in desk.machine.book.leases.values()]
            assert len(set(fragments)) == len(fragments)
            assert not set(fragments) & set(desk.machine.book.fencing)
            for lease in desk.machine.book.leases.values():
                entry = desk.machine.workers[lease.worker]
                assert entry.alive and entry.session == lease.session
            if desk.machine.phase != RUNNING:
                break


def someone(desk: Desk, rng: random.Random) -> None:
    machine = desk.machine
    shard, worker = rng.randrange(2), rng.randrange(3)
    server, entry = machine.servers[shard], machine.workers[worker]
    what = rng.randrange(12)
    if what == 0:
        desk.do(ev.ServerDied(shard, server.incarnation, "killed", False))
    elif what == 1:
        desk.do(ev.WorkerDied(worker, entry.incarnation, "killed", False))
    elif what in (2, 3) and not server.ready:
        desk.do(ev.ServerReady(shard, server.incarnation, 0, (), ()))
    elif what in (4, 5) and machine.book.fencing:
        where = rng.choice(sorted(machine.book.fencing))
        fence = machine.book.fencing[where].fence
        standing = rng.randint(0, PLAN.batches(where[1]))
        desk.do(ev.Fenced(shard, server.incarnation, *where, fence, standing))
    elif what == 6 and machine.book.leases:
        lease = rng.choice(list(machine.book.leases.values()))
        desk.do(ev.Booked(shard, server.incarnation, 1, lease.epoch, lease.fragment))
    elif what == 7:
        desk.do(ev.MembersSeen(shard, rng.randint(0, 30)))
    else:
        changes = {"prefetch": rng.random() < 0.3, "abandoned": rng.random() < 0.2}
        received = rng.choice((0, machine.book.next_fence))
        desk.ask(
            worker, incarnation=entry.incarnation, received=received, session=entry.session,
            **changes,
        )  # fmt: skip


def test_an_unknown_event_is_a_broken_promise() -> None:
    with pytest.raises(InvariantViolation, match="which it does not handle"):
        Desk().do(ev.ServerSeen(0))
