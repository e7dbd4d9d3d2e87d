"""Staleness policies: what an update is worth by its age."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from tardygrad.staleness import (
    Constant,
    CutOff,
    DelayAdaptive,
    Inverse,
    Polynomial,
    StalenessPolicy,
)

POLICIES = (Constant(), Inverse(), Polynomial(), Polynomial(power=2.0), DelayAdaptive(), CutOff())

SCALES = [
    (Constant(), {0: 1.0, 1: 1.0, 100: 1.0}),
    (Inverse(), {0: 1.0, 1: 1.0, 2: 0.5, 4: 0.25}),
    (Polynomial(), {0: 1.0, 3: 0.5, 8: 1 / 3}),
    (Polynomial(power=1.0), {0: 1.0, 1: 0.5, 4: 0.2}),
    (DelayAdaptive(), {0: 1.0, 4: 1.0, 5: 0.8, 8: 0.5}),
    (CutOff(below=3), {0: 1.0, 2: 1.0}),
]


@pytest.mark.parametrize(("policy", "scales"), SCALES, ids=lambda v: getattr(v, "name", ""))
def test_the_formulas(policy: Any, scales: dict[int, float]) -> None:
    for staleness, scale in scales.items():
        verdict = policy.judge(staleness, workers=4)
        assert verdict.accepted and not verdict.again
        assert verdict.scale == pytest.approx(scale)


@given(st.sampled_from(POLICIES), st.integers(0, 10**6), st.integers(1, 10**4))
def test_a_fresh_update_counts_in_full_and_older_ones_never_more(
    policy: Any, staleness: int, workers: int
) -> None:
    assert policy.judge(0, workers) == policy.judge(0, 1)
    assert policy.judge(0, workers).scale == 1.0
    now, later = policy.judge(staleness, workers), policy.judge(staleness + 1, workers)
    assert 0.0 <= later.scale <= now.scale <= 1.0
    assert later.accepted <= now.accepted
    assert now.reason
    if now.accepted:
        assert now.scale > 0.0


@pytest.mark.parametrize("again", [False, True])
def test_the_cut_off_refuses_from_its_limit_on(again: bool) -> None:
    policy = CutOff(below=3, again=again)
    assert policy.limit == 3
    assert policy.judge(2, workers=8).accepted
    for staleness in (3, 4, 99):
        verdict = policy.judge(staleness, workers=8)
        assert (verdict.accepted, verdict.again, verdict.scale) == (False, again, 0.0)
        assert verdict.reason == f"staleness {staleness}, limit 3"


def test_only_the_cut_off_has_a_limit() -> None:
    assert [p.limit for p in POLICIES] == [None] * 5 + [16]


def test_a_policy_is_chosen_by_its_name() -> None:
    parse: TypeAdapter[Any] = TypeAdapter(StalenessPolicy)
    assert parse.validate_python({"name": "inverse"}) == Inverse()
    assert parse.validate_python({"name": "cut_off", "below": 2}) == CutOff(below=2)
    for wrong in ({"name": "inverted"}, {"name": "cut_off", "below": 0}, {"power": 1.0}):
        with pytest.raises(ValidationError):
            parse.validate_python(wrong)
