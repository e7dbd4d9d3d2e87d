"""The balancer: what it learns from requests for leases, and when it changes its mind."""

from __future__ import annotations

import pytest
from scheduler_desk import Desk

from tardygrad.balancing import ByBatch, BySteps
from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev
from tardygrad.protocol.balancing import Balancer


def ask(worker: int, samples: int, seconds: float, incarnation: int = 0) -> ev.LeaseAsked:
    return ev.LeaseAsked(
        worker, incarnation, 0, 1, 0, prefetch=False, abandoned=False, reason="", clock=0,
        samples=samples, seconds=seconds,
    )  # fmt: skip


def measured(rule: BySteps | ByBatch, *speeds: float) -> Balancer:
    balancer = Balancer(rule)
    for worker, speed in enumerate(speeds):
        balancer.tell(ask(worker, int(speed), 1.0))
    return balancer


def test_the_unmeasured_have_the_whole_share() -> None:
    balancer = Balancer(BySteps())
    balancer.tell(ask(0, 0, 0.0))
    assert balancer.decide(0, [0, 1]) == (1.0, [])
    balancer.tell(ask(1, 100, 1.0))
    assert balancer.decide(0, [0, 1]) == (1.0, []), "it is not known who is faster"


def test_a_decision_is_made_once_and_gives_its_reason() -> None:
    balancer = measured(BySteps(), 100.0, 400.0)
    share, [decided] = balancer.decide(0, [0, 1])
    assert share == 0.25
    assert decided == ef.Decided(
        "worker 0: 25% of the local steps",
        "it computes 100 samples/s, the fastest (worker 1) 400; before: 100% of the local steps",
    )
    assert balancer.decide(0, [0, 1]) == (0.25, [])
    assert balancer.decide(1, [0, 1]) == (1.0, [])


def test_merging_gives_its_reason_too() -> None:
    balancer = measured(ByBatch(most=3), 100.0, 210.0, 500.0)
    assert balancer.decide(0, range(3)) == (1.0, [])
    assert balancer.decide(1, range(3))[0] == 2.0
    share, [decided] = balancer.decide(2, range(3))
    assert share == 3.0
    assert decided.decision == "worker 2: batches merged 3 at a time"
    assert "the slowest (worker 0) 100" in decided.reason


@pytest.mark.parametrize(("samples", "share"), [(95, 1.0), (91, 1.0), (89, 0.89)])
def test_noise_of_a_tenth_decides_nothing(samples: int, share: float) -> None:
    balancer = measured(BySteps(), samples, 100.0)
    assert balancer.decide(0, [0, 1])[0] == share


def test_a_change_is_measured_from_the_decision_before() -> None:
    balancer = measured(BySteps(), 50.0, 100.0)
    assert balancer.decide(0, [0, 1])[0] == 0.5
    # (25 + 54) / 1.5 = 52.7 samples/s, then (39.5 + 62) / 1.75 = 58.
    balancer.tell(ask(0, 104, 2.0))
    assert balancer.decide(0, [0, 1]) == (0.5, [])
    balancer.tell(ask(0, 166, 3.0))
    assert balancer.decide(0, [0, 1])[0] == pytest.approx(0.58)


def test_the_dead_are_nobodys_measure() -> None:
    balancer = measured(BySteps(), 100.0, 400.0, 200.0)
    assert balancer.decide(0, [0, 2])[0] == 0.5
    balancer = measured(ByBatch(), 10.0, 400.0, 200.0)
    assert balancer.decide(1, [1, 2])[0] == 2.0


def test_what_was_told_before_is_told_once() -> None:
    balancer = measured(BySteps(), 100.0, 400.0)
    balancer.tell(ask(0, 100, 1.0))
    balancer.tell(ask(0, 40, 0.1))
    assert balancer.decide(0, [0, 1])[0] == 0.25


def test_a_replacement_begins_with_its_slots_speed_and_soon_has_its_own() -> None:
    balancer = measured(BySteps(), 100.0, 400.0)
    assert balancer.decide(0, [0, 1])[0] == 0.25
    balancer.tell(ask(0, 0, 0.0, incarnation=1))
    assert balancer.decide(0, [0, 1]) == (0.25, [])
    for number in range(1, 9):
        balancer.tell(ask(0, 400 * number, 1.0 * number, incarnation=1))
        share, _ = balancer.decide(0, [0, 1])
    assert share > 0.9


def test_the_scheduler_sends_the_share_with_the_lease_and_logs_it() -> None:
    desk = Desk(balance=BySteps())
    desk.serve()
    lease = desk.ask(1, samples=200, seconds=1.0)
    assert lease.share == 1.0
    desk.book(lease)
    lease = desk.ask(0, samples=80, seconds=1.0)
    assert lease.share == 0.4
    [decided] = desk.of(ef.Decided)
    assert decided.decision == "worker 0: 40% of the local steps"


def test_without_balance_everybody_has_the_whole_share() -> None:
    desk = Desk()
    desk.serve()
    desk.ask(1, samples=200, seconds=1.0)
    assert desk.ask(0, samples=80, seconds=1.0).share == 1.0
    assert not desk.of(ef.Decided)
