"""The worker: one range after the other, whatever is lost, doubled, late or refused."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tardygrad.consistency import ASP, SSP
from tardygrad.data.fragments import FragmentPlan
from tardygrad.errors import InvariantViolation
from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev
from tardygrad.protocol.clocks import NOBODY
from tardygrad.protocol.worker import COMPUTING, GONE, IDLE, PULLING, Worker
from tardygrad.protocol.worker_settings import WorkerSettings

RESEND_S = 1.0
PLAN = FragmentPlan(samples=40_000, batch_size=4, fragment_batches=100, seed=0)


def worker(
    *, shards: int = 2, period: int = 1, in_flight: int = 0, consistency: ASP | SSP | None = None,
    incarnation: int = 0, awaits_commit: bool = False,
) -> Worker:  # fmt: skip
    settings = WorkerSettings(
        lineage=7, shards=shards, exchange_period=lambda _: period, plan=PLAN, in_flight=in_flight,
        consistency=consistency or ASP(), awaits_commit=awaits_commit, resend_s=RESEND_S,
    )  # fmt: skip
    return Worker(3, settings, incarnation=incarnation)


class Bench:
    """A worker with its engine played by hand; keeps what the worker wants."""

    def __init__(self, machine: Worker) -> None:
        self.machine = machine
        self.effects: list[ef.Effect] = []
        self.do(ev.Started())

    def do(self, event: ev.Event, now: float = 0.0) -> list[ef.Effect]:
        self.effects = self.machine.handle(event, now)
        return self.effects

    def of(self, kind: type) -> list[Any]:
        return [e for e in self.effects if type(e) is kind]

    def asked(self) -> list[ev.LeaseAsked]:
        return [e.message for e in self.of(ef.Send) if type(e.message) is ev.LeaseAsked]

    def grant(self, lease: ev.Lease, ask: int | None = None) -> list[ef.Effect]:
        return self.do(ev.Granted(self.machine._ask if ask is None else ask, lease))

    def pulled(self, clock: int = 0) -> ef.Compute:
        self.do(ev.Pulled(self.machine._seq, ((0, 4), (0, 5)), clock))
        [compute] = self.of(ef.Compute)
        assert isinstance(compute, ef.Compute)
        return compute

    def computed(self) -> ev.Push:
        self.do(ev.Computed(self.machine._seq, 8))
        [publish] = self.of(ef.Publish)
        assert isinstance(publish, ef.Publish)
        return publish.push

    def acked(self, push: ev.Push, shard: int, outcome: str = ev.APPLIED, **changes: Any) -> Any:
        acked = ev.Acked(shard, push.session, push.seq, outcome, push.stop, "")
        return self.do(acked._replace(**changes))


def lease(
    fence: int = 5, session: int = 1, first: int = 0, stop: int = 4, **changes: Any
) -> ev.Lease:
    return ev.Lease(fence, session, 3, 0, 0, first, stop, ())._replace(**changes)


def at_work(**options: Any) -> Bench:
    """A worker that has computed and pushed its first range."""
    bench = Bench(worker(**options))
    bench.grant(lease())
    bench.pulled()
    return bench


# --- the cycle --------------------------------------------------------------------------------


def test_it_starts_by_asking() -> None:
    bench = Bench(worker())
    ready, asked = [e.message for e in bench.of(ef.Send)]
    assert ready == ev.WorkerReady(3, 0)
    assert (asked.ask, asked.prefetch, asked.abandoned, asked.received) == (1, False, False, 0)


def test_lease_pull_compute_push_answer() -> None:
    bench = Bench(worker())
    assert bench.grant(lease()) == [ef.Pull(1, (), True)]
    compute = bench.pulled()
    assert (compute.first, compute.stop) == (0, 1)
    push = bench.computed()
    assert push == ev.Push(7, 3, 1, 1, 5, 0, 0, 0, 1, 8, 0, ((0, 4), (0, 5)))
    assert bench.machine.phase == IDLE
    assert bench.acked(push, 1) == []
    assert bench.acked(push, 0) == [ef.Release(1), ef.Pull(2, (), False)]


def test_pushes_in_flight_overlap_the_next_range() -> None:
    bench = at_work(in_flight=1)
    first = bench.computed()
    assert bench.of(ef.Pull) == [ef.Pull(2, (), False)]
    bench.pulled()
    bench.computed()
    assert not bench.of(ef.Pull)
    bench.acked(first, 0)
    assert bench.acked(first, 1) == [ef.Release(1), ef.Pull(3, (), False)]


def test_ranges_are_as_long_as_the_period_and_stop_at_cuts() -> None:
    bench = Bench(worker(period=3))
    bench.grant(lease(stop=8, cuts=(2,)))
    ranges = []
    for _ in range(3):
        compute = bench.pulled()
        ranges.append((compute.first, compute.stop))
        push = bench.computed()
        bench.acked(push, 0)
        bench.acked(push, 1)
    assert ranges == [(0, 2), (2, 5), (5, 8)]
    assert bench.machine.lease is None


def test_the_next_lease_is_asked_for_early() -> None:
    bench = at_work()
    for _ in range(2):
        push = bench.computed()
        asked = bench.asked()
        bench.acked(push, 0)
        bench.acked(push, 1)
        bench.pulled()
    assert [a.prefetch for a in asked] == [True]
    following = lease(6)
    bench.grant(following)
    assert bench.machine.upcoming == following and bench.machine.phase == COMPUTING


def test_a_lease_that_does_not_come_is_asked_for_in_earnest() -> None:
    bench = at_work(period=2)
    push = bench.computed()
    assert [a.prefetch for a in bench.asked()] == [True]
    bench.acked(push, 0)
    bench.acked(push, 1)
    bench.pulled()
    push = bench.computed()
    assert [a.prefetch for a in bench.asked()] == [False]
    # The answer to the earlier ask comes too late: it will be given again under the newer number.
    assert bench.grant(lease(6), ask=2) == []


def test_it_leaves_when_asked_and_nothing_is_in_flight() -> None:
    bench = at_work()
    assert bench.do(ev.StopAsked("enough")) == []
    push = bench.computed()
    bench.acked(push, 0)
    assert not bench.of(ef.Leave)
    left, gone = bench.acked(push, 1)[1:]
    assert left == ef.Send(ev.SCHEDULER, ev.WorkerLeft(3, 0)) and gone == ef.Leave("enough")
    assert bench.machine.phase == GONE
    assert bench.do(ev.Tick(), 99.0) == [] == bench.grant(lease(8))


def test_it_does_not_wait_for_parameters_when_asked_to_leave() -> None:
    bench = Bench(worker(consistency=SSP(bound=0)))
    bench.grant(lease())
    assert bench.machine.phase == PULLING
    bench.do(ev.StopAsked(""))
    assert bench.of(ef.Leave)


# --- what goes wrong --------------------------------------------------------------------------


def test_unanswered_messages_are_sent_again() -> None:
    bench = Bench(worker())
    asked = bench.asked()
    assert bench.do(ev.Tick(), 0.5) == []
    bench.do(ev.Tick(), 1.0)
    assert bench.asked() == asked
    bench.grant(lease())
    assert bench.do(ev.Tick(), 1.5) == [ef.Pull(1, (), True)]
    bench.pulled()
    push = bench.computed()
    bench.acked(push, 1)
    assert bench.do(ev.Tick(), 3.0) == [ef.Publish(push, (0,))]
    assert bench.do(ev.Tick(), 3.5) == []


def test_a_gap_is_filled_in_order() -> None:
    bench = at_work(in_flight=2)
    first = bench.computed()
    bench.pulled()
    second = bench.computed()
    effects = bench.acked(second, 1, ev.GAP, next=0)
    assert effects == [ef.Publish(first, (1,)), ef.Publish(second, (1,))]
    assert bench.machine.phase == PULLING


def test_a_server_that_went_back_ends_the_session() -> None:
    bench = at_work(in_flight=2)
    first = bench.computed()
    for shard in (0, 1):
        bench.acked(first, shard)
    bench.pulled()
    second = bench.computed()
    bench.acked(second, 1, ev.GAP, next=0)
    [asked] = bench.asked()
    assert asked.abandoned and asked.session == 1 and "shard 1 went back" in asked.reason


@pytest.mark.parametrize("outcome", [ev.REFUSED, ev.AGAIN])
def test_a_refused_push_ends_the_session(outcome: str) -> None:
    bench = at_work(in_flight=1)
    push = bench.computed()
    assert bench.machine.phase == PULLING
    bench.acked(push, 0, outcome, reason="old fence")
    [asked] = bench.asked()
    assert asked.abandoned and asked.reason == f"{outcome}: old fence" and asked.session == 1
    assert bench.machine.phase == IDLE and bench.machine.lease is None
    # The new session's first pull waits until nothing of the old one is on its way.
    assert bench.grant(lease(9, session=2)) == []
    assert bench.acked(push, 1) == [ef.Release(1, (0,)), ef.Pull(3, (), True)]
    assert bench.machine.session == 2


def test_what_was_being_computed_is_thrown_away_with_its_session() -> None:
    bench = at_work(in_flight=1)
    push = bench.computed()
    bench.pulled()
    bench.acked(push, 0, ev.REFUSED)
    bench.grant(lease(9, session=2))
    assert bench.do(ev.Computed(2, 8)) == [ef.Release(2)]
    assert bench.machine.clock == 1


def test_a_session_is_given_up_once() -> None:
    bench = at_work(in_flight=2)
    first = bench.computed()
    bench.pulled()
    second = bench.computed()
    bench.acked(first, 0, ev.REFUSED)
    bench.grant(lease(9, session=2))
    # The second refusal belongs to the old session: the new lease is kept.
    bench.acked(second, 0, ev.REFUSED)
    assert bench.asked() == [] and bench.machine.upcoming == lease(9, session=2)


def test_a_lease_of_a_new_session_ends_the_one_at_hand() -> None:
    bench = at_work(period=2)
    push = bench.computed()
    assert [a.prefetch for a in bench.asked()] == [True]
    # A server was restored meanwhile: the scheduler has ended all leases of session 1.
    bench.grant(lease(9, session=2, clock=4))
    bench.acked(push, 0, ev.REFUSED)
    assert bench.asked() == []
    assert bench.acked(push, 1, ev.REFUSED) == [ef.Release(1, (0, 1)), ef.Pull(2, (), True)]
    assert (bench.machine.session, bench.machine.clock) == (2, 4)


@pytest.mark.parametrize(
    ("outcome", "lost"),
    [(ev.APPLIED, ()), (ev.DROPPED, (0,)), (ev.DUPLICATE, (0,)), (ev.REFUSED, (0,))],
)
def test_it_tells_where_a_push_was_not_taken(outcome: str, lost: tuple[int, ...]) -> None:
    bench = at_work()
    push = bench.computed()
    bench.acked(push, 0, outcome)
    assert bench.acked(push, 1)[0] == ef.Release(1, lost)


def test_a_duplicate_of_what_was_sent_again_was_taken_at_first() -> None:
    bench = at_work()
    push = bench.computed()
    bench.acked(push, 1)
    assert ef.Publish(push, (0,)) in bench.do(ev.Tick(), 100.0)
    assert bench.acked(push, 0, ev.DUPLICATE)[0] == ef.Release(1)


def test_answers_to_an_earlier_life_are_ignored() -> None:
    old, new = Bench(worker()), Bench(worker(incarnation=1))
    assert new.grant(lease(), ask=old.asked()[0].ask) == []
    for bench in (old, new):
        bench.grant(lease(session=1 if bench is old else 2))
    late = ev.Pulled(old.machine._seq, ((0, 1), (0, 1)), 0)
    assert new.do(late) == []
    new.pulled()
    push = new.computed()
    assert new.acked(push, 0, session=1) == [] == new.acked(push, 1, session=1)
    assert push.seq in new.machine.outstanding


def test_a_foreign_event_is_a_broken_promise() -> None:
    with pytest.raises(InvariantViolation, match=r"worker 3 got .*, which no worker handles"):
        worker().handle(ev.ServerSeen(0), 0.0)


# --- clocks -----------------------------------------------------------------------------------


def test_clocks_are_taken_up_but_never_from_nobody() -> None:
    bench = Bench(worker(consistency=SSP(bound=1), in_flight=3))
    assert bench.grant(lease(clock=2)) == [ef.Pull(1, (1, 1), True)]
    bench.pulled(clock=6)
    push = bench.computed()
    assert push.clock == 6 and not bench.of(ef.Pull)
    bench.acked(push, 0)
    assert bench.acked(push, 1)[1:] == [ef.Pull(2, (6, 6), False)]
    bench.pulled(clock=NOBODY)
    assert bench.machine.clock == 7


def test_its_clock_is_told_as_far_as_it_is_answered() -> None:
    bench = Bench(worker(consistency=SSP(bound=1)))
    bench.grant(lease(clock=2))
    bench.pulled(clock=6)
    assert bench.machine.reached_clock == 6
    push = bench.computed()
    bench.acked(push, 0)
    # Others still wait for what it has pushed.
    assert (bench.machine.clock, bench.machine.reached_clock) == (7, 6)
    bench.acked(push, 1)
    assert bench.machine.reached_clock == 7


def test_where_a_commit_is_awaited_the_versions_are_told() -> None:
    bench = Bench(worker(awaits_commit=True))
    bench.grant(lease())
    bench.pulled()
    push = bench.computed()
    assert bench.machine.reached_clock == 0
    bench.acked(push, 0)
    assert bench.machine.reached_clock == 5
    # One that came too late leads no less far: it waits for nobody behind.
    bench.acked(push, 1, ev.DROPPED)
    assert bench.machine.reached_clock == 5 + 6
    bench.do(ev.SessionEnded(2))
    bench.grant(lease(6, 2, first=1))
    assert bench.machine.reached_clock == 0


def test_where_nobody_waits_no_clock_is_told() -> None:
    bench = at_work()
    push = bench.computed()
    for shard in (0, 1):
        bench.acked(push, shard)
    assert (bench.machine.clock, bench.machine.reached_clock) == (1, 0)


def test_an_ask_names_the_clock() -> None:
    bench = at_work(period=4)
    bench.computed()
    assert [a.clock for a in bench.asked()] == [1]


# --- any order --------------------------------------------------------------------------------


class Post:
    """Servers that apply in order, a scheduler with one lease, and a bad post office between."""

    def __init__(self, bench: Bench, rng: random.Random) -> None:
        self.bench, self.rng = bench, rng
        self.standing = {0: 0, 1: 0}
        self.computed: list[int] = []
        self.mail: list[ev.Event] = []
        self.old: list[ev.Event] = []
        self.granted = False
        self.carry_out(bench.effects)

    def carry_out(self, effects: list[ef.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, ef.Send) and type(effect.message) is ev.LeaseAsked:
                if not self.granted:
                    self.granted = True
                    self.mail.append(ev.Granted(effect.message.ask, lease(stop=7)))
            elif isinstance(effect, ef.Pull):
                self.mail.append(ev.Pulled(effect.seq, ((0, 0), (0, 0)), 0))
            elif isinstance(effect, ef.Compute):
                self.computed.extend(range(effect.first, effect.stop))
                self.mail.append(ev.Computed(effect.seq, 1))
            elif isinstance(effect, ef.Publish):
                self.mail.extend(self.answer(effect.push, shard) for shard in effect.shards)

    def answer(self, push: ev.Push, shard: int) -> ev.Acked:
        outcome = ev.APPLIED
        if push.first == self.standing[shard]:
            self.standing[shard] = push.stop
        else:
            outcome = ev.DUPLICATE if push.stop <= self.standing[shard] else ev.GAP
        return ev.Acked(shard, push.session, push.seq, outcome, self.standing[shard], "")

    def deliver(self, now: float) -> None:
        if not self.mail or self.rng.random() < 0.1:
            self.carry_out(self.bench.do(ev.Tick(), now))
            return
        event = self.mail.pop(self.rng.randrange(len(self.mail)))
        fate = self.rng.random()
        if fate > 0.2 or not isinstance(event, ev.Acked | ev.Pulled):
            self.carry_out(self.bench.do(event, now))
            self.old.append(event)
        if fate > 0.8:
            self.carry_out(self.bench.do(self.rng.choice(self.old), now))


@pytest.mark.parametrize("in_flight", range(4))
@pytest.mark.parametrize("period", [1, 2, 3])
def test_lost_doubled_and_reordered_answers_change_nothing(in_flight: int, period: int) -> None:
    for seed in range(40):
        bench = Bench(worker(in_flight=in_flight, period=period))
        post = Post(bench, random.Random(seed))
        for step in range(2000):
            post.deliver(0.3 * step)
            waits = bench.machine.phase == IDLE and bench.machine.lease is None
            if waits and post.computed and not bench.machine.outstanding:
                break
        assert post.computed == list(range(7)), seed
        assert post.standing == {0: 7, 1: 7}, seed


# --- balancing and calculation stops ----------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "ranges"), [(1.0, [4, 4]), (0.5, [2, 2, 2, 2]), (0.1, [1] * 8), (1.5, [6, 2])]
)
def test_its_exchanges_are_as_long_as_its_share(share: float, ranges: list[int]) -> None:
    bench = Bench(worker(period=4))
    bench.grant(lease(stop=8, share=share))
    found = []
    while bench.machine.phase == PULLING:
        compute = bench.pulled()
        found.append(compute.stop - compute.first)
        push = bench.computed()
        bench.acked(push, 0)
        bench.acked(push, 1)
    assert found == ranges


def test_it_measures_itself_but_for_its_first_range() -> None:
    bench = Bench(worker(period=2))
    bench.grant(lease(stop=4))
    reads = ((0, 4), (0, 5))
    bench.do(ev.Pulled(1, reads, 0), now=1.0)
    bench.do(ev.Computed(1, 8), now=6.0)
    [early] = bench.asked()
    assert (early.samples, early.seconds) == (0, 0.0)
    for shard in (0, 1):
        bench.do(ev.Acked(shard, 1, 1, ev.APPLIED, 2, ""), now=7.0)
    bench.do(ev.Pulled(2, reads, 0), now=8.0)
    bench.do(ev.Computed(2, 8), now=8.5)
    bench.grant(lease(fence=6, stop=2))
    for shard in (0, 1):
        bench.do(ev.Acked(shard, 1, 2, ev.APPLIED, 4, ""), now=9.0)
    bench.do(ev.Pulled(3, reads, 0), now=10.0)
    bench.do(ev.Computed(3, 8), now=10.25)
    [asked] = bench.asked()
    assert (asked.samples, asked.seconds) == (16, 0.75), "waiting is not computing"


def test_a_computation_that_is_overtaken_is_dropped_and_its_lease_given_up() -> None:
    bench = Bench(worker())
    bench.grant(lease())
    bench.pulled()
    bench.do(ev.Overtaken(1, "staleness 4 on shard 1, limit 4"))
    assert bench.of(ef.Release) == [ef.Release(1)] and not bench.of(ef.Publish)
    [asked] = bench.asked()
    assert asked.abandoned and asked.reason == "stopped: staleness 4 on shard 1, limit 4"
    assert bench.machine.phase == IDLE and bench.machine.lease is None
    bench.grant(lease(fence=9, session=2))
    assert bench.of(ef.Pull) == [ef.Pull(2, (), True)], "it begins afresh"


def test_what_is_overtaken_late_or_twice_changes_nothing() -> None:
    bench = Bench(worker())
    bench.grant(lease())
    assert bench.do(ev.Overtaken(1, "early")) == [], "nothing is computed yet"
    bench.pulled()
    assert bench.do(ev.Overtaken(0, "another one")) == []
    push = bench.computed()
    assert bench.do(ev.Overtaken(1, "late")) == []
    bench.acked(push, 0)
    bench.acked(push, 1)
    bench.pulled()
    bench.do(ev.Overtaken(2, "in time"))
    assert bench.do(ev.Overtaken(2, "twice")) == []
    assert bench.do(ev.Computed(2, 8)) == []
