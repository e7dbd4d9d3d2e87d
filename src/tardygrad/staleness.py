r"""Staleness policies: what an update that is tau versions old is worth.

Each policy returns a :class:`Verdict`: the factor s(tau) on the learning rate, or that the update
is dropped. ``workers`` is the number of workers that there are.

>>> Inverse().judge(0, workers=4).scale, Inverse().judge(3, workers=4).scale
(1.0, 0.3333333333333333)
>>> DelayAdaptive().judge(8, workers=4).scale
0.5
>>> CutOff(below=4).judge(4, workers=4).accepted
False
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field, model_validator

from tardygrad.sections import Section, named


class Verdict(NamedTuple):
    """``accepted`` with ``scale``, or refused: booked as dropped, or to be computed ``again``."""

    accepted: bool
    scale: float
    again: bool
    reason: str


_FULL = Verdict(True, 1.0, False, "full step")


class _Policy(Section):
    @property
    def counts_workers(self) -> bool:
        """Whether the number of workers matters."""
        return False

    @property
    def limit(self) -> int | None:
        """The lowest staleness that is never applied, or None."""
        return None

    @property
    def stop_at(self) -> int | None:
        """The staleness at which a computation is ended early, or None."""
        return None


class Constant(_Policy):
    """s(tau) = 1."""

    name: Literal["constant"] = "constant"

    def judge(self, staleness: int, workers: int) -> Verdict:
        """Every update counts in full."""
        return _FULL


class Inverse(_Policy):
    """s(tau) = 1/tau, and 1 at tau = 0 (Zhang et al., IJCAI 2016, arXiv 1511.05950)."""

    name: Literal["inverse"] = "inverse"

    def judge(self, staleness: int, workers: int) -> Verdict:
        """The learning rate divided by the staleness."""
        if staleness <= 1:
            return _FULL
        return Verdict(True, 1.0 / staleness, False, f"1/{staleness}")


class Polynomial(_Policy):
    """s(tau) = (1 + tau) ** -power (Xie et al., arXiv 1903.03934, with power 0.5)."""

    name: Literal["polynomial"] = "polynomial"
    power: float = Field(default=0.5, gt=0)

    def judge(self, staleness: int, workers: int) -> Verdict:
        """The learning rate falls with a power of the staleness."""
        scale = float((1 + staleness) ** -self.power)
        return Verdict(True, scale, False, f"(1+{staleness})^-{self.power}")


class DelayAdaptive(_Policy):
    """s(tau) = n / max(n, tau) for n workers (Mishchenko et al., NeurIPS 2022, 2206.07638)."""

    name: Literal["delay_adaptive"] = "delay_adaptive"

    @property
    def counts_workers(self) -> bool:
        """What is usual grows with their number."""
        return True

    def judge(self, staleness: int, workers: int) -> Verdict:
        """Full steps up to the usual staleness, smaller ones beyond."""
        if staleness <= workers:
            return _FULL
        return Verdict(True, workers / staleness, False, f"{workers}/{staleness}")


class CutOff(_Policy):
    """Applied only if tau < ``below`` (Ringmaster ASGD, ICML 2025, arXiv 2501.16168).

    A refused update's samples are booked as dropped, or (``again``) computed again from fresh
    parameters. With ``stops`` a computation that has become too stale is not even finished (the
    paper's variant with calculation stops): its worker pulls and begins the same batches anew.
    """

    name: Literal["cut_off"] = "cut_off"
    below: int = Field(default=16, ge=1)
    again: bool = False
    stops: bool = False

    @model_validator(mode="after")
    def _begins_anew(self) -> Self:
        if self.stops and not self.again:
            raise ValueError(
                "stops: an update that was never finished cannot be booked as dropped on some "
                "shards and count on others; set again: true, and its batches are computed anew"
            )
        return self

    @property
    def stop_at(self) -> int | None:
        """The staleness at which a computation is ended early."""
        return self.below if self.stops else None

    @property
    def limit(self) -> int | None:
        """The lowest staleness that is never applied."""
        return self.below

    def judge(self, staleness: int, workers: int) -> Verdict:
        """All or nothing."""
        if staleness < self.below:
            return _FULL
        return Verdict(False, 0.0, self.again, f"staleness {staleness}, limit {self.below}")


StalenessPolicy = Annotated[
    Constant | Inverse | Polynomial | DelayAdaptive | CutOff,
    Field(discriminator="name"),
    BeforeValidator(named),
]
