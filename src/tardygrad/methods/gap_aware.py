r"""Gap-aware: asynchronous SGD that divides a stale gradient by how far the parameters moved.

Formula (Barkai, Hakimi & Schuster, ICLR 2020, arXiv 1909.10802). Not the number of versions counts
but the distance, elementwise and in units of a usual step::

    v   <- rho v + (1 - rho) (step / eta)^2          the last step of x; rho = ``decay``
    gap <- |x - x_read| / (eta_max sqrt(v))
    x   <- optimizer(x, g / (1 + gap))

The server looks x_read up among its last ``history`` versions; what is older counts as the oldest.

When to use it: staleness that varies much, momentum at the server. When not: as for ``dc_asgd``,
memory for ``history`` copies of each shard.

>>> from tardygrad.methods.gap_aware import GapAware
>>> GapAware().history
16
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from tardygrad.methods.base import NOBODY, Origin
from tardygrad.methods.rules.gradients import GradientMethod
from tardygrad.methods.rules.optimizers import OptimizerServer
from tardygrad.methods.rules.past import Past


class GapAware(GradientMethod):
    """Settings of gap-aware SGD; see the module's text for the formula."""

    name: Literal["gap_aware"] = "gap_aware"
    decay: float = Field(default=0.99, ge=0, lt=1)
    """rho, the memory of the mean squared step."""
    history: int = Field(default=16, ge=1)
    """So many of its versions a shard keeps."""

    def server_rule(self, parameters: torch.Tensor) -> GapAwareServer:
        """The rule of one shard, over a tensor that it changes in place."""
        return GapAwareServer(self, parameters)


class GapAwareServer(OptimizerServer):
    """An optimizer that is given damped gradients."""

    def __init__(self, method: GapAware, parameters: torch.Tensor) -> None:
        super().__init__(method.optimizer, method.schedule, parameters)
        self._decay = method.decay
        self._most = method.optimizer.learning_rate
        self._past = Past(parameters, method.history)
        self._square = torch.zeros_like(parameters)

    def apply(
        self,
        update: torch.Tensor,
        scale: float,
        consumed: int,
        out: torch.Tensor | None = None,
        origin: Origin = NOBODY,
    ) -> None:
        """Damp the update by the gap since its worker read, and step."""
        gap = (self.parameters - self._past.back(origin.staleness)).abs_()
        usual = self._square.sqrt().mul_(self._most)
        # Where nothing has moved yet there is no gap either.
        gap = torch.where(usual > 0, gap / usual, torch.zeros_like(gap))
        rate = self.rate(scale, consumed)
        super().apply(update / (1 + gap), scale, consumed, out)
        if rate > 0:
            step = (self.parameters - self._past.back(0)).div_(rate)
            self._square.mul_(self._decay).addcmul_(step, step, value=1 - self._decay)
        self._past.add(self.parameters)

    def state(self) -> dict[str, torch.Tensor]:
        """The optimizer's state, the versions that are kept, and the mean squared step."""
        return {**super().state(), "past": self._past.state(), "square": self._square.clone()}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Take up what :meth:`state` returned."""
        state = dict(state)
        self._past.load_state(state.pop("past"))
        self._square = state.pop("square").clone()
        super().load_state(state)
