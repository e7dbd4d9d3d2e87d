"""A model that counts: its parameters say how often each sample was applied to each shard.

The ledger and the trace are bookkeeping about tensors. This model looks at the tensors themselves:
a sample's "gradient" is -1 at the sample's own place in every shard, so after a run with plain SGD
at a learning rate of 1, ``parameters[shard, sample]`` is the number of times that the shard applied
the sample. Whatever happens between (crashes, restored snapshots, doubled and reordered messages),
that must be once an epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tardygrad.data.sources import ArraySource, Source
from tardygrad.layout import ALIGN, Layout


class CountingAdapter:
    """A ``ModelAdapter`` that counts samples.

    Args:
        samples: samples of the data set; a batch holds their numbers.
        shards: into how many shards the vector will be cut; each gets a place for every sample.
    """

    def __init__(self, samples: int, shards: int) -> None:
        self.width = -(-samples // ALIGN) * ALIGN
        self.shards = shards
        self.adds = self.in_place = False
        self.layout = Layout.of([("counts", (shards, self.width), "float32")])
        self.flat = torch.zeros(self.layout.size)
        self._samples = torch.zeros(0, dtype=torch.int64)

    @staticmethod
    def source(samples: int) -> ArraySource:
        """The data set: each sample is its own number."""
        numbers = torch.arange(samples)
        return ArraySource(numbers, numbers)

    def counts(self, parameters: torch.Tensor, samples: int) -> torch.Tensor:
        """How often each sample was applied, int64 ``[shards, samples]``."""
        table = parameters[: self.layout.parameters_size].view(self.shards, self.width)
        return table[:, :samples].to(torch.int64)

    def read(self) -> torch.Tensor:
        """The vector."""
        return self.flat

    def load(self, flat: torch.Tensor) -> None:
        """Take nothing: counting needs no parameters."""

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
        """Remember which samples these are; the loss is 0."""
        self._samples = batch[0]
        return 0.0

    def scale(self, factor: float) -> None:
        """Change nothing: it does not add up."""

    def decay(self, weight_decay: float) -> None:
        """Change nothing."""

    def clip_norm(self, maximum: float) -> float:
        """Change nothing; the norm is 0."""
        return 0.0

    def clip_value(self, maximum: float) -> None:
        """Change nothing."""

    def write_gradient(self, out: torch.Tensor, add: bool) -> None:
        """-1 at the samples' places, in every shard."""
        if not add:
            out.zero_()
        out.view(self.shards, self.width)[:, self._samples] -= 1.0

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
        """The counts."""
        return {"counts": self.flat.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take nothing."""
