r"""Workers that push gradients, and the settings of a gradient.

For each batch ``g <- grad loss(x; b) + weight_decay * x``, then clipped by its global norm, then by
value, where those are set. An exchange of several batches pushes either their sum, while the worker
steps on its own replica in between, or their mean at one point (gradient accumulation).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from pydantic import Field

from tardygrad.methods.base import Method, Outcome, ServerRule, Step, WorkerRule
from tardygrad.methods.rules.optimizers import OptimizerConfig, OptimizerServer
from tardygrad.methods.schedules import Constant, Schedule

if TYPE_CHECKING:
    from tardygrad.models.base import ModelAdapter


class GradientMethod(Method):
    """The settings of methods whose workers push gradients to an optimizer at the servers."""

    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    """The servers' optimizer, any of ``torch.optim``, on the flat shard."""
    schedule: Schedule = Field(default_factory=Constant)
    """Factor on the learning rate over consumed samples."""
    weight_decay: float = Field(default=0.0, ge=0)
    """lambda: ``lambda * x`` is added to each gradient, at the worker, before clipping."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest global 2-norm of a gradient."""
    clip_value: float | None = Field(default=None, gt=0)
    """Largest magnitude of an element of a gradient."""

    @property
    def keeps_replica(self) -> bool:
        """Each pull overwrites everything."""
        return False

    def worker_rule(self, adapter: ModelAdapter) -> WorkerRule:
        """The rule of one worker over its own model."""
        return GradientWorker(self, adapter)

    def server_rule(self, parameters: torch.Tensor) -> ServerRule:
        """The rule of one shard, over a tensor that it changes in place."""
        return OptimizerServer(self.optimizer, self.schedule, parameters)

    @property
    def is_plain(self) -> bool:
        """Whether an update is the bare gradient and the rate never changes."""
        beside = (self.weight_decay, self.clip_norm, self.clip_value)
        return not any(beside) and self.schedule == Constant()

    def learning_rate(self, consumed: int) -> float:
        """The learning rate after ``consumed`` samples."""
        return self.optimizer.learning_rate * self.schedule.factor(consumed)


def gradient(adapter: ModelAdapter, method: GradientMethod, step: Step) -> float:
    """Leave one batch's gradient, decayed and clipped, in the adapter; returns the loss."""
    loss = adapter.gradient(step.batch, step.seed)
    if method.weight_decay:
        adapter.decay(method.weight_decay)
    if method.clip_norm is not None:
        adapter.clip_norm(method.clip_norm)
    if method.clip_value is not None:
        adapter.clip_value(method.clip_value)
    return loss


class GradientWorker:
    """Pushes the mean gradient over the exchange period, all of it at the parameters pulled."""

    borrows = True

    def __init__(self, method: GradientMethod, adapter: ModelAdapter) -> None:
        self._method = method
        self._adapter = adapter
        self._own = adapter.flat[: adapter.layout.parameters_size]
        self._one = torch.empty(0)

    def target(self, *, fresh: bool) -> torch.Tensor:
        """Where a pull must be written: float32 ``[parameters_size]``."""
        return self._own

    def pulled(self, *, fresh: bool) -> None:
        """Take the pulled parameters."""
        self._adapter.load(self._own)

    def compute(self, steps: Iterable[Step], out: torch.Tensor) -> Outcome:
        """Train the steps; ``out`` becomes the mean of their gradients, weighted by samples."""
        total, count, samples = 0.0, 0, 0
        for step in steps:
            total += gradient(self._adapter, self._method, step)
            size = len(step.batch[-1])
            if count == 0:
                self._adapter.write_gradient(out, add=False)
            else:
                if not self._one.numel():
                    self._one = torch.zeros_like(out)
                self._adapter.write_gradient(self._one, add=False)
                out.lerp_(self._one, size / (samples + size))
            count += 1
            samples += size
        return Outcome(total / max(count, 1), count)
