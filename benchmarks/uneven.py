"""Workers that are machines of their own, emulated: a step sleeps instead of computing.

The peers: the sum of the speeds that the sleeps alone would allow, and what four loops without any
protocol reach side by side, as a sleep takes longer than it was asked to.
"""

from __future__ import annotations

import json
import multiprocessing
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


def _loop(worker: int, seconds: float) -> float:
    """Samples per second of one machine that trains alone."""
    torch.set_num_threads(1)
    os.environ["TARDYGRAD_WORKER"] = str(worker)
    model = Sleeper()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    x, y = torch.randn(BATCH, 32), torch.randint(0, 10, (BATCH,))
    began, done = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        done += BATCH
    return done / (time.monotonic() - began)


def main() -> None:
    """Print what four loops reach side by side, one JSON object."""
    machines = len(SLEEPS_S)
    with multiprocessing.get_context("spawn").Pool(machines) as pool:
        # The first call waits until every process is there.
        for seconds in (1.0, 10.0):
            arguments = [(worker, seconds) for worker in range(machines)]
            speeds = pool.starmap(_loop, arguments, chunksize=1)
    print(json.dumps({"value": sum(speeds)}))


if __name__ == "__main__":
    main()
