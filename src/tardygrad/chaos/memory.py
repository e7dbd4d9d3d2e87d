"""Whether the memory of each process is flat: samples over time, and their slope."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

SETTLED_S = 60.0
"""The first minute of a process is its growing up, and no part of the slope."""


class Slope(NamedTuple):
    """One process's memory: from when to when it was watched, its size, its growth."""

    name: str
    pid: int
    seconds: float
    mebibytes: float
    mebibytes_per_minute: float


Samples = Mapping[tuple[str, int], Sequence[tuple[float, int]]]
"""For each process (name, number) the times in seconds and its bytes."""


def slopes(samples: Samples, least_s: float = SETTLED_S) -> list[Slope]:
    """The slope of each process that was watched for ``least_s`` after it had settled.

    The slope is that of the line of least squares.
    """
    found = []
    for (name, pid), points in sorted(samples.items()):
        settled = [(at, size) for at, size in points if at - points[0][0] >= SETTLED_S]
        if len(settled) < 3 or settled[-1][0] - settled[0][0] < least_s:
            continue
        mean_t = sum(at for at, _ in settled) / len(settled)
        mean_m = sum(size for _, size in settled) / len(settled)
        above = sum((at - mean_t) * (size - mean_m) for at, size in settled)
        below = sum((at - mean_t) ** 2 for at, _ in settled)
        seconds = settled[-1][0] - settled[0][0]
        per_minute = 60.0 * above / below / 2**20
        found.append(Slope(name, pid, seconds, settled[-1][1] / 2**20, per_minute))
    return found
