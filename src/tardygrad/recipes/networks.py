"""The models of the recipes, as factories that a configuration names.

Torch is imported inside the factories, because recipes are listed without it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tardygrad.errors import ModelError

if TYPE_CHECKING:
    from torch import nn


def cnn(channels: int = 32, classes: int = 10) -> nn.Module:
    """The convolutional network of the reference setting: x [N, 1, 28, 28] -> logits [N, classes].

    Conv2d(1, channels, 3) - ReLU - MaxPool(2) - Flatten - Linear; 54,410 parameters by default.
    """
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, channels, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(channels * 13 * 13, classes),
    )


def convnet(classes: int = 10) -> nn.Module:
    """A small and quick convolutional network: x [N, 1, 28, 28] -> logits [N, classes].

    Conv2d(1, 16, 5, stride 2) - ReLU - Conv2d(16, 32, 3) - ReLU - MaxPool(2) - Flatten -
    Linear(800, 64) - ReLU - Linear; 56,970 parameters by default. The reference network has one
    convolution and does not reach 98.5 % reliably in five epochs.
    """
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(800, 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )


def mlp(sizes: Sequence[int] = (784, 256, 10)) -> nn.Module:
    """Linear layers of the given widths with ReLU between: x [N, ...] -> logits [N, sizes[-1]].

    Raises:
        ModelError: ``sizes`` are not at least two whole numbers above 0.
    """
    from torch import nn

    if len(sizes) < 2 or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ModelError(
            f"mlp: sizes must be at least two whole numbers above 0 (inputs, hidden layers, "
            f"outputs), got {list(sizes)!r}"
        )
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
