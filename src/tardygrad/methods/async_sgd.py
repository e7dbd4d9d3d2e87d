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

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import ConfigDict, Field, model_validator

from tardygrad.errors import unknown
from tardygrad.methods.base import Method, Outcome, Step
from tardygrad.methods.schedules import Constant, Schedule
from tardygrad.sections import Section

if TYPE_CHECKING:
    from tardygrad.models.base import ModelAdapter


_NOT_ON_A_SHARD = ("LBFGS", "Muon", "SparseAdam")


def _optimizers() -> list[str]:
    found = inspect.getmembers(torch.optim, inspect.isclass)
    return [
        name
        for name, value in found
        if issubclass(value, torch.optim.Optimizer) and name not in ("Optimizer", *_NOT_ON_A_SHARD)
    ]


class OptimizerConfig(Section):
    """A class of ``torch.optim`` and its keyword arguments (``lr`` among them)."""

    model_config = ConfigDict(populate_by_name=True)

    class_name: str = Field(default="SGD", alias="class")
    arguments: dict[str, Any] = Field(default_factory=lambda: {"lr": 0.05})

    @model_validator(mode="after")
    def _exists(self) -> OptimizerConfig:
        found = getattr(torch.optim, self.class_name, None)
        if not (inspect.isclass(found) and issubclass(found, torch.optim.Optimizer)):
            raise ValueError(unknown("optimizer of torch.optim", self.class_name, _optimizers()))
        if self.class_name in _NOT_ON_A_SHARD:
            raise ValueError(
                f"{self.class_name} cannot run on a shard (it needs a closure, matrices or rows)"
            )
        rate = self.arguments.get("lr")
        if not isinstance(rate, int | float) or isinstance(rate, bool):
            raise ValueError("arguments must contain a number lr, the learning rate")
        self._check_values(found)
        return self

    def _check_values(self, optimizer: type[torch.optim.Optimizer]) -> None:
        # Building one loads a second's worth of modules, but it looks at its arguments before it
        # finds that it has no parameters.
        try:
            inspect.signature(optimizer).bind([], **self.arguments)
            optimizer([], **self.arguments)
        except Exception as error:
            if str(error) != "optimizer got an empty parameter list":
                values = ", ".join(f"{key}={value!r}" for key, value in self.arguments.items())
                raise ValueError(f"torch.optim.{self.class_name}({values}): {error}") from error

    @property
    def learning_rate(self) -> float:
        """The base learning rate."""
        return float(self.arguments["lr"])

    def build(self, *parameters: torch.Tensor) -> torch.optim.Optimizer:
        """The optimizer over these tensors."""
        built: torch.optim.Optimizer = getattr(torch.optim, self.class_name)(
            parameters, **self.arguments
        )
        return built


class AsyncSGD(Method):
    """Settings of asynchronous SGD; see the module's text for the formula."""

    name: Literal["async_sgd"] = "async_sgd"
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    """The servers' optimizer, any of ``torch.optim``, on the flat shard."""
    schedule: Schedule = Field(default_factory=Constant)
    """Factor on the learning rate over consumed samples."""
    mixing: float = Field(default=1.0, gt=0, le=1)
    """beta: 1 takes the pulled parameters as they are; less keeps part of the own replica."""
    weight_decay: float = Field(default=0.0, ge=0)
    """lambda: ``lambda * x`` is added to each gradient, at the worker, before clipping."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest global 2-norm of a gradient."""
    clip_value: float | None = Field(default=None, gt=0)
    """Largest magnitude of an element of a gradient."""

    @property
    def keeps_replica(self) -> bool:
        """Whether a pull leaves something of the worker's own parameters."""
        return self.mixing < 1.0

    def worker_rule(self, adapter: ModelAdapter) -> AsyncSGDWorker:
        """The rule of one worker over its own model."""
        return AsyncSGDWorker(self, adapter)

    def server_rule(self, parameters: torch.Tensor) -> AsyncSGDServer:
        """The rule of one shard, over a tensor that it changes in place."""
        return AsyncSGDServer(self, parameters)

    def serial_optimizer(self, parameters: list[torch.Tensor]) -> torch.optim.Optimizer | None:
        """The servers' optimizer over the whole model, where nothing is done beside it."""
        beside = (self.weight_decay, self.clip_norm, self.clip_value, self.keeps_replica)
        plain = not any(beside) and self.schedule == Constant() and not self.admission.gathers
        return self.optimizer.build(*parameters) if plain else None

    def learning_rate(self, consumed: int) -> float:
        """The learning rate after ``consumed`` samples."""
        return self.optimizer.learning_rate * self.schedule.factor(consumed)


class AsyncSGDWorker:
    """Gradients on the replica, summed over the exchange period."""

    def __init__(self, method: AsyncSGD, adapter: ModelAdapter) -> None:
        self._method = method
        self._adapter = adapter
        size = adapter.layout.parameters_size
        self._overwrites = method.mixing == 1.0
        # With one batch an exchange and full mixing, the next pull overwrites any local step.
        self._steps_locally = method.exchange_period > 1 or not self._overwrites
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
            total += adapter.gradient(step.batch, step.seed)
            if method.weight_decay:
                adapter.decay(method.weight_decay)
            if method.clip_norm is not None:
                adapter.clip_norm(method.clip_norm)
            if method.clip_value is not None:
                adapter.clip_value(method.clip_value)
            adapter.write_gradient(out, add=count > 0)
            count += 1
            if self._steps_locally:
                adapter.step(method.learning_rate(step.consumed))
        return Outcome(total / max(count, 1), count)


class AsyncSGDServer:
    """A ``torch.optim`` optimizer over one flat shard."""

    def __init__(self, method: AsyncSGD, parameters: torch.Tensor) -> None:
        self._method = method
        self._constant_rate = isinstance(method.schedule, Constant) and not method.schedule.warmup
        self._rate = method.optimizer.learning_rate
        self._parameter = torch.nn.Parameter(parameters)
        self._optimizer = method.optimizer.build(self._parameter)
        self._group = self._optimizer.param_groups[0]
        self._is_plain = type(self._optimizer) is torch.optim.SGD and not any(
            self._group[key] for key in ("momentum", "weight_decay", "maximize", "nesterov")
        )

    @property
    def parameters(self) -> torch.Tensor:
        """The shard, float32 ``[size]``."""
        return self._parameter.data

    def apply(
        self,
        update: torch.Tensor,
        scale: float,
        consumed: int,
        out: torch.Tensor | None = None,
    ) -> None:
        """One optimizer step with the update as the gradient, the rate times ``scale``."""
        rate = self._rate if self._constant_rate else self._method.learning_rate(consumed)
        rate = rate if scale == 1.0 else rate * scale
        if self._is_plain:
            # What torch.optim.SGD does, to the bit, without its bookkeeping: a third of the time.
            current = self._parameter.data
            torch.add(current, update, alpha=-rate, out=current if out is None else out)
            if out is not None:
                self._parameter.data = out
            return
        self._group["lr"] = rate
        self._parameter.grad = update
        self._optimizer.step()
        self._parameter.grad = None
        if out is not None:
            out.copy_(self._parameter.data)

    def state(self) -> dict[str, torch.Tensor]:
        """Copies of the optimizer's tensors (momentum and the like) and numbers."""
        entries = self._optimizer.state.get(self._parameter, {})
        return {
            key: torch.as_tensor(value).detach().clone()
            for key, value in entries.items()
            if value is not None
        }

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Take up what :meth:`state` returned."""
        self._optimizer.state[self._parameter] = {k: v.clone() for k, v in state.items()}
