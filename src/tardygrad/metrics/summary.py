"""Staleness in figures: pure functions on histograms ``{staleness: count}``.

Theory of operation.  The staleness of an update is the version at its application minus the
version it was computed from: a small whole number, so a histogram holds every one of millions of
updates exactly, and histograms of workers, shards and incarnations add up.  Quantiles are
therefore exact too, by the nearest-rank rule: the p-th percentile is the smallest staleness that
at least p per cent of the updates do not exceed (a staleness that did occur, never an
interpolated one).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

Histogram: TypeAlias = Mapping[int, int]
"""How many updates had each staleness; staleness and counts are 0 or more."""


@dataclass(frozen=True, slots=True)
class Staleness:
    """A histogram in four figures (all 0 if it is empty) and its number of updates."""

    count: int = 0
    mean: float = 0.0
    p50: int = 0
    p99: int = 0
    max: int = 0

    def as_dict(self) -> dict[str, float | int]:
        """The ``staleness`` field of the events in ``metrics.jsonl``."""
        return {"mean": self.mean, "p50": self.p50, "p99": self.p99, "max": self.max}


def summarise(histogram: Histogram) -> Staleness:
    """Mean, median, 99th percentile and maximum of a histogram.

    >>> summarise({0: 1, 3: 98, 7: 1}).as_dict()
    {'mean': 3.01, 'p50': 3, 'p99': 3, 'max': 7}

    Raises:
        ValueError: a staleness or a count is negative.
    """
    total = count(histogram)
    if not total:
        return Staleness()
    p50, p99 = percentiles(histogram, (50, 99))
    largest = max(staleness for staleness, times in histogram.items() if times)
    return Staleness(total, mean(histogram), p50, p99, largest)


def count(histogram: Histogram) -> int:
    """How many updates a histogram holds.

    Raises:
        ValueError: a staleness or a count is negative.
    """
    total = 0
    for staleness, times in histogram.items():
        if staleness < 0 or times < 0:
            raise ValueError(
                f"a histogram holds {times} updates of staleness {staleness}; "
                "expected both to be 0 or more"
            )
        total += times
    return total


def mean(histogram: Histogram) -> float:
    """The mean staleness; 0 for an empty histogram.

    >>> mean({1: 1, 2: 3})
    1.75
    """
    total = count(histogram)
    return sum(staleness * times for staleness, times in histogram.items()) / max(total, 1)


def percentiles(histogram: Histogram, percents: Iterable[int]) -> tuple[int, ...]:
    """Nearest-rank percentiles, in the order asked for; 0 for an empty histogram.

    Args:
        histogram: The counts.
        percents: Whole numbers in 0..100; 0 gives the smallest staleness that occurred.

    >>> percentiles({0: 50, 1: 50}, (50, 51, 100))
    (0, 1, 1)

    Raises:
        ValueError: a percentage is outside 0..100.
    """
    total = count(histogram)
    ordered = sorted((staleness, times) for staleness, times in histogram.items() if times)
    found = []
    for percent in percents:
        if not 0 <= percent <= 100:
            raise ValueError(f"percentile {percent}: expected a whole number in 0..100")
        rank = max(1, -(-percent * total // 100))  # ceiling in integers: no rounding error
        seen = 0
        answer = 0
        for staleness, times in ordered:
            seen += times
            if seen >= rank:
                answer = staleness
                break
        found.append(answer)
    return tuple(found)


def merge(histograms: Iterable[Histogram]) -> dict[int, int]:
    """The histogram of all updates of several histograms, ordered by staleness.

    >>> merge([{0: 1, 4: 2}, {0: 2}])
    {0: 3, 4: 2}
    """
    merged: dict[int, int] = {}
    for histogram in histograms:
        for staleness, times in histogram.items():
            merged[staleness] = merged.get(staleness, 0) + times
    return dict(sorted(merged.items()))


def to_json(histogram: Histogram) -> dict[str, int]:
    """A histogram with the string keys that JSON asks for, ordered by staleness."""
    return {str(staleness): times for staleness, times in sorted(histogram.items())}


def from_json(histogram: Mapping[str, int]) -> dict[int, int]:
    """The inverse of ``to_json``.

    Raises:
        ValueError: a key is no whole number.
    """
    return {int(staleness): int(times) for staleness, times in histogram.items()}
