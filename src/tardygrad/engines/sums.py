"""What a group of workers makes of its updates: their mean, weighted by samples.

Every engine and the replay do the same operations in the same order, so they agree to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def weighted(update: torch.Tensor, samples: int, out: torch.Tensor | None = None) -> torch.Tensor:
    """A rank's term of the sum: ``samples * update``, the same shape."""
    return torch.mul(update, samples, out=out)


def mean(updates: Sequence[torch.Tensor], samples: Sequence[int]) -> torch.Tensor:
    """The mean of updates (float32, equal shapes), summed one rank after the other."""
    total = weighted(updates[0], samples[0])
    for update, count in zip(updates[1:], samples[1:], strict=True):
        total += weighted(update, count)
    return total.div_(sum(samples))
