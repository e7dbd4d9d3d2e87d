"""Metrics: functions of (output, target) of one batch; evaluation averages them over the samples.

A metric of your own is any such function that returns the batch's mean as a number or as a tensor
of one element; name it in `model.metrics` as "package.module:function".
"""

from __future__ import annotations

import torch

__all__ = ["accuracy"]


def accuracy(output: torch.Tensor, target: torch.Tensor) -> float:
    """The share of samples whose class is guessed right.

    Args:
        output: Scores `[n, classes, ...]`, or, where there is one score for each sample (the shape
            of the target, or `[n, 1]`), the logit of a yes.
        target: Class numbers `[n, ...]`, or class probabilities of the shape of `output`.

    >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
    0.5
    """
    if output.dim() < 2 or output.shape[1] == 1:
        guess = output.reshape(target.shape) > 0
        return float((guess == (target > 0.5)).float().mean())
    if target.shape == output.shape:
        target = target.argmax(dim=1)
    return float((output.argmax(dim=1) == target).float().mean())
