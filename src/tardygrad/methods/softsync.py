r"""n-softsync: a step takes the mean of the next c updates, however stale each is.

Formula (Zhang et al., IJCAI 2016, arXiv 1511.05950)::

    G <- the next c = ``admission.updates`` gradients that arrive
    x <- optimizer(x, mean of s(tau_i) g_i, weighted by samples)

Nobody waits. c = 1 is asynchronous SGD, c = workers a synchronous-like batch with the staleness of
one step; the paper's n-softsync has c = workers / n. Their rescue of the learning rate, alpha_0 /
tau, is the staleness policy ``inverse``: here it weighs each gradient in the mean.

When to use it: many workers, for whose staleness asynchronous SGD would need too small a rate.
When not: few workers.

>>> from tardygrad.methods.softsync import Softsync
>>> Softsync().admission.updates
4
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tardygrad.admission import Admission, Collect
from tardygrad.methods.rules.gradients import GradientMethod


class Softsync(GradientMethod):
    """Settings of n-softsync; see the module's text for the formula."""

    name: Literal["softsync"] = "softsync"
    admission: Admission = Field(default_factory=Collect)
    """``collect``, whose ``updates`` is c."""
