"""The peer: DistributedDataParallel over gloo, two processes, one compute thread each.

Written as well as the plain loop: each rank draws its half of a common permutation from memory,
gradients are views of the reduction's buckets, and ranks agree on the end only now and then.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tardygrad.data import mnist
from tardygrad.recipes.networks import mlp

BATCH = 64
WORLD = 2
WARM_S = 1.0
AGREE_EVERY = 100


def _batches(samples: int, rank: int) -> Iterator[torch.Tensor]:
    """Indices of the rank's batches, epoch after epoch; all ranks draw the same permutations."""
    generator = torch.Generator().manual_seed(0)
    while True:
        order = torch.randperm(samples, generator=generator)
        for start in range(rank * BATCH, samples - WORLD * BATCH + 1, WORLD * BATCH):
            yield order[start : start + BATCH]


def _rank(rank: int, meeting: str, seconds: float, answer: Any) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=WORLD)
    train, _ = mnist.load()
    x, y = train.tensors
    model = torch.nn.parallel.DistributedDataParallel(mlp(), gradient_as_bucket_view=True)
    loss_function = torch.nn.functional.cross_entropy
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    batches = _batches(len(x), rank)
    # All ranks stop together: the first one says when.
    stop, counted, began = torch.zeros(1), 0, 0.0
    origin = time.monotonic()
    while True:
        for indices in itertools.islice(batches, AGREE_EVERY):
            batch, target = torch.index_select(x, 0, indices), torch.index_select(y, 0, indices)
            optimizer.zero_grad(set_to_none=True)
            loss_function(model(batch), target).backward()
            optimizer.step()
        now = time.monotonic()
        counted += AGREE_EVERY if began else 0
        if not began and now - origin >= WARM_S:
            began = now
        stop[0] = float(bool(began) and now - began >= seconds)
        dist.broadcast(stop, 0)
        if stop.item():
            break
    if rank == 0:
        answer.put(counted * BATCH * WORLD / (now - began))
    dist.destroy_process_group()


def main() -> None:
    """Print one JSON object: samples per second of both ranks together."""
    answer = mp.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as directory:
        meeting = str(Path(directory) / "meeting")
        mp.spawn(_rank, args=(meeting, float(sys.argv[1]), answer), nprocs=WORLD)
    print(json.dumps({"value": answer.get()}))


if __name__ == "__main__":
    main()
