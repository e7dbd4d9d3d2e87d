r"""Elastic averaging SGD: replicas that explore, tied to a centre by a spring.

Formula (Zhang, Choromanska & LeCun, arXiv 1412.6651, algorithms 1 and 2). With every ``tau`` =
``exchange_period`` steps, x_i the worker's replica and c the centre at the servers::

    d   <- alpha (x_i - c)            the gradient of the first step is still taken at x_i
    x_i <- x_i - d
    c   <- c + d
    v   <- delta v - eta grad(x_i + delta v);  x_i <- x_i + v      tau times; delta = ``momentum``

delta = 0 is EASGD, delta > 0 EAMSGD (0.99 in the paper). The paper's alpha is 0.9 / p for p
workers. The centre is what is tested and saved. Its half of the exchange travels with the push at
the end of the period, so other workers see it up to tau steps later; a single worker cannot tell.

When to use it: long periods, many local minima, plenty of memory at the workers. When not: workers
die often: a replacement begins at the centre, and what the lost replica had found is lost.

>>> from tardygrad.methods.easgd import EASGD
>>> EASGD(alpha=0.9 / 8).alpha
0.1125
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from pydantic import Field, model_validator

from tardygrad.methods.base import Outcome, ServerRule, Step
from tardygrad.methods.rules.optimizers import OptimizerServer, sgd
from tardygrad.methods.rules.settings import (
    TrainingMethod,
    gradient,
    rate_alone,
    require_rate_alone,
)
from tardygrad.methods.schedules import Constant

if TYPE_CHECKING:
    from tardygrad.models.base import ModelAdapter


class EASGD(TrainingMethod):
    """Settings of elastic averaging SGD; see the module's text for the formula."""

    name: Literal["easgd"] = "easgd"
    exchange_period: int = Field(default=4, ge=1)
    """tau: steps between two exchanges."""
    in_flight: int = Field(default=0, ge=0, le=8)
    """Pushes that may be unanswered while the next range is computed; 0 waits for each answer."""
    alpha: float = Field(default=0.225, gt=0, le=1)
    """The spring: how much of the distance to the centre both sides give up."""
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """delta: Nesterov momentum at the workers; above 0 it is EAMSGD."""

    def worker_rule(self, adapter: ModelAdapter) -> EASGDWorker:
        """The rule of one worker over its own model."""
        return EASGDWorker(self, adapter)

    def server_rule(self, parameters: torch.Tensor) -> ServerRule:
        """The centre of one shard: it moves by what is pushed."""
        return OptimizerServer(sgd(1.0), Constant(), parameters)

    @classmethod
    def taking_over(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Of another's optimizer the learning rate."""
        return rate_alone(settings)

    @model_validator(mode="after")
    def _plain_steps(self) -> Self:
        require_rate_alone(self.optimizer, self.name)
        return self


class EASGDWorker:
    """A replica on a spring."""

    borrows = False

    def __init__(self, method: EASGD, adapter: ModelAdapter) -> None:
        self._method = method
        self._adapter = adapter
        self._model = adapter.flat[: adapter.layout.parameters_size]
        self._centre = torch.zeros_like(self._model)
        self._replica = torch.zeros_like(self._model)
        self._velocity = torch.zeros_like(self._model)
        self._distance = torch.zeros_like(self._model)
        self._gradient = torch.zeros_like(self._model)

    def target(self, *, fresh: bool) -> torch.Tensor:
        """Where a pull must be written: float32 ``[parameters_size]``."""
        return self._centre

    def pulled(self, *, fresh: bool) -> None:
        """Stretch the spring between the replica and the pulled centre."""
        if fresh:
            self._replica.copy_(self._centre)
            self._velocity.zero_()
        torch.sub(self._replica, self._centre, out=self._distance)
        self._distance.mul_(self._method.alpha)

    def compute(self, steps: Iterable[Step], out: torch.Tensor) -> Outcome:
        """Train the steps; ``out`` becomes what the centre must be lowered by: ``-d``."""
        method, adapter = self._method, self._adapter
        total, count = 0.0, 0
        for step in steps:
            torch.add(self._replica, self._velocity, alpha=method.momentum, out=self._model)
            adapter.load(self._model)
            total += gradient(adapter, method, step)
            adapter.write_gradient(self._gradient, add=False)
            if count == 0:
                self._replica.sub_(self._distance)
            self._velocity.mul_(method.momentum)
            self._velocity.sub_(self._gradient, alpha=method.learning_rate(step.consumed))
            self._replica.add_(self._velocity)
            count += 1
        torch.neg(self._distance, out=out)
        return Outcome(total / max(count, 1), count)
