"""Generated clusters of points, small MLP: nothing to download, a second long."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tardygrad.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = tuple[NDArray[np.float32], NDArray[np.int64]]


def recipe() -> dict[str, Any]:
    """Everything that a long run has, in a short one."""
    return {
        "name": "blobs",
        "model": {
            "factory": "tardygrad.recipes.networks:mlp",
            "arguments": {"sizes": [32, 64, 10]},
        },
        "data": {"source": "tardygrad.recipes.blobs:blobs"},
        "method": {
            "name": "async_sgd",
            "optimizer": {"class": "SGD", "arguments": {"lr": 0.1}},
        },
        "epochs": 3,
        "batch_size": 64,
        "workers": 4,
        "servers": 2,
    }


def blobs(
    train: int = 8192,
    test: int = 2048,
    features: int = 32,
    classes: int = 10,
    noise: float = 1.2,
    seed: int = 0,
) -> tuple[Arrays, Arrays]:
    """Points around one random centre for each class, as (x, y) for training and for testing.

    x is float32 [samples, features], y int64 [samples]; the same arguments give the same data.

    Raises:
        DataError: a number of samples, features or classes is below 1.
    """
    import numpy as np

    counts = {"train": train, "test": test, "features": features, "classes": classes}
    for name, count in counts.items():
        if count < 1:
            raise DataError(f"blobs: {name} must be at least 1, got {count}")
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((classes, features), dtype=np.float32)

    def draw(samples: int) -> Arrays:
        y = rng.integers(0, classes, samples, dtype=np.int64)
        x = centres[y] + np.float32(noise) * rng.standard_normal(
            (samples, features), dtype=np.float32
        )
        return x, y

    return draw(train), draw(test)
