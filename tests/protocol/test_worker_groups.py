"""A worker in a group: joins, averages, follows, and gives the session up when the group breaks."""

from __future__ import annotations

from typing import Any

import pytest

from tardygrad.consistency import ASP
from tardygrad.data.fragments import FragmentPlan
from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev
from tardygrad.protocol.worker import (
    COMPUTING,
    GONE,
    HOLDING,
    IDLE,
    JOINING,
    PULLING,
    REDUCING,
    Worker,
    WorkerSettings,
)

RESEND_S = 1.0
PLAN = FragmentPlan(samples=40_000, batch_size=4, fragment_batches=100, seed=0)
GROUP = ev.Group(5, 1, 3)


class Bench:
    """A worker with its engine played by hand."""

    def __init__(self, *, follows: bool) -> None:
        settings = WorkerSettings(
            lineage=7, shards=1, exchange_period=lambda _: 1, plan=PLAN, in_flight=1,
            consistency=ASP(), awaits_commit=True, follows=follows, resend_s=RESEND_S,
        )  # fmt: skip
        self.machine = Worker(3, settings)
        self.effects: list[ef.Effect] = []
        self.do(ev.Started())
        self.grant(1)

    def do(self, event: ev.Event, now: float = 0.0) -> list[ef.Effect]:
        self.effects = self.machine.handle(event, now)
        return self.effects

    def of(self, kind: type) -> list[Any]:
        return [e for e in self.effects if type(e) is kind]

    def grant(self, session: int, group: ev.Group = GROUP) -> None:
        lease = ev.Lease(session, session, 3, 0, 0, 0, 100, ())
        self.do(ev.Granted(self.machine._ask, lease, group))

    def train(self) -> None:
        """Up to the collective."""
        if self.machine.phase == JOINING:
            self.do(ev.Joined(GROUP.generation, ""))
        if self.machine.phase == PULLING:
            self.do(ev.Pulled(self.machine._seq, ((0, 4),), 0))
        self.do(ev.Computed(self.machine._seq, 4))

    def reduced(self, error: str = "") -> None:
        self.do(ev.Reduced(self.machine._seq, error))

    def acked(self, push: ev.Push, outcome: str = ev.APPLIED) -> None:
        self.do(ev.Acked(0, push.session, push.seq, outcome, push.stop, ""))


def test_a_session_begins_with_its_group() -> None:
    bench = Bench(follows=False)
    assert bench.of(ef.JoinGroup) == [ef.JoinGroup(GROUP)]
    bench.do(ev.Joined(4, ""))
    assert bench.machine.phase == JOINING
    bench.train()
    assert bench.of(ef.Reduce) == [ef.Reduce(bench.machine._seq, GROUP, 4)]
    bench.reduced()
    [publish] = bench.of(ef.Publish)
    assert (publish.push.generation, publish.push.ranks) == (5, 3)
    bench.acked(publish.push)
    [pull] = bench.of(ef.Pull)
    assert pull.needs == (5,)


def test_a_rank_that_follows_computes_on_and_pushes_when_it_is_answered() -> None:
    bench = Bench(follows=True)
    bench.train()
    bench.reduced()
    [first] = bench.of(ef.Publish)
    assert [type(e) for e in bench.effects] == [ef.Publish, ef.Follow, ef.Compute]
    bench.train()
    bench.reduced()
    assert bench.machine.phase == HOLDING and not bench.effects
    bench.acked(first.push)
    [second] = bench.of(ef.Publish)
    assert second.push.reads == ((0, 5),)
    # Answered in time, it does not hold.
    bench.acked(second.push)
    assert bench.machine.phase == COMPUTING
    bench.train()
    bench.reduced()
    assert bench.of(ef.Publish)[0].push.reads == ((0, 6),)


@pytest.mark.parametrize("phase", [JOINING, PULLING, COMPUTING, REDUCING, HOLDING])
def test_whatever_breaks_the_group_ends_the_session(phase: str) -> None:
    bench = Bench(follows=True)
    for _ in range(5):
        if bench.machine.phase == phase:
            break
        if bench.machine.phase == JOINING:
            bench.do(ev.Joined(5, ""))
        elif bench.machine.phase == PULLING:
            bench.do(ev.Pulled(bench.machine._seq, ((0, 4),), 0))
        else:
            bench.train()
            if phase == HOLDING:
                bench.reduced()
    assert bench.machine.phase == phase
    if phase == HOLDING:
        assert bench.machine.outstanding
    bench.do(ev.SessionEnded(2))
    assert bench.of(ef.LeaveGroup) == [ef.LeaveGroup(5)]
    assert len(bench.of(ef.Release)) == (phase in (REDUCING, HOLDING))
    [asked] = [e.message for e in bench.of(ef.Send)]
    assert asked.abandoned
    assert bench.machine.phase == (COMPUTING if phase == COMPUTING else IDLE)
    # What was on its way there is of no use any more.
    assert bench.do(ev.Joined(5, "")) == [] and bench.do(ev.Reduced(1, "")) == []


def test_an_error_of_the_group_ends_the_session_too() -> None:
    bench = Bench(follows=True)
    bench.do(ev.Joined(5, "a rank is gone"))
    assert bench.of(ef.LeaveGroup) and bench.machine.phase == IDLE
    bench.grant(2, ev.Group(6, 0, 2))
    bench.do(ev.Joined(6, ""))
    bench.train()
    bench.reduced("a rank is gone")
    assert bench.of(ef.LeaveGroup) == [ef.LeaveGroup(6)] and bench.of(ef.Release)


def test_a_group_that_does_not_come_together_is_given_up() -> None:
    bench = Bench(follows=True)
    assert bench.do(ev.Tick(), 2 * RESEND_S) == []
    bench.do(ev.Tick(), 3 * RESEND_S)
    assert bench.of(ef.LeaveGroup) and bench.machine.phase == IDLE


def test_who_stops_leaves_its_group_first() -> None:
    bench = Bench(follows=True)
    bench.do(ev.StopAsked("enough"))
    assert [type(e) for e in bench.effects] == [ef.LeaveGroup, ef.Send, ef.Leave]
    assert bench.machine.phase == GONE


def test_a_rank_alone_joins_nobody() -> None:
    bench = Bench(follows=True)
    bench.do(ev.SessionEnded(2))
    bench.grant(2, ev.Group(6, 0, 1))
    bench.do(ev.Pulled(bench.machine._seq, ((0, 4),), 0))
    bench.do(ev.Computed(bench.machine._seq, 4))
    [publish] = bench.of(ef.Publish)
    assert publish.push.ranks == 1 and not bench.of(ef.Follow)
    assert bench.machine.phase == IDLE
