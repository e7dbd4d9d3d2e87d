"""MNIST, MLP 784-256-10, asynchronous SGD: 2 servers that do not die, each with a backup."""

from __future__ import annotations

from typing import Any

from tardygrad.recipes import mnist_mlp


def recipe() -> dict[str, Any]:
    """The recipe ``mnist-mlp`` with a backup for each server: kill what you like."""
    return {**mnist_mlp.recipe(), "name": "mnist-tough", "workers": 2, "replicas": 1}
