"""MNIST, MLP 784-256-10, asynchronous SGD: 4 workers, 2 servers, 5 epochs; about a minute."""

from __future__ import annotations

from typing import Any


def recipe() -> dict[str, Any]:
    """A model whose steps are so short that exchanging parameters is most of the work."""
    return {
        "name": "mnist-mlp",
        "model": {
            "factory": "tardygrad.recipes.networks:mlp",
            "arguments": {"sizes": [784, 256, 10]},
        },
        "data": {"source": "mnist"},
        "method": {
            "name": "async_sgd",
            "optimizer": {"class": "SGD", "arguments": {"lr": 0.1}},
            "weight_decay": 1e-4,
        },
        "epochs": 5,
        "batch_size": 64,
        "workers": 4,
        "servers": 2,
    }
