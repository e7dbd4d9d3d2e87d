"""MNIST, small CNN, the published setting: 10 workers, 50 epochs, learning rate 0.01 (long)."""

from __future__ import annotations

from typing import Any


def recipe() -> dict[str, Any]:
    """The reference setting of elastic, sharded asynchronous SGD, number for number."""
    return {
        "name": "mnist-async-reference",
        "model": {"factory": "tardygrad.recipes.networks:cnn"},
        "data": {"source": "mnist"},
        "method": {
            "name": "async_sgd",
            "optimizer": {"class": "SGD", "arguments": {"lr": 0.01}},
            "weight_decay": 1e-4,
        },
        "epochs": 50,
        "batch_size": 64,
        "workers": 10,
        "servers": 2,
    }
