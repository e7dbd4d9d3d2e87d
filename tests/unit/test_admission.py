"""Admission rules: when a round ends."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from tardygrad.admission import Admission, AtOnce, Collect, Quorum, RoundState, WholeEpoch
from tardygrad.protocol.rounds import Round, Rule

MEMBERS = [(0, 1), (1, 2), (2, 3)]


def state(gathered: int, contributed: int, **rest: Any) -> RoundState:
    return RoundState(gathered, 3, contributed, rest.get("waited_s", 0.0), rest.get("over", False))


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


def test_a_round_waits_for_the_members_that_have_not_contributed() -> None:
    found = Round(Quorum())
    assert not found.over(MEMBERS, 0.0, epoch_over=False), "an empty round has nothing to commit"
    found.take(0, 1, 64.0, 640, 0.0)
    found.take(1, 2, 32.0, 704, 0.0)
    assert not found.over(MEMBERS, 0.0, epoch_over=False)
    # One of an earlier session is not the member of today.
    found.take(2, 9, 64.0, 736, 0.0)
    assert not found.over(MEMBERS, 0.0, epoch_over=False)
    assert found.over(MEMBERS[:2], 0.0, epoch_over=False), "the third has died"
    found.passes(2, 3)
    assert found.over(MEMBERS, 0.0, epoch_over=False)
    assert (found.gathered, found.weight, found.consumed) == (3, 160.0, 640)
    assert found.commit() == 3
    assert not found.over([], 0.0, epoch_over=True)


def test_grace_counts_from_the_update_that_sufficed() -> None:
    found = Round(Quorum(count=2, grace_s=0.5))
    found.take(0, 1, 1.0, 0, 10.0)
    found.take(1, 2, 1.0, 0, 11.0)
    assert not found.over(MEMBERS, 11.4, epoch_over=False)
    assert found.over(MEMBERS, 11.5, epoch_over=False)


def test_a_round_survives_a_snapshot() -> None:
    found = Round(Collect(updates=3))
    found.take(0, 1, 64.0, 128, 0.0)
    found.take(0, 1, 64.0, 192, 0.0)
    again = Round.from_state(found.rule, found.state())
    again.take(1, 1, 64.0, 256, 0.0)
    assert again.over([], 0.0, epoch_over=False)
    assert (again.gathered, again.weight, again.consumed) == (3, 192.0, 128)
