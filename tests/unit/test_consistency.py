"""Consistency rules: who may go on, by the clocks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from tardygrad.consistency import ASP, NO_NEED, SSP, Consistency


@given(st.integers(0, 10**9))
def test_asynchronous_workers_never_wait(clock: int) -> None:
    rule = ASP()
    assert not rule.uses_clocks
    assert rule.need(clock) == NO_NEED


@pytest.mark.parametrize(
    ("bound", "needs"),
    [
        (0, {0: 0, 1: 1, 5: 5}),
        (1, {0: 0, 1: 0, 2: 1, 5: 4}),
        (3, {0: 0, 3: 0, 4: 1, 100: 97}),
    ],
)
def test_what_stale_synchronous_workers_wait_for(bound: int, needs: dict[int, int]) -> None:
    rule = SSP(bound=bound)
    assert rule.uses_clocks
    assert {clock: rule.need(clock) for clock in needs} == needs


@given(st.integers(0, 50), st.integers(0, 1000), st.integers(0, 1000))
def test_nobody_is_further_ahead_than_the_bound(bound: int, clock: int, slowest: int) -> None:
    rule = SSP(bound=bound)
    assert (slowest >= rule.need(clock)) == (clock - slowest <= bound)
    # The slowest itself always may, or nobody could.
    assert slowest >= rule.need(slowest)


def test_a_rule_is_chosen_by_its_name() -> None:
    parse: TypeAdapter[Any] = TypeAdapter(Consistency)
    assert parse.validate_python({"name": "asp"}) == ASP()
    assert parse.validate_python({"name": "ssp"}) == SSP(bound=3)
    for wrong in ({"name": "bsp"}, {"name": "ssp", "bound": -1}, {"name": "asp", "bound": 1}):
        with pytest.raises(ValidationError):
            parse.validate_python(wrong)
