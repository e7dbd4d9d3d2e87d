"""Staleness figures against numpy on the updates one by one."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tardygrad.metrics import summary

histograms = st.dictionaries(st.integers(0, 50), st.integers(0, 40), max_size=8)


def updates(histogram: dict[int, int]) -> list[int]:
    return [staleness for staleness, times in histogram.items() for _ in range(times)]


@given(histograms.filter(lambda histogram: any(histogram.values())))
def test_figures_equal_those_of_the_updates_one_by_one(histogram: dict[int, int]) -> None:
    values = sorted(updates(histogram))
    figures = summary.summarise(histogram)
    assert figures.count == len(values)
    assert figures.mean == pytest.approx(np.mean(values))
    assert figures.max == max(values)
    for percent, found in ((50, figures.p50), (99, figures.p99)):
        # The definition itself: enough updates are at most this stale, and of no less.
        assert found in values
        assert 100 * sum(value <= found for value in values) >= percent * len(values)
        assert 100 * sum(value < found for value in values) < percent * len(values)


@given(histograms)
def test_percentiles_rise_from_the_smallest_to_the_largest(histogram: dict[int, int]) -> None:
    found = summary.percentiles(histogram, range(101))
    values = updates(histogram) or [0]
    assert list(found) == sorted(found)
    assert (found[0], found[100]) == (min(values), max(values))


def test_percentiles_have_no_rounding_error() -> None:
    # 0.07 * 100 is 7.000000000000001 in floating point, which would give rank 8.
    assert summary.percentiles({0: 7, 1: 93}, (7, 8)) == (0, 1)


def test_an_empty_histogram_is_all_zero() -> None:
    zero = {"mean": 0.0, "p50": 0, "p99": 0, "max": 0}
    assert summary.summarise({}).as_dict() == zero
    assert summary.summarise({9: 0}).as_dict() == zero


@given(st.lists(histograms, max_size=4))
def test_merging_is_the_histogram_of_all_updates(parts: list[dict[int, int]]) -> None:
    merged = summary.merge(parts)
    assert list(merged) == sorted(merged)
    assert sorted(updates(merged)) == sorted(value for part in parts for value in updates(part))


@given(histograms)
def test_json_round_trip(histogram: dict[int, int]) -> None:
    assert summary.from_json(summary.to_json(histogram)) == histogram


@pytest.mark.parametrize("histogram", [{-1: 2}, {1: -2}])
def test_negative_entries_are_refused(histogram: dict[int, int]) -> None:
    with pytest.raises(ValueError, match="expected both to be 0 or more"):
        summary.summarise(histogram)


@pytest.mark.parametrize("percent", [-1, 101])
def test_percentages_outside_the_range_are_refused(percent: int) -> None:
    with pytest.raises(ValueError, match=r"0\.\.100"):
        summary.percentiles({1: 1}, (percent,))


def test_the_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(summary)
    assert result.attempted >= 4
    assert result.failed == 0
