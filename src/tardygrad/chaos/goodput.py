"""Goodput: the useful samples of a run, by what those who were there could have done.

Exactly::

    goodput = U / (S * integral over the window of c(n(t)) dt)
    c(n) = min(n, cores) / min(workers, cores)

``U`` are the samples that were booked on every shard in the window, each once: what is computed
again does not count again. ``S`` are the samples/s of the undisturbed run. ``n(t)`` counts the
workers that are alive and not disturbed at ``t``: from *ready* to their death (or their being
taken for dead), without the time in which a fault holds them. ``cores`` bounds what workers can do:
with four workers on two cores the death of one leaves the others as much to compute with as all
four had, and a measure that forgot it would flatter.

Of ``workers`` many, all undisturbed, the integral is the window's length.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Interval = tuple[float, float]
"""From, until; in seconds."""


def capacity(present: int, workers: int, cores: int) -> float:
    """What ``present`` of ``workers`` can do, as a fraction of what all can; 0 to 1."""
    return min(present, workers, cores) / min(workers, cores)


def capacity_s(
    alive: Sequence[Sequence[Interval]], disturbed: Sequence[Sequence[Interval]], window: Interval,
    cores: int,
) -> float:  # fmt: skip
    """The integral of the capacity over the window, in seconds of all workers undisturbed.

    Args:
        alive: for each worker, when it was there; may overlap.
        disturbed: for each worker, when a fault held it; may overlap.
        window: over which is integrated.
        cores: how many workers can compute at a time.
    """
    start, stop = window
    workers = len(alive)
    borders = {start, stop}
    for interval in (i for worker in (*alive, *disturbed) for i in worker):
        borders |= {min(max(border, start), stop) for border in interval}
    ordered = sorted(borders)
    total = 0.0
    for left, right in itertools.pairwise(ordered):
        middle = (left + right) / 2
        present = sum(
            _holds(there, middle) and not _holds(held, middle)
            for there, held in zip(alive, disturbed, strict=True)
        )
        total += capacity(present, workers, cores) * (right - left)
    return total


def _holds(intervals: Iterable[Interval], moment: float) -> bool:
    return any(start <= moment < stop for start, stop in intervals)


def times_alive(
    events: Iterable[Mapping[str, Any]], deaths: Iterable[tuple[float, int]], workers: int,
    end_s: float,
) -> list[list[Interval]]:  # fmt: skip
    """When each worker was there, by the run's member events and the moments of its killing.

    Args:
        events: events of metrics.jsonl, in order; those of other kinds are passed over.
        deaths: when a fault killed which worker: the run hears of it a little later.
        workers: how many slots there are.
        end_s: until when who is there counts as there.
    """
    changes: list[tuple[float, int, bool]] = [(at, worker, False) for at, worker in deaths]
    for event in events:
        if event.get("event") == "member" and event.get("kind") == "worker":
            state = event["state"]
            if state in ("ready", "died", "suspected", "left", "put_aside"):
                changes.append((event["time_s"], event["id"], state == "ready"))
    since: dict[int, float] = {}
    found: list[list[Interval]] = [[] for _ in range(workers)]
    # At the same moment a death comes first: whoever is ready is the one that came after.
    for at, worker, there in sorted(changes):
        if worker >= workers:
            continue
        if there:
            since.setdefault(worker, at)
        elif worker in since:
            found[worker].append((since.pop(worker), at))
    for worker, start in since.items():
        found[worker].append((start, max(start, end_s)))
    return found


def booked_between(
    events: Iterable[Mapping[str, Any]], window: Interval
) -> tuple[int, Interval] | None:
    """Samples booked on every shard in a window, and the part of it that the count is of.

    The count is exact at each ``progress`` event, so the window shrinks to the outermost two in it;
    None where there are not two.
    """
    counts = [
        (event["time_s"], event["samples"])
        for event in events
        if event.get("event") == "progress" and window[0] <= event["time_s"] <= window[1]
    ]
    if len(counts) < 2 or counts[0][0] == counts[-1][0]:
        return None
    (first_s, first), (last_s, last) = counts[0], counts[-1]
    return last - first, (first_s, last_s)


def speed(events: Sequence[Mapping[str, Any]]) -> float | None:
    """Samples/s of a run while it trained: between the first and the last event of its training."""
    progress = [e for e in events if e.get("event") == "progress"]
    begun = [e["time_s"] for e in progress if e["samples"] > progress[0]["samples"]]
    # The last ones may be of the time in which all is done and the checkpoint is written.
    most = max((e["samples"] for e in progress), default=0)
    ended = [e["time_s"] for e in progress if e["samples"] == most]
    if not begun or not ended or ended[0] <= begun[0]:
        return None
    found = booked_between(progress, (begun[0], ended[0]))
    if found is None:
        return None
    samples, (start, stop) = found
    return samples / (stop - start)
