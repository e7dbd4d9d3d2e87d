r"""DC-ASGD: asynchronous SGD that corrects a stale gradient by a guess at its change.

Formula (Zheng et al., ICML 2017, arXiv 1609.08326). A gradient g that was computed at x_read is
applied at x; the diagonal of g g^T stands for the Hessian in a Taylor expansion::

    x   <- optimizer(x, g + lambda_t g * g * (x - x_read))            elementwise
    constant:  lambda_t = ``strength``
    adaptive:  MS_i <- m MS_i + (1 - m) g * g
               lambda_t = ``strength`` / sqrt(MS_i + 1e-7)            m = ``decay``, worker i's MS

The paper's settings are 2 and 0.95 (adaptive), 0.04 (constant). The server looks x_read up among
its last ``history`` versions; what is older counts as the oldest of them.

When to use it: many workers, for whose staleness plain asynchronous SGD loses accuracy. When not:
memory for ``history`` copies of each shard, in its snapshots too, is not there.

>>> from tardygrad.methods.dc_asgd import DCASGD
>>> DCASGD().adaptive
True
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from tardygrad.methods.base import NOBODY, Origin
from tardygrad.methods.rules import tables
from tardygrad.methods.rules.gradients import GradientMethod
from tardygrad.methods.rules.optimizers import OptimizerServer
from tardygrad.methods.rules.past import Past

_EPSILON = 1e-7


class DCASGD(GradientMethod):
    """Settings of delay-compensated SGD; see the module's text for the formula."""

    name: Literal["dc_asgd"] = "dc_asgd"
    adaptive: bool = True
    """Whether the strength is divided by the root of the mean square of the worker's gradients."""
    strength: float = Field(default=2.0, ge=0)
    """lambda (constant) or lambda_0 (adaptive)."""
    decay: float = Field(default=0.95, ge=0, lt=1)
    """m, the memory of the mean square."""
    history: int = Field(default=16, ge=1)
    """So many of its versions a shard keeps."""

    def server_rule(self, parameters: torch.Tensor) -> DCASGDServer:
        """The rule of one shard, over a tensor that it changes in place."""
        return DCASGDServer(self, parameters)


class DCASGDServer(OptimizerServer):
    """An optimizer that is given corrected gradients."""

    def __init__(self, method: DCASGD, parameters: torch.Tensor) -> None:
        super().__init__(method.optimizer, method.schedule, parameters)
        self._method = method
        self._past = Past(parameters, method.history)
        self._squares: dict[int, torch.Tensor] = {}

    def apply(
        self,
        update: torch.Tensor,
        scale: float,
        consumed: int,
        out: torch.Tensor | None = None,
        origin: Origin = NOBODY,
    ) -> None:
        """Correct the update for what happened since its worker read, and step."""
        method = self._method
        squared = update * update
        correction = (self.parameters - self._past.back(origin.staleness)).mul_(squared)
        if method.adaptive:
            mean = self._squares.setdefault(origin.worker, torch.zeros_like(update))
            mean.mul_(method.decay).add_(squared, alpha=1 - method.decay)
            correction.div_((mean + _EPSILON).sqrt_())
        super().apply(update.add(correction, alpha=method.strength), scale, consumed, out)
        self._past.add(self.parameters)

    def state(self) -> dict[str, torch.Tensor]:
        """The optimizer's state, the versions that are kept, and the mean squares."""
        squares = tables.to_state("mean_square", self._squares)
        return {**super().state(), "past": self._past.state(), **squares}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Take up what :meth:`state` returned."""
        state = dict(state)
        self._past.load_state(state.pop("past"))
        self._squares = tables.from_state("mean_square", state)
        super().load_state(state)
