r"""Balancing: how much each worker trains between two exchanges, by its speed.

Leases balance by themselves: who is done takes the next fragment. These rules balance what lies
between two exchanges, so that workers of uneven speed come to them together. v_i is a worker's
speed in samples per second of computing, H the method's batches of an exchange::

    steps:  H_i = max(1, floor(H v_i / max v))          fewer local steps for the slow
    batch:  m_i = max(1, min(most, floor(v_i / min v))) larger batches for the fast: an exchange has
                                                        H steps of m_i merged batches each

A worker is told its *share*, v_i / max v or m_i: its exchange has floor(share H) batches, or fewer
at a fragment's end. How many batches a step merges follows from the range alone, ceil(batches / H),
so a trace says all that a replay must know.

>>> exchange(16, 0.25), exchange(16, 0.01), exchange(2, 3.0)
(4, 1, 6)
>>> merged(6, 2), steps_of(5, 2), merged(16, 16)
(3, 2, 1)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from tardygrad.sections import Section, named

_ROUNDING = 1e-6
"""What a measured ratio may lack of a whole number that it is."""

Pushes = Literal["mean", "sum", "way", "row"]
"""What a worker's update is: a mean gradient over the exchange, a sum of those of its steps, the
way that local training went, or one row of a table."""


_ROWS = "a table's rows count alike; leave balance at fixed"


class Fixed(Section):
    """Everybody trains as much between two exchanges, as ``exchange_period`` says."""

    reach: ClassVar[float] = 1.0

    name: Literal["fixed"] = "fixed"

    def problem(self, pushes: Pushes, *, gathers: bool) -> str:
        """Why a method that pushes this cannot be balanced so; empty if it can."""
        return ""


class BySteps(Section):
    """Local steps in proportion to speed (Liu et al., arXiv 2401.09135, "DyLU")."""

    reach: ClassVar[float] = 1.0
    extreme: ClassVar[str] = "fastest"

    name: Literal["steps"] = "steps"

    def measure(self, speeds: Mapping[int, float]) -> int:
        """The worker with whom the others are compared: the fastest."""
        return max(speeds, key=speeds.__getitem__)

    def share(self, ratio: float) -> float:
        """The share of a worker whose speed is so many times the fastest's."""
        return ratio

    def told(self, share: float) -> str:
        """What a share means, in words."""
        return f"{100 * share:.0f}% of the local steps"

    def problem(self, pushes: Pushes, *, gathers: bool) -> str:
        """Why a method that pushes this cannot be balanced so; empty if it can."""
        if pushes == "row":
            return _ROWS
        if pushes == "way" or (pushes == "mean" and gathers) or (pushes == "sum" and not gathers):
            return ""
        if pushes == "sum":
            return "a round would weigh sums of gradients by their samples once more"
        return "an update of fewer batches would count as much as one of many; take batch"


class ByBatch(Section):
    """Batches merged in proportion to speed, each sample counting alike.

    What an update of n samples weighs: in a round, n of the round's mean; at once, the learning
    rate times max(1, n / (H B)) for batches of B samples (linear scaling: Goyal et al., arXiv
    1706.02677).
    """

    extreme: ClassVar[str] = "slowest"

    name: Literal["batch"] = "batch"
    most: int = Field(default=8, ge=2)
    """How many batches are merged at most."""

    @property
    def reach(self) -> float:
        """The largest share there can be."""
        return float(self.most)

    def measure(self, speeds: Mapping[int, float]) -> int:
        """The worker with whom the others are compared: the slowest."""
        return min(speeds, key=speeds.__getitem__)

    def share(self, ratio: float) -> float:
        """The share of a worker whose speed is so many times the slowest's."""
        return float(min(max(1, math.floor(ratio + _ROUNDING)), self.most))

    def told(self, share: float) -> str:
        """What a share means, in words."""
        return f"batches merged {share:.0f} at a time"

    def problem(self, pushes: Pushes, *, gathers: bool) -> str:
        """Why a method that pushes this cannot be balanced so; empty if it can."""
        if pushes == "row":
            return _ROWS
        if pushes in ("mean", "sum") or (pushes == "way" and gathers):
            return ""
        return "larger batches do not bring local training further; take steps"


Balance = Annotated[Fixed | BySteps | ByBatch, Field(discriminator="name"), BeforeValidator(named)]


def exchange(period: int, share: float) -> int:
    """Batches of an exchange, for a worker with this share of the method's ``period``."""
    return period if share == 1.0 else max(1, math.floor(period * share + _ROUNDING))


def merged(batches: int, period: int) -> int:
    """How many of a range's batches make one step: more than one only beyond ``period``."""
    return -(-batches // period)


def steps_of(batches: int, period: int) -> int:
    """How many steps a range of so many batches takes; its last one may merge fewer."""
    return -(-batches // merged(batches, period))
