r"""Stale-synchronous parallel SGD: asynchronous, but nobody runs further ahead than a bound.

Formula (Ho et al., NIPS 2013). Each update takes effect at once, as in ``async_sgd``; a worker
whose clock is c reads only when the slowest member's clock is at least c - s, and a read includes
its own writes::

    x <- optimizer(x, g_i)          s = ``consistency.bound``

s = 0 is bulk-synchronous: nobody begins a clock before all have ended the one before, and its
gradients are applied one after the other. Where all workers read before the first of them pushes,
plain SGD with 1/n of the learning rate is then ``sync_sgd`` with n workers.

When to use it: workers of about the same mean speed with hiccups, where a guarantee on staleness
matters. When not: lasting differences in speed; then everybody waits for the slowest in the end.

>>> from tardygrad.methods.ssp import SSPSGD
>>> SSPSGD().consistency.need(7)
4
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tardygrad.consistency import SSP, Consistency
from tardygrad.methods.rules.gradients import GradientMethod


class SSPSGD(GradientMethod):
    """Settings of stale-synchronous SGD; see the module's text for the formula."""

    name: Literal["ssp"] = "ssp"
    consistency: Consistency = Field(default_factory=SSP)
    """``ssp``, with its ``bound``."""
