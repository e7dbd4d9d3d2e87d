"""Meetings: two workers average their replicas, one of them while it computes.

Theory of operation. Before each exchange a worker does four things, in this order. It sees whether
another one has *taken* what it had offered, and then adds the difference that was left for it
(``back``). It takes one open offer p, of another worker, and goes half the way to it (``took``)::

    d <- (x - p) / 2;   x <- x - d;   left for who offered p: d

It writes both down (``Met``). Then it *offers* x as it is now, and computes. An offer is taken at
most once, so whatever one side gains the other one loses: the sum of all replicas is what the
workers' own steps make it. Nobody waits: who is slow, frozen or dead is taken once at most, until
it makes its next offer.

Whose offers a worker looks at first is drawn from the seed, the worker and the number of its
exchange (``order``). Which of them are open is a matter of time. What a worker wrote down is all
that time decided, so from the traces and these entries the run can be computed again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tardygrad.protocol.events import Read

_MASK = (1 << 64) - 1


class Back(NamedTuple):
    """The worker's offer number ``seq`` was taken by ``worker`` before its exchange ``at``."""

    seq: int
    worker: int
    at: int


class Took(NamedTuple):
    """The offer that ``worker`` made before its exchange ``seq``."""

    worker: int
    seq: int


class Met(NamedTuple):
    """What a worker did before it computed exchange ``seq``, and which batches it then began.

    ``reads`` are the versions that its session began with, or has looked at since.
    """

    worker: int
    session: int
    seq: int
    fence: int
    epoch: int
    fragment: int
    first: int
    stop: int
    reads: tuple[Read, ...]
    back: Back | None
    took: Took | None


def order(seed: int, worker: int, seq: int, workers: int) -> Iterator[int]:
    """All other workers, in the order in which this one looks at their offers before ``seq``.

    Each order is as likely as every other (Fisher & Yates, with splitmix64 of all arguments).
    """
    others = [other for other in range(workers) if other != worker]
    state = _mixed(_mixed(seed & _MASK) ^ (worker + 1)) ^ (seq & _MASK)
    while others:
        state = (state + 0x9E3779B97F4A7C15) & _MASK
        chosen = _mixed(state) % len(others)
        others[chosen], others[-1] = others[-1], others[chosen]
        yield others.pop()


def _mixed(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
