r"""Asynchronous SGD on a parameter server that is sharded by parameter block.

Formula. Worker i holds x_i, a replica of the parameters, and works through the batches of its
lease. For each batch b::

    g   <- grad loss(x_i; b) + weight_decay * x_i
    g   <- clip(g)                                by global norm, then by value
    x_i <- x_i - eta * g                          (only where the replica is kept: below)
    u   <- u + g                                  the update: a sum over the exchange period

After ``exchange_period`` batches it pushes u and, without waiting for anybody, pulls x and mixes::

    server, per shard:  x <- optimizer(x, u; eta * s(tau))      tau: staleness of this update
    worker:             x_i <- (1 - beta) * x_i + beta * x      beta: ``mixing``

With ``mixing = 1`` and ``exchange_period = 1`` the replica is overwritten by each pull, so the
local step is left out: this is plain asynchronous SGD (Tsitsiklis, Bertsekas & Athans 1986; Dean et
al., NIPS 2012, "Downpour"; Recht et al., arXiv 1106.5730, for the lock-free relative). With
``mixing < 1`` the replicas explore on their own and are drawn back elastically, in the spirit of
Zhang, Choromanska & LeCun (arXiv 1412.6651), whose method also moves the centre.

``s(tau)`` comes from the staleness policy, the server's optimizer is any class of ``torch.optim``
on the flat shard, ``eta`` follows a schedule over consumed samples.

When to use it: workers of uneven speed, jitter, machines that come and go, steps that are long
against a push. When not: equal machines on a fast network that never die; all-reduce then gives the
same throughput without staleness. Momentum on the server multiplies what staleness does, so lower
the learning rate or the momentum as workers are added.

>>> from tardygrad.methods.async_sgd import AsyncSGD
>>> AsyncSGD(optimizer={"class": "SGD", "arguments": {"lr": 0.1}}).learning_rate(0)
0.1
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field

from tardygrad.balancing import Pushes
from tardygrad.methods.base import Outcome, Step
from tardygrad.methods.rules.gradients import GradientMethod
from tardygrad.methods.rules.settings import gradient

if TYPE_CHECKING:
    from tardygrad.models.base import ModelAdapter


class AsyncSGD(GradientMethod):
    """Settings of asynchronous SGD; see the module's text for the formula."""

    pushes: ClassVar[Pushes] = "sum"

    name: Literal["async_sgd"] = "async_sgd"
    mixing: float = Field(default=1.0, gt=0, le=1)
    """beta: 1 takes the pulled parameters as they are; less keeps part of the own replica."""

    @property
    def keeps_replica(self) -> bool:
        """Whether a pull leaves something of the worker's own parameters."""
        return self.mixing < 1.0

    def worker_rule(self, adapter: ModelAdapter) -> AsyncSGDWorker:
        """The rule of one worker over its own model."""
        return AsyncSGDWorker(self, adapter)

    def serial_optimizer(self, parameters: list[torch.Tensor]) -> torch.optim.Optimizer | None:
        """The servers' optimizer over the whole model, where nothing is done beside it."""
        plain = self.is_plain and not self.keeps_replica and not self.admission.gathers
        return self.optimizer.build(*parameters) if plain else None


class AsyncSGDWorker:
    """Gradients on the replica, summed over the exchange period."""

    def __init__(self, method: AsyncSGD, adapter: ModelAdapter) -> None:
        self._method = method
        self._adapter = adapter
        size = adapter.layout.parameters_size
        self._overwrites = method.mixing == 1.0
        # With one batch an exchange and full mixing, the next pull overwrites any local step.
        self._steps_locally = method.longest_period > 1 or not self._overwrites
        # Overwriting pulls go straight into the model's own vector.
        self._own = adapter.flat[:size]
        self._pulled = self._own if self._overwrites else torch.empty(size)

    @property
    def borrows(self) -> bool:
        """Nothing is changed between two pulls, and each pull overwrites all."""
        return self._overwrites and not self._steps_locally

    def target(self, *, fresh: bool) -> torch.Tensor:
        """Where a pull must be written: float32 ``[parameters_size]``."""
        return self._own if fresh else self._pulled

    def pulled(self, *, fresh: bool) -> None:
        """Take the pulled parameters, or mix them into the replica."""
        if fresh or self._overwrites:
            self._adapter.load(self._own)
        else:
            self._adapter.blend(self._pulled, self._method.mixing)

    def compute(self, steps: Iterable[Step], out: torch.Tensor) -> Outcome:
        """Train the steps; ``out`` becomes the sum of their (decayed, clipped) gradients."""
        adapter, method = self._adapter, self._method
        total = 0.0
        count = 0
        for step in steps:
            total += gradient(adapter, method, step)
            adapter.write_gradient(out, add=count > 0)
            count += 1
            if self._steps_locally:
                adapter.step(method.learning_rate(step.consumed) * step.merged)
        return Outcome(total / max(count, 1), count)
