r"""The settings of training that most methods share, and what they do to a gradient.

For each batch ``g <- grad loss(x; b) + weight_decay * x``, then clipped by its global norm, then by
value, where those are set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from tardygrad.methods.base import Method, Step
from tardygrad.methods.rules.optimizers import OptimizerConfig
from tardygrad.methods.rules.periods import ExchangeSchedule, Same
from tardygrad.methods.schedules import Constant, Schedule

if TYPE_CHECKING:
    from tardygrad.models.base import ModelAdapter

RATE = ("optimizer", "schedule")
GRADIENT = ("weight_decay", "clip_norm", "clip_value")


def rate_alone(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings for a method with steps of its own: of an optimizer, SGD's learning rate alone."""
    optimizer = settings.get("optimizer")
    if not isinstance(optimizer, dict):
        return settings
    arguments = optimizer.get("arguments", {})
    kept = {key: value for key, value in settings.items() if key != "optimizer"}
    if optimizer.get("class", "SGD") == "SGD" and "lr" in arguments:
        kept["optimizer"] = {"class": "SGD", "arguments": {"lr": arguments["lr"]}}
    return kept


def require_rate_alone(optimizer: OptimizerConfig, method: str) -> None:
    """Refuse an optimizer that is more than SGD with a learning rate.

    Raises:
        ValueError: it is, and ``method`` would ignore what it is more.
    """
    if optimizer.class_name != "SGD" or set(optimizer.arguments) != {"lr"}:
        raise ValueError(
            f"optimizer: {method} takes steps of its own, plain SGD with no argument but lr, got "
            f"{optimizer.class_name} with {optimizer.arguments}; momentum is method.momentum, "
            "weight decay method.weight_decay"
        )


class TrainingMethod(Method):
    """An optimizer, a schedule of its rate, weight decay and clipping."""

    carries: ClassVar[tuple[str, ...]] = (*RATE, *GRADIENT)

    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    """Any optimizer of ``torch.optim``, on a flat vector."""
    schedule: Schedule = Field(default_factory=Constant)
    """Factor on the learning rate over consumed samples."""
    exchange_schedule: ExchangeSchedule = Field(default_factory=Same)
    """``exchange_period`` over consumed samples: ``constant``, ``piecewise`` or ``quadratic``."""
    weight_decay: float = Field(default=0.0, ge=0)
    """lambda: ``lambda * x`` is added to each gradient, at the worker, before clipping."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest global 2-norm of a gradient."""
    clip_value: float | None = Field(default=None, gt=0)
    """Largest magnitude of an element of a gradient."""

    @property
    def is_plain(self) -> bool:
        """Whether an update is the bare gradient, and neither rate nor period ever changes."""
        beside = (self.weight_decay, self.clip_norm, self.clip_value)
        never = self.schedule == Constant() and self.exchange_schedule == Same()
        return never and not any(beside)

    @property
    def clips(self) -> bool:
        """Whether each batch's gradient is clipped."""
        return self.clip_norm is not None or self.clip_value is not None

    @property
    def longest_period(self) -> int:
        """No exchange has more steps, however many samples are consumed."""
        return self.exchange_schedule.longest(self.exchange_period)

    def period_at(self, consumed: int) -> int:
        """Batches of an exchange that begins after ``consumed`` samples, in nominal order."""
        warm = max(consumed, self.schedule.warmup)
        schedule = self.exchange_schedule
        return schedule.period(consumed, self.exchange_period, lambda _: self.learning_rate(warm))

    def learning_rate(self, consumed: int) -> float:
        """The learning rate after ``consumed`` samples."""
        return self.optimizer.learning_rate * self.schedule.factor(consumed)


def gradient(adapter: ModelAdapter, method: TrainingMethod, step: Step) -> float:
    """Leave one batch's gradient, decayed and clipped, in the adapter; returns the loss."""
    loss = adapter.gradient(step.batch, step.seed)
    if method.weight_decay:
        adapter.decay(method.weight_decay)
    if method.clip_norm is not None:
        adapter.clip_norm(method.clip_norm)
    if method.clip_value is not None:
        adapter.clip_value(method.clip_value)
    return loss
