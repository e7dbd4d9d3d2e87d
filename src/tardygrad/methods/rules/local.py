r"""Workers that train on their own and push how far they came.

Between two exchanges a worker takes ``exchange_period`` steps of an inner optimizer from the
parameters that it pulled, and pushes the way back::

    delta = theta_pulled - theta_local

to an optimizer at the servers, for which delta is a gradient (Reddi et al., arXiv 2003.00295):
plain SGD with a rate of 1 makes the workers' parameters the new ones, or their mean where updates
are gathered.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from pydantic import Field

from tardygrad.methods.base import Outcome, ServerRule, Step, WorkerRule
from tardygrad.methods.rules.optimizers import OptimizerConfig, OptimizerServer, is_plain_sgd, sgd
from tardygrad.methods.rules.settings import TrainingMethod, gradient
from tardygrad.methods.schedules import Constant

if TYPE_CHECKING:
    from tardygrad.models.base import ModelAdapter

_ODD, _SEEDS = 0x9E3779B97F4A7C15, (1 << 63) - 1


class LocalMethod(TrainingMethod):
    """Methods whose workers push how far training brought them; ``optimizer`` is the workers'."""

    exchange_period: int = Field(default=16, ge=1)
    """H: inner steps between two exchanges; a fragment's end ends the exchange too."""
    in_flight: int = Field(default=0, ge=0, le=8)
    """Pushes that may be unanswered while the next range is computed; 0 waits for each answer."""
    passes: int = Field(default=1, ge=1)
    """How often a worker goes over the batches of an exchange before it pushes (E of FedAvg)."""
    keep_moments: bool = True
    """Whether the workers' optimizer keeps its moments over an exchange."""
    outer: OptimizerConfig = Field(default_factory=lambda: sgd(1.0))
    """The servers' optimizer; its gradient is the (mean) delta."""

    @property
    def kind(self) -> str:
        """Shards keep the state of the outer optimizer."""
        own = type(self).server_rule is not LocalMethod.server_rule
        return self.name if own else f"outer optimizer {self.outer.kind}"

    @property
    def keeps_replica(self) -> bool:
        """The moments outlive a pull."""
        return self.keep_moments

    @property
    def steps_per_batch(self) -> int:
        """Each pass takes a step with each batch."""
        return self.passes

    def worker_rule(self, adapter: ModelAdapter) -> WorkerRule:
        """The rule of one worker over its own model."""
        return LocalWorker(self, adapter)

    def server_rule(self, parameters: torch.Tensor) -> ServerRule:
        """The rule of one shard, over a tensor that it changes in place."""
        return OptimizerServer(self.outer, Constant(), parameters)


class InnerOptimizer:
    """A ``torch.optim`` optimizer that trains an adapter's model through its flat vector.

    A parameter without a gradient in a step has a gradient of zero here.
    """

    def __init__(self, method: TrainingMethod, adapter: ModelAdapter) -> None:
        self._method = method
        self._adapter = adapter
        self.flat = adapter.flat[: adapter.layout.parameters_size]
        """The model's parameters, float32 ``[parameters_size]``."""
        self._gradient = torch.zeros_like(self.flat)
        self.reset()

    def reset(self) -> None:
        """Forget all moments."""
        self._parameter = torch.nn.Parameter(self.flat)
        self._inner = self._method.optimizer.build(self._parameter)
        self._group = self._inner.param_groups[0]
        self._is_plain = self._adapter.in_place and is_plain_sgd(self._inner)

    def step(self, step: Step) -> float:
        """Train one batch; returns its loss."""
        adapter = self._adapter
        loss = gradient(adapter, self._method, step)
        rate = self._method.learning_rate(step.consumed)
        if self._is_plain:
            # What torch.optim.SGD does, to the bit, with the gradients where autograd left them.
            adapter.step(rate)
            return loss
        adapter.write_gradient(self._gradient, add=False)
        self._group["lr"] = rate
        self._parameter.grad = self._gradient
        self._inner.step()
        adapter.load(self.flat)
        return loss


class LocalWorker:
    """Trains with the inner optimizer and pushes ``theta_pulled - theta_local``."""

    borrows = False

    def __init__(self, method: LocalMethod, adapter: ModelAdapter) -> None:
        self._method = method
        self._adapter = adapter
        self._inner = InnerOptimizer(method, adapter)
        self._pulled = torch.zeros_like(self._inner.flat)

    def target(self, *, fresh: bool) -> torch.Tensor:
        """Where a pull must be written: float32 ``[parameters_size]``."""
        return self._pulled

    def pulled(self, *, fresh: bool) -> None:
        """Go on from the pulled parameters."""
        if fresh or not self._method.keep_moments:
            self._inner.reset()
        self._inner.flat.copy_(self._pulled)
        self._adapter.load(self._inner.flat)

    def compute(self, steps: Iterable[Step], out: torch.Tensor) -> Outcome:
        """Train the steps; ``out`` becomes the way back."""
        total, count = 0.0, 0
        for step in steps if self._method.passes == 1 else self._again_and_again(steps):
            total += self._inner.step(step)
            count += 1
        torch.sub(self._pulled, self._inner.flat, out=out)
        return Outcome(total / max(count, 1), count // self._method.passes)

    def _again_and_again(self, steps: Iterable[Step]) -> Iterator[Step]:
        kept = list(steps)
        for number in range(self._method.passes):
            for step in kept:
                # What is random in the model must not repeat itself.
                yield step._replace(seed=(step.seed + number * _ODD) & _SEEDS)
