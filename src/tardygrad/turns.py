"""Turns: which shards a worker exchanges when, if it does not exchange all of them at once.

A *stripe* is a group of shards that are exchanged together; with P stripes, shard s is of stripe
s mod P. An exchange of H batches is cut into P *segments* of floor(H / P) batches each; at the end
of each segment it is the next stripe's turn: the worker pushes how far this stripe came since its
last turn. ``delay`` batches later, but before the next push, it takes in what came of it (Douillard
et al., arXiv 2501.18512, algorithm 2: their fragments are stripes here, their tau the delay).

>>> turns = Turns(2, delay=3)
>>> turns.shards(1, of=5), turns.segment(9), turns.returns_at(10, 14), turns.returns_at(10, 11)
((1, 3), 4, 13, 10)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Turns(NamedTuple):
    """How many ``stripes`` there are, and after how many batches one that was pushed is back."""

    stripes: int
    delay: int = 0

    def stripe(self, shard: int) -> int:
        """The stripe that a shard belongs to."""
        return shard % self.stripes

    def shards(self, stripe: int, *, of: int) -> tuple[int, ...]:
        """The shards of a stripe, of so many in all."""
        return tuple(range(stripe, of, self.stripes))

    def segment(self, batches: int) -> int:
        """Batches between two turns, for an exchange of so many."""
        return max(1, batches // self.stripes)

    def returns_at(self, first: int, stop: int) -> int:
        """Before which batch of the segment ``[first, stop)`` what was pushed is taken in.

        At least one batch lies between that and the next push.
        """
        return min(first + self.delay, stop - 1)

    def next_after(self, versions: Sequence[int]) -> int:
        """Whose turn it is, by the versions of the shards.

        All workers push the stripes in the same order, so the versions are a staircase, and whoever
        comes anew finds its place: the stripe below the first step down.

        >>> Turns(3).next_after([5, 5, 5]), Turns(3).next_after([6, 5, 5])
        (0, 1)
        """
        lowest = [min(versions[stripe :: self.stripes]) for stripe in range(self.stripes)]
        return next((s for s in range(1, self.stripes) if lowest[s] < lowest[s - 1]), 0)
