"""Admission rules: when a round ends."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from tardygrad.admission import Admission, AtOnce, Collect, Quorum, RoundState, WholeEpoch
from tardygrad.protocol.rounds import Closed, Round, Rule

MEMBERS = [(0, 1), (1, 2), (2, 3)]


def state(gathered: int, contributed: int, **rest: Any) -> RoundState:
    seconds, over = rest.get("waited_s", 0.0), rest.get("over", False)
    return RoundState(gathered, contributed, 3, contributed, seconds, over)


@pytest.mark.parametrize(
    ("rule", "seen", "closes"),
    [
        (Quorum(), state(2, 2), False),
        (Quorum(), state(3, 3), True),
        (Quorum(count=2), state(1, 1), False),
        (Quorum(count=2), state(2, 2), True),
        (Quorum(count=2, grace_s=1.0), state(2, 2, waited_s=0.9), False),
        (Quorum(count=2, grace_s=1.0), state(2, 2, waited_s=1.0), True),
        (Quorum(count=2, grace_s=1.0), state(3, 3), True),
        (Quorum(count=9), state(3, 3), True),
        (Collect(updates=4), state(3, 3), False),
        (Collect(updates=4), state(4, 1), True),
        (Collect(updates=4), state(1, 1, over=True), True),
        (WholeEpoch(), state(9, 3), False),
        (WholeEpoch(), state(1, 1, over=True), True),
    ],
)
def test_when_a_round_ends(rule: Rule, seen: RoundState, closes: bool) -> None:
    assert rule.closes(seen) == closes


def test_a_rule_is_chosen_by_its_name() -> None:
    parse: TypeAdapter[Any] = TypeAdapter(Admission)
    assert parse.validate_python({"name": "at_once"}) == AtOnce()
    assert parse.validate_python({"name": "quorum"}) == Quorum(count=None)
    for wrong in ({"name": "all"}, {"name": "quorum", "count": 0}, {"name": "at_once", "count": 1}):
        with pytest.raises(ValidationError):
            parse.validate_python(wrong)


def take(found: Round, member: tuple[int, int], seq: int = 0, **changes: Any) -> None:
    values = {"weight": 64, "scale": 1.0, "consumed": 640, **changes}
    found.take(member, seq, **values)


def over(found: Round, members: Any = MEMBERS, now: float = 0.0, **changes: Any) -> bool:
    return found.over(members, now, epoch_over=changes.get("epoch_over", False))


def test_a_round_waits_for_the_members_that_have_not_contributed() -> None:
    found = Round(Quorum())
    assert not over(found), "an empty round has nothing to commit"
    take(found, (0, 1))
    take(found, (1, 2), weight=32, consumed=704)
    # One of an earlier session is not the member of today.
    take(found, (2, 9))
    assert not over(found)
    assert over(found, MEMBERS[:2]), "the third has died"
    found.passes((2, 3), 1)
    assert over(found)
    assert found.close() == Closed(3, 640, 1.0)
    assert not over(found, [], epoch_over=True)


def test_a_count_is_of_members_and_not_of_updates() -> None:
    found = Round(Quorum(count=2))
    take(found, (0, 1), 0)
    take(found, (0, 1), 1)
    assert not over(found)
    take(found, (1, 2))
    assert over(found)


def test_stale_updates_weigh_less_and_so_does_the_step() -> None:
    found = Round(Collect(updates=2))
    take(found, (0, 1), scale=0.5)
    take(found, (1, 2), scale=0.25)
    assert found.weight == 48.0
    # The mean of s g over the samples as they were.
    assert found.close().scale == pytest.approx((0.5 + 0.25) / 2)


def test_what_comes_again_is_told_from_what_is_new() -> None:
    found = Round(Quorum())
    take(found, (0, 1), 5)
    assert found.knows((0, 1), 5) is True
    assert found.knows((0, 1), 6) is None
    assert found.knows((0, 2), 5) is None
    found.close()
    # After the commit too: it has nothing in the next round.
    assert found.knows((0, 1), 5) is True
    found.passes((0, 1), 6)
    assert found.knows((0, 1), 6) is False


def test_grace_counts_from_the_update_that_sufficed() -> None:
    found = Round(Quorum(count=2, grace_s=0.5))
    take(found, (0, 1))
    assert not over(found, now=10.0)
    take(found, (1, 2))
    assert not over(found, now=11.0)
    assert not over(found, now=11.4)
    assert over(found, now=11.5)


def test_a_round_survives_a_snapshot() -> None:
    found = Round(Quorum(count=3, grace_s=0.5))
    take(found, (0, 1), consumed=128)
    take(found, (1, 1), scale=0.5)
    take(found, (2, 1))
    again = Round.from_state(found.rule, found.state())
    assert not over(again, [(7, 7)], now=3.0)
    assert over(again, [(7, 7)], now=3.5), "its grace begins anew"
    assert again.close() == Closed(3, 128, 2.5 / 3)
