"""MNIST, MLP 784-256-10, incremental SGD: 10 workers, one fragment each a round, 5 rounds."""

from __future__ import annotations

from typing import Any


def recipe() -> dict[str, Any]:
    """Fragments as tasks, trained with Adam five times over, models averaged once a round."""
    return {
        "name": "mnist-incremental",
        "model": {
            "factory": "tardygrad.recipes.networks:mlp",
            "arguments": {"sizes": [784, 256, 10]},
        },
        "data": {"source": "mnist"},
        "method": {
            "name": "incremental_sgd",
            "fragments": 1,
            "passes": 5,
            "optimizer": {"class": "Adam", "arguments": {"lr": 0.001}},
        },
        "epochs": 5,
        "batch_size": 64,
        "workers": 10,
        "servers": 2,
    }
