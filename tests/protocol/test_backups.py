"""Backups at the scheduler, at the server machine, and in the auditor's eyes."""

from __future__ import annotations

from typing import Any

import pytest
from scheduler_desk import LEASE_S, PLAN, Desk

from tardygrad.consistency import ASP
from tardygrad.errors import InvariantViolation
from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev
from tardygrad.protocol import trace
from tardygrad.protocol.invariants import Auditor
from tardygrad.protocol.promotion import PromotableServer
from tardygrad.protocol.server import ServerSettings
from tardygrad.protocol.silence import SilenceLimits
from tardygrad.staleness import Constant


def desk(**changes: Any) -> Desk:
    """A scheduler of two shards, each with a backup that has been started."""
    found = Desk(**{"replicas": 1, **changes})
    found.serve()
    found.do(ev.Tick(), after=0.1)
    assert [e.number for e in found.of(ef.SpawnBackup)] == [0, 1]
    return found


def test_nobody_starts_a_backup_unasked() -> None:
    found = Desk()
    found.serve()
    found.do(ev.Tick(), after=0.1)
    assert not found.of(ef.SpawnBackup)


def test_a_ready_backup_is_promoted_and_no_lease_ends() -> None:
    found = desk()
    lease = found.ask(0)
    found.do(ev.Heartbeat("backup", 1, 0, 1))
    found.do(ev.ServerDied(1, 0, "killed", fatal=False))
    assert found.of(ef.Promote) == [ef.Promote(1, 1, 1, 0)]
    assert not found.of(ef.SpawnServer)
    assert found.of(ef.Decided)[0].decision == "backup 1 becomes server 1"
    found.serve(1, incarnation=1, version=5)
    assert not found.sent(ev.FenceAsked)
    assert found.machine.book.holds_lease(lease.worker)
    assert found.ask(1) is not None
    # Its place is filled again.
    found.do(ev.Tick(), after=0.6)
    assert found.of(ef.SpawnBackup) == [ef.SpawnBackup(1, 1, 1)]


@pytest.mark.parametrize("steps", [0, None])
def test_a_backup_that_is_not_filled_is_not_promoted(steps: int | None) -> None:
    found = desk()
    if steps is not None:
        found.do(ev.Heartbeat("backup", 0, 0, steps))
    found.do(ev.ServerDied(0, 0, "killed", fatal=False))
    assert not found.of(ef.Promote)
    assert [(e.number, e.incarnation) for e in found.of(ef.KillBackup)] == [(0, 0)]
    assert [(e.shard, e.incarnation) for e in found.of(ef.SpawnServer)] == [(0, 1)]


def test_a_dead_backup_is_neither_waited_for_nor_promoted() -> None:
    found = desk()
    found.do(ev.Heartbeat("backup", 0, 0, 1))
    found.do(ev.BackupDied(0, 0, "killed"))
    assert [e.number for e in found.of(ef.KillBackup)] == [0]
    found.do(ev.ServerDied(0, 0, "killed", fatal=False))
    assert not found.of(ef.Promote) and found.of(ef.SpawnServer)
    # What comes late of it means nothing.
    assert not found.do(ev.Heartbeat("backup", 0, 0, 7))
    assert not found.do(ev.BackupDied(0, 0, "killed"))


def test_a_silent_backup_is_killed() -> None:
    found = desk(restarts=1)
    found.do(ev.Heartbeat("backup", 0, 0, 1))
    for _ in range(round(2 * LEASE_S) + 2):
        found.beat()
        if found.of(ef.KillBackup):
            break
    assert [e.number for e in found.of(ef.KillBackup)] == [0]
    states = [e.state for e in found.of(ef.MemberChanged) if e.kind == "backup"]
    assert states == ["suspected", "died", "started"]


def test_a_place_is_filled_again_at_once_unless_its_backups_fail() -> None:
    found = desk(restarts=9, backoff_s=2.0, backoff_max_s=60.0)
    waits = []
    for incarnation, was_ready in enumerate((True, True, False, False, True)):
        if was_ready:
            found.do(ev.Heartbeat("backup", 0, incarnation, 1))
        found.do(ev.BackupDied(0, incarnation, "killed"))
        since = found.now
        while not found.of(ef.SpawnBackup):
            found.beat()
        waits.append(round(found.now - since, 6))
    assert waits == [0.5, 0.5, 2.0, 4.0, 0.5]


def test_a_place_is_not_filled_for_ever() -> None:
    found = desk(restarts=2, backoff_s=0.0, backoff_max_s=0.0)
    for incarnation in range(3):
        found.do(ev.BackupDied(0, incarnation, "killed"))
        last = [e.state for e in found.of(ef.MemberChanged)]
        found.do(ev.Tick(), after=0.1)
    assert last == ["died", "put_aside"]
    assert not found.of(ef.SpawnBackup)


# --- the server machine -----------------------------------------------------------------------


def server(**changes: Any) -> PromotableServer:
    settings = ServerSettings(
        lineage=1, plan=PLAN, workers=2, staleness=Constant(), consistency=ASP(), resend_s=1.0,
        **changes,
    )  # fmt: skip
    return PromotableServer(0, settings)


def push(seq: int, first: int, read: tuple[int, int]) -> ev.Push:
    return ev.Push(1, 0, 1, seq, 1, 0, 0, first, first + 1, 4, seq, (read,))


def test_a_copy_comes_to_the_same_and_goes_on_as_another_incarnation() -> None:
    first, second = server(), server()
    first.handle(ev.Started(), 0.0)
    first.handle(push(1, 0, (0, 0)), 1.0)
    image = first.image_of()
    second.take_over(image)
    events = [(push(2, 1, (0, 1)), 2.0), (push(2, 1, (0, 1)), 2.1), (ev.FenceAsked(0, 1, 9), 3.0)]
    for event, now in events:
        assert first.handle(event, now) == second.handle(event, now)
    effects = second.handle(ev.Promoted(1), 4.0)
    assert effects[0] == ef.Log(trace.Record(trace.PROMOTED, 1, 2))
    assert effects[-1].message.incarnation == 1
    # What was read from the predecessor counts, with its true staleness.
    applied = second.handle(push(3, 2, (0, 1)), 5.0)
    assert (applied[0].record.staleness, applied[0].record.version) == (1, 3)
    # The report that nobody has seen is one of the new incarnation's.
    reported = [e.message for e in applied if isinstance(e, ef.Send)][-1]
    assert isinstance(reported, ev.Booked) and reported.incarnation == 1
    assert first.version == 2


def test_a_copy_knows_how_many_workers_there_are() -> None:
    first, second = server(linear_rate=True), server(linear_rate=True)
    first.handle(ev.CrewCounted(1, 6), 0.0)
    second.take_over(first.image_of())
    # What comes late, of before, is answered and changes nothing.
    for machine in (first, second):
        (seen,) = machine.handle(ev.CrewCounted(0, 1), 0.5)
        assert seen.message == ev.CrewSeen(0, 0)
    second.handle(ev.Promoted(1), 1.0)
    assert second.handle(push(1, 0, (0, 0)), 2.0)[0].record.scale == 3.0


def test_a_promoted_server_is_told_how_many_workers_there_are() -> None:
    found = desk(workers_max=4, counts_crew=True)
    found.do(ev.Heartbeat("backup", 1, 0, 1))
    found.do(ev.CrewWanted(1, 1, 0))
    assert len(found.sent(ev.CrewCounted)) == 2
    found.do(ev.ServerDied(1, 0, "killed", fatal=False))
    found.serve(1, incarnation=1, version=5)
    told = [e for e in found.of(ef.Send) if isinstance(e.message, ev.CrewCounted)]
    assert [e.to for e in told] == [("server", 1)]


def test_the_silence_of_a_backup_is_learned() -> None:
    limits = SilenceLimits(first_s=LEASE_S, least_s=1.5, most_s=4 * LEASE_S)
    found = desk(silence=limits)
    for _ in range(12):
        found.do(ev.Heartbeat("backup", 0, 0, 1), after=0.05)
    found.do(ev.Tick())
    silent_since = found.now
    while not found.of(ef.KillBackup):
        found.beat()
    assert found.now - silent_since < LEASE_S / 2


# --- the auditor ------------------------------------------------------------------------------


def record(kind: int, incarnation: int, version: int, first: int, read: int) -> trace.Record:
    return trace.Record(
        kind, incarnation, version, 0, 1, 1, 1, 0, 0, first, first + 1, 4, 0,
        version - 1 - read, 1.0, ((0, read),),
    )  # fmt: skip


def test_the_auditor_knows_a_promotion() -> None:
    auditor = Auditor(PLAN, 1)
    auditor.feed(0, record(trace.APPLIED, 0, 1, 0, 0))
    auditor.feed(0, trace.Record(trace.PROMOTED, 1, 1))
    auditor.holds(0, {(0, 0): 1}, 0)
    auditor.feed(0, record(trace.APPLIED, 1, 2, 1, 1))
    with pytest.raises(InvariantViolation, match="the shard is at incarnation 1"):
        auditor.feed(0, record(trace.APPLIED, 0, 3, 2, 1))


def test_the_auditor_finds_what_a_promotion_lost() -> None:
    auditor = Auditor(PLAN, 1)
    auditor.feed(0, record(trace.APPLIED, 0, 1, 0, 0))
    with pytest.raises(InvariantViolation, match="something is lost"):
        auditor.feed(0, trace.Record(trace.PROMOTED, 1, 0))
    with pytest.raises(InvariantViolation, match="on record are"):
        auditor.holds(0, {}, 0)
    with pytest.raises(InvariantViolation, match="incarnation 0 was there before"):
        auditor.feed(0, trace.Record(trace.PROMOTED, 0, 1))
