"""The problem that all studies share: a part of MNIST, a small MLP, steps of 20 virtual ms.

It is small, so that hundreds of runs fit into minutes, and hard enough that rates and staleness
matter. Rates are chosen by *validation* samples: training images that no run trains on. Results
are measured on the whole test set.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch

from tardygrad.data import mnist

TRAINED = slice(0, 4096)
VALIDATION = slice(50_000, 55_000)
GUESSING = 2.3
"""A little less than ln 10, the loss of guessing among ten classes: who ends there diverged."""

Arrays = tuple[torch.Tensor, torch.Tensor]


def data(validation: bool) -> tuple[Arrays, Arrays]:
    """What ``data.source`` names.

    Args:
        validation: measure on the validation samples, not on the test set.

    Returns:
        (train, test); each images, float32 ``[N, 784]``, and labels, int64 ``[N]``.
    """
    trained, held_out, test = _arrays()
    return trained, held_out if validation else test


@functools.cache
def _arrays() -> tuple[Arrays, Arrays, Arrays]:
    # Once a process: unpacking takes as long as a thousand steps.
    train, test = (source.tensors for source in mnist.load(flat=True))
    parts = [(train[0][part].clone(), train[1][part].clone()) for part in (TRAINED, VALIDATION)]
    return parts[0], parts[1], (test[0], test[1])


def step(mean_s: float = 0.02) -> dict[str, Any]:
    """The duration of a step: a tenth of jitter, as machines have."""
    return {"distribution": "lognormal", "mean_s": mean_s, "spread": mean_s / 10}


def base() -> dict[str, Any]:
    """The configuration that every study begins from."""
    return {
        "name": "study",
        "model": {
            "factory": "tardygrad.recipes.networks:mlp",
            "arguments": {"sizes": [784, 64, 10]},
        },
        "data": {"source": f"{__name__}:data"},
        # No push is overlapped: so the mean staleness of n workers who never wait is n - 1.
        "method": {"in_flight": 0},
        "epochs": 6,
        "batch_size": 16,
        "workers": 8,
        "engine": "inline",
        "evaluation": {"batch_size": 5000},
        "checkpoint": {"every_s": math.inf},
        "simulation": {"compute": step(), "network": 0.0005, "apply": 0.0001},
    }
