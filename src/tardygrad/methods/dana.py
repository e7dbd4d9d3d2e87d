r"""DANA: momentum for each worker at the servers, and parameters sent out ahead of time.

Formula (Hakimi et al., arXiv 1907.11612, DANA-Zero). The servers keep a momentum for each worker i,
and send out where the momenta of all will have brought the parameters::

    v_i   <- gamma v_i + g
    theta <- theta - eta v_i
    sent:    theta - eta gamma sum_j v_j              gamma = ``momentum``

So a gradient is computed near where it will be applied, as with Nesterov's momentum, and one worker
gives just that. What is sent is also what is tested and saved as the model; theta goes with the
snapshots. eta is the learning rate of ``optimizer``, which must be plain SGD.

When to use it: momentum with many workers, where one momentum for all multiplies the staleness.
When not: without momentum; and a shard holds a vector for each worker.

>>> from tardygrad.methods.dana import DANA
>>> DANA().momentum
0.9
"""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator

from tardygrad.methods.base import NOBODY, Origin
from tardygrad.methods.rules import tables
from tardygrad.methods.rules.gradients import GradientMethod
from tardygrad.methods.rules.settings import rate_alone, require_rate_alone


class DANA(GradientMethod):
    """Settings of DANA; see the module's text for the formula."""

    name: Literal["dana"] = "dana"
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """gamma."""

    @classmethod
    def taking_over(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Of another's optimizer the learning rate."""
        return rate_alone(settings)

    @model_validator(mode="after")
    def _plain_steps(self) -> Self:
        require_rate_alone(self.optimizer, self.name)
        return self

    def server_rule(self, parameters: torch.Tensor) -> DANAServer:
        """The rule of one shard, over a tensor that it changes in place."""
        return DANAServer(self, parameters)


class DANAServer:
    """One shard: ``parameters`` is what is sent."""

    def __init__(self, method: DANA, parameters: torch.Tensor) -> None:
        self._method = method
        self.parameters = parameters
        self._theta = parameters.clone()
        self._momenta: dict[int, torch.Tensor] = {}
        self._sum = torch.zeros_like(parameters)

    def apply(
        self,
        update: torch.Tensor,
        scale: float,
        consumed: int,
        out: torch.Tensor | None = None,
        origin: Origin = NOBODY,
    ) -> None:
        """Step with the worker's own momentum."""
        gamma, rate = self._method.momentum, self._method.learning_rate(consumed)
        momentum = self._momenta.setdefault(origin.worker, torch.zeros_like(update))
        self._sum.sub_(momentum)
        momentum.mul_(gamma).add_(update, alpha=scale)
        self._sum.add_(momentum)
        self._theta.add_(momentum, alpha=-rate)
        target = self.parameters if out is None else out
        torch.add(self._theta, self._sum, alpha=-rate * gamma, out=target)
        self.parameters = target

    def state(self) -> dict[str, torch.Tensor]:
        """theta, each worker's momentum, and their sum."""
        momenta = tables.to_state("momentum", self._momenta)
        return {"theta": self._theta.clone(), "sum": self._sum.clone(), **momenta}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Take up what :meth:`state` returned."""
        self._theta, self._sum = state["theta"].clone(), state["sum"].clone()
        self._momenta = tables.from_state("momentum", dict(state))
