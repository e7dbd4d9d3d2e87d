"""Any optimizer of ``torch.optim``, on a flat vector: on a server's shard or inside a worker."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from pydantic import ConfigDict, Field, model_validator

from tardygrad.errors import unknown
from tardygrad.methods.base import NOBODY, Origin
from tardygrad.methods.schedules import Constant, Schedule
from tardygrad.sections import Section

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

    @property
    def kind(self) -> str:
        """Which tensors it keeps: its class, and what of its arguments adds some."""
        switches = ("momentum", "amsgrad", "centered")
        kept = [key for key in switches if self.arguments.get(key)]
        return " ".join([self.class_name, *(f"with {key}" for key in kept)])

    def build(self, *parameters: torch.Tensor) -> torch.optim.Optimizer:
        """The optimizer over these tensors."""
        built: torch.optim.Optimizer = getattr(torch.optim, self.class_name)(
            parameters, **self.arguments
        )
        return built


def sgd(lr: float, **arguments: Any) -> OptimizerConfig:
    """``torch.optim.SGD``, as a default of methods."""
    return OptimizerConfig(arguments={"lr": lr, **arguments})


def adam(lr: float, **arguments: Any) -> OptimizerConfig:
    """``torch.optim.Adam``, as a default of methods."""
    return OptimizerConfig.model_validate({"class": "Adam", "arguments": {"lr": lr, **arguments}})


def adamw(lr: float, **arguments: Any) -> OptimizerConfig:
    """``torch.optim.AdamW``, as a default of methods."""
    return OptimizerConfig.model_validate({"class": "AdamW", "arguments": {"lr": lr, **arguments}})


def is_plain_sgd(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its step is ``parameter -= lr * gradient`` and nothing else."""
    group = optimizer.param_groups[0]
    more = ("momentum", "weight_decay", "maximize", "nesterov")
    return type(optimizer) is torch.optim.SGD and not any(group[key] for key in more)


class OptimizerServer:
    """A ``torch.optim`` optimizer over one flat shard."""

    def __init__(
        self, optimizer: OptimizerConfig, schedule: Schedule, parameters: torch.Tensor
    ) -> None:
        self._schedule = schedule
        self._constant_rate = isinstance(schedule, Constant) and not schedule.warmup
        self._rate = optimizer.learning_rate
        self._parameter = torch.nn.Parameter(parameters)
        self._optimizer = optimizer.build(self._parameter)
        self._group = self._optimizer.param_groups[0]
        self._is_plain = is_plain_sgd(self._optimizer)

    @property
    def parameters(self) -> torch.Tensor:
        """The shard, float32 ``[size]``."""
        return self._parameter.data

    def rate(self, scale: float, consumed: int) -> float:
        """The learning rate of an update after ``consumed`` samples."""
        rate = self._rate if self._constant_rate else self._rate * self._schedule.factor(consumed)
        return rate if scale == 1.0 else rate * scale

    def apply(
        self,
        update: torch.Tensor,
        scale: float,
        consumed: int,
        out: torch.Tensor | None = None,
        origin: Origin = NOBODY,
    ) -> None:
        """One optimizer step with the update as the gradient, the rate times ``scale``."""
        rate = self.rate(scale, consumed)
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
