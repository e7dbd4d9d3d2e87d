"""A model that computes nothing: what the simulator trains when only the protocol matters.

Its step costs nothing and its gradient is none, so a simulation of a thousand workers spends its
time on the machines under test. It keeps no vector until somebody asks for one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch

from tardygrad.data.sources import Source
from tardygrad.errors import ModelError
from tardygrad.layout import Layout

__all__ = ["NullAdapter"]


class NullAdapter:
    """A `ModelAdapter` with `size` parameters that are all zero and stay so.

    Args:
        size: Parameters, at least 1.

    Raises:
        ModelError: If there are none.
    """

    def __init__(self, size: int = 1) -> None:
        if size < 1:
            raise ModelError(f"a null model needs at least 1 parameter, got {size}")
        self.adds = self.in_place = True
        self.layout = Layout.of([("null", (size,), "float32")])

    @cached_property
    def flat(self) -> torch.Tensor:
        """Zeros, float32 `[layout.size]`."""
        return torch.zeros(self.layout.size)

    def read(self) -> torch.Tensor:
        """Zeros, float32 `[layout.parameters_size]`."""
        return self.flat

    def load(self, flat: torch.Tensor) -> None:
        """Take nothing."""

    def borrow(self, flat: torch.Tensor) -> bool:
        """Take nothing, which is as good as borrowing it."""
        return True

    def read_buffers(self, out: torch.Tensor) -> None:
        """Write nothing: there are no buffers."""

    def load_buffers(self, values: torch.Tensor) -> None:
        """Take nothing: there are no buffers."""

    def gradient(
        self, batch: tuple[torch.Tensor, ...], seed: int, weight: float = 1.0, add: bool = False
    ) -> float:
        """Compute nothing; the loss is 0."""
        return 0.0

    def scale(self, factor: float) -> None:
        """Change nothing."""

    def decay(self, weight_decay: float) -> None:
        """Change nothing."""

    def clip_norm(self, maximum: float) -> float:
        """Change nothing; the norm is 0."""
        return 0.0

    def clip_value(self, maximum: float) -> None:
        """Change nothing."""

    def write_gradient(self, out: torch.Tensor, add: bool) -> None:
        """Write nothing: not even zeros, as that is work for every step. Hand in zeros."""

    def step(self, learning_rate: float) -> None:
        """Change nothing."""

    def blend(self, pulled: torch.Tensor, mixing: float) -> None:
        """Change nothing."""

    def evaluate(self, source: Source, batch_size: int) -> dict[str, float]:
        """A loss of 0."""
        return {"loss": 0.0}

    def release(self) -> None:
        """Let go of nothing."""

    def state_dict(self) -> dict[str, Any]:
        """The zeros, by name."""
        return {"null": torch.zeros(self.layout.parameter_count)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take nothing."""
