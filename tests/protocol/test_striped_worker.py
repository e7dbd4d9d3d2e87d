"""The worker that exchanges its shards in turns: who is pushed when, and what is back when."""

from __future__ import annotations

from typing import Any

import pytest

from tardygrad.consistency import ASP, NO_NEED
from tardygrad.data.fragments import FragmentPlan
from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev
from tardygrad.protocol.striped import StripedWorker
from tardygrad.protocol.worker import COMPUTING, PULLING
from tardygrad.protocol.worker_settings import WorkerSettings
from tardygrad.turns import Turns

RESEND_S = 1.0
BATCH = 4
PLAN = FragmentPlan(samples=40_000, batch_size=BATCH, fragment_batches=100, seed=0)


class Bench:
    """A worker whose engine and servers are played: servers answer at once, if they are asked to.

    ``versions`` are those that the next pull reads; a push that is answered is committed.
    """

    def __init__(
        self, *, stripes: int = 2, shards: int = 2, delay: int = 0, period: int = 4,
        in_flight: int = 0, rounds: bool = True,
    ) -> None:  # fmt: skip
        settings = WorkerSettings(
            lineage=7, shards=shards, exchange_period=lambda _: period, plan=PLAN,
            in_flight=in_flight, consistency=ASP(), awaits_commit=rounds,
            turns=Turns(stripes, delay), resend_s=RESEND_S,
        )  # fmt: skip
        self.machine = StripedWorker(3, settings)
        self.versions = [0] * shards
        self.effects: list[ef.Effect] = []
        self.pushes: list[ef.Publish] = []
        self.pulls: list[ef.Pull] = []
        self.computes: list[ef.Compute] = []
        self.slots: set[int] = set()
        self.do(ev.Started())

    def do(self, event: ev.Event, now: float = 0.0) -> list[ef.Effect]:
        self.effects = self.machine.handle(event, now)
        for effect in self.effects:
            if isinstance(effect, ef.Publish):
                assert effect.push.seq in self.slots
                self.pushes.append(effect)
            elif isinstance(effect, ef.Pull):
                self.pulls.append(effect)
            elif isinstance(effect, ef.Compute):
                self.computes.append(effect)
                self.slots.add(effect.seq)
            elif isinstance(effect, ef.Release):
                self.slots.remove(effect.seq)
        return self.effects

    def has(self, kind: type) -> bool:
        return any(type(effect) is kind for effect in self.effects)

    def grant(self, **changes: Any) -> None:
        lease = ev.Lease(5, 1, 3, 0, 0, 0, 8, ())._replace(**changes)
        self.do(ev.Granted(self.machine._ask, lease))

    def pulled(self) -> None:
        reads = tuple((0, version) for version in self.versions)
        self.do(ev.Pulled(self.machine._seq, reads, 0))

    def computed(self) -> None:
        last = self.computes[-1]
        self.do(ev.Computed(last.seq, BATCH * (last.stop - last.first)))

    def answer(self, outcome: str = ev.APPLIED) -> None:
        """All shards answer the newest push."""
        push, shards = self.pushes[-1]
        for shard in shards:
            self.versions[shard] += outcome == ev.APPLIED
            self.do(ev.Acked(shard, push.session, push.seq, outcome, push.stop, ""))

    def run(self, turns: int) -> None:
        """Play until so many more pushes were answered, or nothing is left to do."""
        wanted = len(self.pushes) + turns
        while True:
            if self.machine.outstanding:
                self.answer()
                if len(self.pushes) >= wanted and not self.machine.outstanding:
                    return
            elif self.machine.phase == PULLING:
                self.pulled()
            elif self.machine.phase == COMPUTING:
                self.computed()
            else:
                return

    def told(self) -> list[tuple[tuple[int, ...], int, int]]:
        """Of each push the shards and the batches."""
        return [(p.shards, p.push.first, p.push.stop) for p in self.pushes]


def at_work(**options: Any) -> Bench:
    bench = Bench(**options)
    bench.grant()
    return bench


def test_stripes_take_turns_and_each_pushes_all_that_it_came() -> None:
    bench = at_work(shards=3)
    bench.run(5)
    assert bench.told() == [
        ((0, 2), 0, 2),
        ((1,), 0, 4),
        ((0, 2), 2, 6),
        ((1,), 4, 8),
        ((0, 2), 6, 8),  # the lease ends: nothing is left behind
    ]
    assert [p.push.samples for p in bench.pushes] == [8, 16, 16, 16, 8]
    assert [p.push.seq for p in bench.pushes] == [1, 2, 3, 4, 5]
    assert bench.machine.lease is None


def test_a_pull_fetches_what_was_pushed_and_waits_for_its_commit() -> None:
    bench = at_work()
    assert bench.pulls == [ef.Pull(1, (), True)], "the first one fetches everything"
    bench.run(2)
    assert bench.pulls[-1] == ef.Pull(3, (1, 1), False, (1,))
    assert bench.pulls[1:-1] == [
        ef.Pull(2, (1, NO_NEED), False, (0,)),
    ]
    # Whatever was not pulled keeps the version that was read before.
    assert [p.push.reads for p in bench.pushes] == [((0, 0), (0, 0)), ((0, 1), (0, 0))]
    assert [c.arrived for c in bench.computes] == [(), (0,)]


def test_with_a_delay_it_trains_on_before_it_takes_in_what_came() -> None:
    bench = at_work(delay=1, in_flight=1)
    bench.run(3)
    ranges = [(c.seq, c.first, c.stop, c.arrived) for c in bench.computes]
    assert ranges[:5] == [
        (1, 0, 2, ()),
        (2, 2, 3, ()),
        (2, 3, 4, (0,)),
        (3, 4, 5, ()),
        (3, 5, 6, (1,)),
    ]


def test_a_delay_is_over_before_the_next_turn() -> None:
    bench = at_work(stripes=1, delay=3, in_flight=1)
    bench.grant()
    bench.run(2)
    assert [(c.first, c.stop) for c in bench.computes[:3]] == [(0, 4), (4, 7), (7, 8)]


def test_it_pulls_only_when_every_push_is_answered() -> None:
    bench = at_work(delay=1, in_flight=1)
    bench.pulled()
    bench.computed()
    assert bench.has(ef.Publish)
    assert bench.has(ef.Compute), "the push is on its way"
    bench.computed()
    assert not bench.has(ef.Pull)
    bench.answer()
    assert bench.pulls[-1].shards == (0,)


def test_parameters_travel_while_it_trains() -> None:
    bench = at_work(delay=1, in_flight=1)
    bench.run(1)
    assert bench.machine.phase == COMPUTING
    assert bench.pulls[-1] == ef.Pull(2, (1, NO_NEED), False, (0,))
    bench.pulled()
    assert bench.effects == []
    bench.computed()
    assert bench.computes[-1][2:] == (3, 4, (0,)), "they are there: nobody waits"
    assert len(bench.pulls) == 2


def test_nothing_that_came_back_as_it_was_is_mixed_in() -> None:
    bench = at_work()
    bench.pulled()
    bench.computed()
    bench.answer(ev.DROPPED)
    assert bench.pulls[-1].needs[0] == NO_NEED
    bench.pulled()
    assert bench.computes[-1].arrived == ()


def test_all_stripes_are_pushed_at_a_cut() -> None:
    bench = Bench()
    bench.grant(cuts=(3,))
    bench.run(3)
    assert bench.told() == [((0,), 0, 2), ((1,), 0, 3), ((0,), 2, 3)]


def test_it_begins_where_the_others_are() -> None:
    bench = Bench(stripes=3, shards=3, period=3)
    bench.versions = [5, 4, 4]
    bench.grant()
    bench.run(3)
    assert [shards for shards, _, _ in bench.told()] == [(1,), (2,), (0,)]


def test_a_stop_leaves_nothing_unpushed() -> None:
    bench = at_work()
    bench.run(1)
    bench.pulled()
    bench.do(ev.StopAsked("enough"))
    bench.run(9)
    assert bench.told() == [((0,), 0, 2), ((1,), 0, 4), ((0,), 2, 4)]
    assert isinstance(bench.effects[-1], ef.Leave)
    assert bench.slots == set()


def test_a_stop_that_finds_it_waiting_pushes_what_is_not_away() -> None:
    bench = at_work(delay=1, in_flight=1)
    bench.run(1)
    bench.computed()
    assert bench.machine.phase == PULLING, "it waits for a commit that may never come"
    bench.do(ev.StopAsked("enough"))
    bench.run(9)
    # Stripe 0 is away: its third batch is trained again, when the run goes on.
    assert bench.told() == [((0,), 0, 2), ((1,), 0, 3)]
    assert isinstance(bench.effects[-1], ef.Leave)
    assert bench.slots == set()


def test_who_waits_for_long_gives_all_that_others_may_wait_for() -> None:
    bench = at_work()
    bench.run(1)
    assert bench.has(ef.Pull)
    bench.do(ev.Tick(), RESEND_S)
    assert bench.computes[-1][2:] == (2, 2, ())
    bench.computed()
    assert bench.told() == [((0,), 0, 2), ((1,), 0, 2)]
    bench.answer()
    assert bench.pulls[-1].shards == (0, 1)
    assert bench.pulls[-1].seq == bench.pushes[-1].push.seq + 1
    bench.do(ev.Tick(), 3 * RESEND_S)
    assert bench.has(ef.Pull), "there is nothing more to give: it asks again"


def test_what_is_pulled_late_does_not_count() -> None:
    bench = at_work()
    bench.run(1)
    late = ev.Pulled(bench.pulls[-1].seq, ((0, 9), (0, 9)), 0)
    bench.do(ev.Tick(), RESEND_S)
    assert bench.do(late) == []
    bench.computed()
    assert bench.pushes[-1].push.reads == ((0, 0), (0, 0))


@pytest.mark.parametrize("delay", [0, 1])
def test_a_refused_push_ends_the_session_and_frees_every_slot(delay: int) -> None:
    bench = at_work(delay=delay, in_flight=1)
    bench.pulled()
    bench.computed()
    if delay:
        bench.computed()
    bench.answer(ev.REFUSED)
    assert bench.slots == set()
    bench.grant(fence=6, session=2)
    assert bench.pulls[-1].fresh
    bench.run(1)
    assert bench.told()[-1] == ((0,), 0, 2)
