"""Workers that are machines of their own, emulated: a step sleeps instead of computing."""

from __future__ import annotations

import os
import time

import torch

SLEEPS_S = (0.020, 0.020, 0.020, 0.100)
BATCH = 64


class Sleeper(torch.nn.Module):
    """A linear model whose forward pass takes as long as its worker's machine would."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Sleep, then compute next to nothing; x is [N, 32]."""
        if self.training:
            time.sleep(SLEEPS_S[int(os.environ.get("TARDYGRAD_WORKER", "0"))])
        out: torch.Tensor = self.linear(x)
        return out


def sum_of_speeds(_: int) -> float:
    """Samples per second of the four machines if each worked alone, sleeping only."""
    return sum(BATCH / seconds for seconds in SLEEPS_S)
