"""When a training first reaches an accuracy, measured and reckoned alike on both sides."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

EVERY = 7500
"""Samples between two measurements: eight an epoch of MNIST."""


def to_measure(events: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Of the events of a run, the first checkpoint behind each multiple of EVERY samples."""
    due = EVERY
    for event in events:
        if event["event"] == "checkpoint" and event["samples"] >= due:
            due = (event["samples"] // EVERY + 1) * EVERY
            yield event


def crossing(measured: Iterable[tuple[float, float]], wanted: float) -> float:
    """The time at which ``wanted`` is first reached, linearly between measurements; inf if never.

    Args:
        measured: (time, value) in order of time; nothing is taken after the one that suffices.
        wanted: above 0, the value at time 0.

    >>> crossing([(1.0, 0.5), (2.0, 0.7), (3.0, 0.1)], 0.6)
    1.5
    """
    before, below = 0.0, 0.0
    for at, value in measured:
        if value >= wanted:
            return before + (at - before) * (wanted - below) / (value - below)
        before, below = at, value
    return math.inf
