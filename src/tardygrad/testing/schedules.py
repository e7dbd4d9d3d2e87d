"""One random run: a configuration, and what befalls it. ``faults`` draws them."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import nn

from tardygrad.config import Duration
from tardygrad.data.sources import ArraySource
from tardygrad.engines.base import Job
from tardygrad.testing.simulation import (
    MemoryStore,
    SimulatedCluster,
    Stop,
    counting_job,
    null_job,
    torch_job,
)

BATCH = 4
_FEATURES = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """One random run.

    Attributes:
        seed: it decided everything else.
        samples: how many samples an epoch has.
        settings: keys of the configuration, faults included.
        stops: interruptions and power cuts, one a stretch.
        failing: which writes of the store fail.
        torn: which of them are found damaged later.
        full: which manifests fail.
        model: ``null`` computes nothing; the parameters of ``counting`` count samples; ``torch`` is
            a small network with batch normalisation and dropout.
        disk: how long snapshots and manifests take until they are there.
    """

    seed: int
    samples: int
    settings: dict[str, Any]
    stops: tuple[Stop, ...]
    failing: frozenset[int]
    torn: frozenset[int] = frozenset()
    full: frozenset[int] = frozenset()
    model: Literal["null", "counting", "torch"]
    disk: Duration

    def job(self) -> Job:
        """The job to run."""
        if self.model == "torch":
            generator = torch.Generator().manual_seed(self.seed)
            inputs = torch.randn(self.samples, _FEATURES, generator=generator)
            return torch_job(
                _network, ArraySource(inputs, inputs[:, :3].argmax(dim=1)), **self.settings
            )
        make = counting_job if self.model == "counting" else null_job
        return make(samples=self.samples, **self.settings)

    def cluster(self, **options: Any) -> SimulatedCluster:
        """The cluster to run it on; ``options`` go to ``SimulatedCluster``."""
        store = MemoryStore(self.failing, self.torn, self.full)
        return SimulatedCluster(
            self.job(), store=store, stops=self.stops, disk=self.disk, **options
        )


def _network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(_FEATURES, 9), nn.BatchNorm1d(9), nn.Dropout(0.2), nn.Linear(9, 3)
    )
