r"""Rennala SGD: a step takes the first S gradients at one point, whoever computes them.

Formula. Nobody waits: a worker that has pushed reads again and, while the round is open, computes
another gradient at the same x (Tyurin & Richtarik 2023, arXiv 2305.12387, algorithm 2)::

    G <- the first S = ``admission.updates`` gradients computed at x
    x <- optimizer(x, mean of G)

A gradient that was computed at an older x is dropped, and booked as dropped; with
``staleness.again`` its batch is computed anew instead.

When to use it: machines of very uneven speed, where the fast ones should fill the batch: with the
best S its time to a given accuracy is optimal up to constants (same source). When not: samples are
scarce, since late gradients are thrown away.

>>> from tardygrad.methods.rennala import Rennala
>>> Rennala().staleness.judge(1, workers=4).accepted
False
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tardygrad.admission import Admission, Collect
from tardygrad.methods.rules.gradients import GradientMethod
from tardygrad.staleness import CutOff, StalenessPolicy


class Rennala(GradientMethod):
    """Settings of Rennala SGD; see the module's text for the formula."""

    name: Literal["rennala"] = "rennala"
    admission: Admission = Field(default_factory=Collect)
    """``collect``, whose ``updates`` is S."""
    staleness: StalenessPolicy = Field(default_factory=lambda: CutOff(below=1))
    """Only gradients at the newest parameters count."""
