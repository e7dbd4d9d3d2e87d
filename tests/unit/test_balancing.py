"""Balancing by hand: shares, exchanges, merged batches, and what fits what."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tardygrad.balancing import ByBatch, BySteps, exchange, merged, steps_of
from tardygrad.errors import ConfigError
from tardygrad.methods import parse

SPEEDS = {0: 5700.0, 1: 5700 / 1.3, 2: 5700 / 2.6, 3: 1000.0}
"""Four workers whose batches take 1, 1.3, 2.6 and 5.7 times as long."""


def test_local_steps_follow_the_fastest() -> None:
    rule = BySteps()
    assert rule.measure(SPEEDS) == 0
    shares = [rule.share(speed / SPEEDS[0]) for speed in SPEEDS.values()]
    assert [exchange(40, share) for share in shares] == [40, 30, 15, 7]
    assert exchange(2, shares[3]) == 1, "nobody trains nothing"


def test_merged_batches_follow_the_slowest() -> None:
    rule = ByBatch()
    assert rule.measure(SPEEDS) == 3
    assert [rule.share(speed / SPEEDS[3]) for speed in SPEEDS.values()] == [5, 4, 2, 1]
    assert ByBatch(most=3).share(5.7) == 3.0
    assert rule.share(2.9999999) == 3.0, "rounding errors cost nothing"


@given(st.integers(1, 1 << 30))
def test_a_share_of_one_changes_nothing(period: int) -> None:
    assert exchange(period, 1.0) == period
    assert merged(period, period) == 1


@given(period=st.integers(1, 40), share=st.integers(1, 8), rest=st.integers(0, 40))
def test_a_whole_exchange_has_as_many_steps_as_the_method_says(
    period: int, share: int, rest: int
) -> None:
    batches = exchange(period, float(share))
    assert (merged(batches, period), steps_of(batches, period)) == (share, period)
    # One that a fragment's end cut short has no more steps, and none of them is larger.
    short = max(1, batches - rest)
    assert merged(short, period) <= share
    assert steps_of(short, period) <= period


@pytest.mark.parametrize(
    ("section", "what"),
    [
        ({"name": "dc_asgd", "balance": {"name": "steps"}}, "take batch"),
        ({"name": "async_diloco", "balance": {"name": "batch"}}, "take steps"),
        ({"name": "ringleader", "balance": "batch"}, "rows count alike; leave balance at fixed"),
        ({"name": "ringleader", "balance": "steps"}, "rows count alike; leave balance at fixed"),
        ({"name": "incremental_sgd", "balance": {"name": "steps"}}, "takes the next fragment"),
        (
            {"admission": {"name": "collect"}, "balance": {"name": "steps"}, "name": "async_sgd"},
            "weigh sums of gradients",
        ),
        ({"name": "local_sgd", "balance": {"name": "speed"}}, "method.balance: unknown name"),
        ({"name": "local_sgd", "balance": "speed"}, "method.balance: unknown name"),
        ({"name": "local_sgd", "balance": 7}, "method.balance: expected a section (key"),
        ({"name": "local_sgd", "balance": {"name": "steps", "most": 3}}, "most"),
    ],
)
def test_what_cannot_be_balanced_so(section: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(section)
    assert what in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "section",
    [
        {"name": "async_sgd", "balance": {"name": "batch"}},
        {"name": "async_sgd", "exchange_period": 8, "balance": {"name": "steps"}},
        {"name": "sync_sgd", "balance": {"name": "batch"}},
        {"name": "sync_sgd", "exchange_period": 8, "balance": {"name": "steps"}},
        {"name": "ssp", "balance": {"name": "batch"}},
        {"name": "local_sgd", "balance": {"name": "steps"}},
        {"name": "diloco", "balance": {"name": "batch", "most": 4}},
        {"name": "async_diloco", "balance": {"name": "steps"}},
        {"name": "easgd", "balance": {"name": "steps"}},
    ],
)
def test_what_can(section: dict[str, Any]) -> None:
    assert parse(section).balance.name == section["balance"]["name"]


def test_fragments_are_as_long_as_merged_exchanges() -> None:
    method = parse({"name": "sync_sgd", "balance": {"name": "batch", "most": 6}})
    assert method.fragment_batches(2, batches=1000, workers=4) == 6
    assert method.fragment_batches(2, batches=16, workers=4) == 4
    assert parse({"name": "sync_sgd"}).fragment_batches(2, batches=1000, workers=4) == 2


def test_what_an_update_weighs() -> None:
    plain, batch = {"name": "dc_asgd"}, {"name": "dc_asgd", "balance": {"name": "batch"}}
    assert parse(plain).weight(192, steps=1, usual=64) == 1.0
    # Three batches and a short fourth one: linear scaling, never below the usual rate.
    assert parse(batch).weight(224, steps=1, usual=64) == 3.5
    assert parse(batch).weight(10, steps=1, usual=64) == 1.0
    rounds = {"name": "diloco", "balance": {"name": "batch"}}
    assert parse(rounds).weight(224, steps=7, usual=64) == 224
    tokens = {**rounds, "admission": {"name": "quorum", "weights": "tokens"}}
    assert parse(tokens).weight(224, steps=7, usual=64) == 224 * 32
