r"""Schedules of the exchange period H over consumed samples.

H decides what is sent: rarely while the rate is low, say, and often while it is high. ``base`` is
the method's ``exchange_period``.

>>> Piecewise(at=((60_000, 16), (120_000, 64))).period(90_000, 4, lambda consumed: 0.1)
16
>>> Quadratic(alpha=0.02).period(0, 4, lambda consumed: 0.004)
25
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from tardygrad.sections import Section, named

Rate = Callable[[int], float]
"""The learning rate after so many samples."""

Entry = Annotated[tuple[int, int], Field(strict=False)]
"""``[samples, H]``: from so many consumed samples on, H."""


class Same(Section):
    """Always ``exchange_period``."""

    name: Literal["constant"] = "constant"

    def period(self, consumed: int, base: int, rate: Rate) -> int:
        """Batches of an exchange that begins after ``consumed`` samples."""
        return base

    def longest(self, base: int) -> int:
        """No exchange has more batches."""
        return base


class Piecewise(Section):
    """``exchange_period`` at first; from each of the given numbers of samples on, the H beside it.

    Post-local SGD (Lin et al., arXiv 1808.07217) with more than one switch.
    """

    name: Literal["piecewise"] = "piecewise"
    at: Annotated[tuple[Entry, ...], Field(strict=False)]

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        samples = [entry[0] for entry in self.at]
        if not samples:
            raise ValueError("at: at least one entry [samples, batches] is needed")
        if samples != sorted(set(samples)) or samples[0] < 0:
            raise ValueError(f"at: samples must grow from entry to entry, from 0 on, got {samples}")
        if min(period for _, period in self.at) < 1:
            raise ValueError("at: each entry is [samples, batches], with at least 1 batch")
        return self

    def period(self, consumed: int, base: int, rate: Rate) -> int:
        """Batches of an exchange that begins after ``consumed`` samples."""
        reached = [period for samples, period in self.at if samples <= consumed]
        return reached[-1] if reached else base

    def longest(self, base: int) -> int:
        """No exchange has more batches."""
        return max(base, *(period for _, period in self.at))


class Quadratic(Section):
    """H = max(``exchange_period``, floor((alpha / rate)^2)), at most ``most``.

    The quadratic synchronization rule (Gu et al., ICLR 2024, arXiv 2310.14423): the lower the rate,
    the longer workers stay on their own. While the rate warms up, H is what it will be just after.
    """

    name: Literal["quadratic"] = "quadratic"
    alpha: float = Field(gt=0)
    most: int = Field(default=64, ge=1)
    """H never grows beyond this; a fragment should be as long."""

    def period(self, consumed: int, base: int, rate: Rate) -> int:
        """Batches of an exchange that begins after ``consumed`` samples."""
        now = rate(consumed)
        # The ratio first: its square may be more than a float can hold.
        grown = (
            self.most if now * math.sqrt(self.most) <= self.alpha else int((self.alpha / now) ** 2)
        )
        return max(base, grown)

    def longest(self, base: int) -> int:
        """No exchange has more batches."""
        return max(base, self.most)


ExchangeSchedule = Annotated[
    Same | Piecewise | Quadratic, Field(discriminator="name"), BeforeValidator(named)
]
