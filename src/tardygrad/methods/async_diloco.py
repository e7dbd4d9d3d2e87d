r"""Asynchronous DiLoCo: each worker's delta counts as it comes, with delayed Nesterov momentum.

Formula (Liu et al., arXiv 2401.09135, algorithm 3). Momentum applied with every single arrival
would amplify: four equal updates would move x by (4 + 4b + 3b^2 + 2b^3 + b^4) epsilon g. So the
momentum is renewed with every N-th arrival only, N = ``momentum_every``::

    Delta <- Delta + delta
    every N-th:  m <- beta m + Delta / N;  Delta <- 0
                 x <- x - epsilon [(1 - cN + c) beta m + delta / N]
    else:        x <- x - epsilon [c beta m + delta / N]              c = ``momentum_share``

With N = 1 it is the outer step of ``diloco``. Take about as many as there are workers. The
staleness policy scales delta.

``stripes``, ``delay`` and ``mixing`` are those of ``diloco``: 1 / P of the model at a time.

When to use it: islands of uneven speed with slow links between them. When not: equal workers, where
``diloco`` takes the same time and wants no tuning of N.

The paper's dynamic local steps, H_i = floor(H v_i / max v), are ``balance: {name: steps}``.

>>> from tardygrad.methods.async_diloco import AsyncDiLoCo
>>> AsyncDiLoCo().admission.name
'at_once'
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator

from tardygrad.methods.base import NOBODY, Origin
from tardygrad.methods.rules.optimizers import OptimizerConfig, adamw, sgd
from tardygrad.methods.rules.settings import GRADIENT
from tardygrad.methods.rules.stripes import StripedMethod


class AsyncDiLoCo(StripedMethod):
    """Settings of asynchronous DiLoCo; see the module's text for the formula."""

    carries: ClassVar[tuple[str, ...]] = GRADIENT

    name: Literal["async_diloco"] = "async_diloco"
    exchange_period: int = Field(default=100, ge=1)
    """H: inner steps between two exchanges; a fragment's end ends the exchange too."""
    optimizer: OptimizerConfig = Field(default_factory=lambda: adamw(1e-3))
    """The workers\' optimizer, any of ``torch.optim``, on the flat vector."""
    outer: OptimizerConfig = Field(default_factory=lambda: sgd(0.7, momentum=0.9))
    """``SGD``: its ``lr`` is epsilon, its ``momentum`` beta."""
    momentum_every: int = Field(default=4, ge=1)
    """N: the momentum is renewed with every N-th update."""
    momentum_share: float = Field(default=0.0, ge=0, le=1)
    """c: how much of the momentum the updates in between carry."""

    @model_validator(mode="after")
    def _own_outer_step(self) -> Self:
        if self.outer.class_name != "SGD" or set(self.outer.arguments) - {"lr", "momentum"}:
            raise ValueError(
                "outer: async_diloco has an outer step of its own, with no argument but lr and "
                f"momentum of SGD, got {self.outer.class_name} with {self.outer.arguments}"
            )
        if self.momentum_share * self.momentum_every > 1:
            raise ValueError(
                f"momentum_share must be at most 1 / momentum_every (1/{self.momentum_every}), got "
                f"{self.momentum_share:g}"
            )
        return self

    def server_rule(self, parameters: torch.Tensor) -> DelayedNesterov:
        """The rule of one shard, over a tensor that it changes in place."""
        return DelayedNesterov(self, parameters)


class DelayedNesterov:
    """The outer step of one shard."""

    def __init__(self, method: AsyncDiLoCo, parameters: torch.Tensor) -> None:
        arguments = method.outer.arguments
        self._rate, self._beta = method.outer.learning_rate, float(arguments.get("momentum", 0.0))
        self._every, self._share = method.momentum_every, method.momentum_share
        self.parameters = parameters
        self._momentum = torch.zeros_like(parameters)
        self._sum = torch.zeros_like(parameters)
        self._count = 0

    def apply(
        self,
        update: torch.Tensor,
        scale: float,
        consumed: int,
        out: torch.Tensor | None = None,
        origin: Origin = NOBODY,
    ) -> None:
        """One arrival."""
        every, share = self._every, self._share
        self._sum.add_(update, alpha=scale)
        self._count += 1
        part = share
        if self._count == every:
            self._momentum.mul_(self._beta).add_(self._sum, alpha=1 / every)
            self._sum.zero_()
            self._count = 0
            part = 1 - share * every + share
        target = self.parameters if out is None else out
        torch.add(self.parameters, update, alpha=-self._rate * scale / every, out=target)
        if part:
            target.add_(self._momentum, alpha=-self._rate * part * self._beta)
        self.parameters = target

    def state(self) -> dict[str, torch.Tensor]:
        """Copies of momentum, sum, and the number of arrivals in it."""
        return {
            "momentum": self._momentum.clone(),
            "sum": self._sum.clone(),
            "count": torch.tensor(self._count),
        }

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Take up what :meth:`state` returned."""
        self._momentum, self._sum = state["momentum"].clone(), state["sum"].clone()
        self._count = int(state["count"])
