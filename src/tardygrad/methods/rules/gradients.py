"""Workers that push gradients to an optimizer at the servers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

import torch

from tardygrad.balancing import Pushes
from tardygrad.methods.base import Outcome, ServerRule, Step, WorkerRule
from tardygrad.methods.rules.optimizers import OptimizerServer
from tardygrad.methods.rules.settings import TrainingMethod, gradient

if TYPE_CHECKING:
    from tardygrad.models.base import ModelAdapter


class GradientMethod(TrainingMethod):
    """Methods whose servers step with what workers push; ``optimizer`` is the servers'."""

    pushes: ClassVar[Pushes] = "mean"

    def weight(self, samples: int, *, steps: int, usual: int) -> float:
        """In a round as ever; at once, a gradient of merged batches has as large a rate."""
        if self.admission.gathers:
            return super().weight(samples, steps=steps, usual=usual)
        return max(1.0, samples / usual) if self.balance.name == "batch" else 1.0

    @property
    def kind(self) -> str:
        """Shards keep the state of an optimizer, whoever's gradients it takes."""
        own = type(self).server_rule is not GradientMethod.server_rule
        return f"{self.name if own else 'optimizer'} {self.optimizer.kind}"

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
        if self._method.clips or not self._adapter.adds:
            return self._one_by_one(steps, out)
        adapter, total, count, samples, first = self._adapter, 0.0, 0, 0, 0
        for step in steps:
            size = len(step.batch[-1])
            first = first or size
            total += adapter.gradient(step.batch, step.seed, size / first, count > 0)
            count += 1
            samples += size
        if count > 1:
            adapter.scale(first / samples)
        if self._method.weight_decay:
            # All at the same parameters: what each would have added is the mean of it, too.
            adapter.decay(self._method.weight_decay)
        adapter.write_gradient(out, add=False)
        return Outcome(total / max(count, 1), count)

    def _one_by_one(self, steps: Iterable[Step], out: torch.Tensor) -> Outcome:
        """The same where autograd cannot add them up: each is clipped, or too coarse to add to."""
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
