"""Learning-rate schedules: a factor on the base rate as a function of consumed samples.

The clock is the number of samples that the run has consumed, not updates or seconds: it means the
same for one worker and for forty, and a server knows it from its own ledger.

>>> Cosine(total=1000).factor(500)
0.5
>>> Step(every=100, gamma=0.1).factor(250) == 0.1 ** 2
True
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from tardygrad.sections import Section, named


class _Schedule(Section):
    warmup: int = Field(default=0, ge=0)
    """Samples over which the rate grows linearly from (almost) zero."""

    def factor(self, consumed: int) -> float:
        """The factor on the base learning rate after ``consumed`` samples."""
        if consumed < self.warmup:
            return (consumed + 1) / self.warmup
        return self.after_warmup(consumed - self.warmup)

    def after_warmup(self, consumed: int) -> float:
        """The factor ``consumed`` samples after the warm-up."""
        return 1.0


class Constant(_Schedule):
    """Always 1 (after the warm-up)."""

    name: Literal["constant"] = "constant"


class Step(_Schedule):
    """``gamma`` to the power of the number of whole ``every`` samples."""

    name: Literal["step"] = "step"
    every: int = Field(ge=1)
    gamma: float = Field(default=0.1, gt=0)

    def after_warmup(self, consumed: int) -> float:
        """The factor ``consumed`` samples after the warm-up."""
        return float(self.gamma ** (consumed // self.every))


class Linear(_Schedule):
    """From 1 to ``end`` over ``total`` samples."""

    name: Literal["linear"] = "linear"
    total: int = Field(ge=1)
    end: float = Field(default=0.0, ge=0)

    def after_warmup(self, consumed: int) -> float:
        """The factor ``consumed`` samples after the warm-up."""
        done = min(consumed / self.total, 1.0)
        return 1.0 + (self.end - 1.0) * done


class Cosine(_Schedule):
    """Half a cosine from 1 to ``end`` over ``total`` samples (arXiv 1608.03983)."""

    name: Literal["cosine"] = "cosine"
    total: int = Field(ge=1)
    end: float = Field(default=0.0, ge=0)

    def after_warmup(self, consumed: int) -> float:
        """The factor ``consumed`` samples after the warm-up."""
        done = min(consumed / self.total, 1.0)
        return self.end + (1.0 - self.end) * (1.0 + math.cos(math.pi * done)) / 2.0


Schedule = Annotated[
    Constant | Step | Linear | Cosine, Field(discriminator="name"), BeforeValidator(named)
]
