"""The peer: one process, a PyTorch loop written well.

Data are float32 tensors in memory, a batch is one ``index_select`` of a permutation, gradients are
set to None, the optimizer is ``torch.optim.SGD`` (or the one that is named) as it comes, one
compute thread.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator

import torch

from benchmarks import memory
from benchmarks.crossing import EVERY, crossing
from tardygrad import recipes
from tardygrad.data import mnist
from tardygrad.data.fragments import FragmentPlan, Permutations
from tardygrad.recipes.networks import cnn, convnet, mlp

BATCH = 64
_MODELS: dict[str, Callable[[], torch.nn.Module]] = {"mlp": mlp, "cnn": cnn}


def speed(kind: str, seconds: float, name: str = "SGD", rate: float = 0.05) -> dict[str, float]:
    """Samples per second over ``seconds``, after one second of warm-up, and the memory in use."""
    x, y = mnist.load()[0].tensors
    model = _MODELS[kind]()
    loss_function = torch.nn.functional.cross_entropy
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=rate)
    done, started, warm_until = 0, 0.0, time.monotonic() + 1.0
    while True:
        order = torch.randperm(len(x))
        for start in range(0, len(x) - BATCH + 1, BATCH):
            indices = order[start : start + BATCH]
            batch, target = torch.index_select(x, 0, indices), torch.index_select(y, 0, indices)
            optimizer.zero_grad(set_to_none=True)
            loss_function(model(batch), target).backward()
            optimizer.step()
            now = time.monotonic()
            if now < warm_until:
                continue
            if not started:
                started = now
                continue
            done += BATCH
            if now - started >= seconds:
                return {"value": done / (now - started), **memory.of_process("self")}


def time_to(wanted: float, rate: float, seed: int, epochs: int) -> float:
    """Seconds from the first update to the wanted accuracy of the CNN; inf if never.

    A seed gives the parameters and the samples that ours begins with.
    """
    return crossing(_training(rate, seed, epochs), wanted)


def _training(rate: float, seed: int, epochs: int) -> Iterator[tuple[float, float]]:
    """Seconds and accuracy each EVERY samples; while it is measured, the clock stands still."""
    (x, y), (tx, ty) = (source.tensors for source in mnist.load())
    torch.manual_seed(seed)
    model = cnn()
    loss_function = torch.nn.functional.cross_entropy
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    spent, since, done, due = 0.0, 0.0, 0, EVERY
    for indices in _batches(len(x), seed, epochs):
        batch, target = torch.index_select(x, 0, indices), torch.index_select(y, 0, indices)
        optimizer.zero_grad(set_to_none=True)
        loss_function(model(batch), target).backward()
        optimizer.step()
        since = since or time.monotonic()
        done += len(indices)
        if done >= due:
            due += EVERY
            spent += time.monotonic() - since
            yield spent, _right(model, tx, ty)
            since = time.monotonic()


def accuracy(seed: int) -> float:
    """Per cent of the test set after recipe mnist-async's samples, trained serially."""
    document = recipes.load("mnist-async")
    arguments = document["method"]["optimizer"]["arguments"]
    (x, y), test = (source.tensors for source in mnist.load())
    torch.manual_seed(seed)
    model = convnet()
    decay = document["method"]["weight_decay"]
    optimizer = torch.optim.SGD(model.parameters(), weight_decay=decay, **arguments)
    for indices in _batches(len(x), seed, document["epochs"]):
        batch, target = torch.index_select(x, 0, indices), torch.index_select(y, 0, indices)
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(model(batch), target).backward()
        optimizer.step()
    return 100.0 * _right(model, *test)


def _batches(samples: int, seed: int, epochs: int) -> Iterator[torch.Tensor]:
    """The sample numbers of each batch, as ours leases them with this seed."""
    whole = -(-samples // BATCH)
    plan = FragmentPlan(samples=samples, batch_size=BATCH, fragment_batches=whole, seed=seed)
    order = Permutations(plan)
    for epoch in range(epochs):
        for number in range(whole):
            yield torch.from_numpy(order.indices(epoch, 0, number))


def _right(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """The share of samples that the model gets right."""
    with torch.no_grad():
        parts = zip(x.split(100), y.split(100), strict=True)
        return sum(int((model(a).argmax(1) == b).sum()) for a, b in parts) / len(x)


def main() -> None:
    """Print one JSON object."""
    torch.set_num_threads(1)
    what, *rest = sys.argv[1:]
    if what == "speed":
        kind, seconds, name, rate = [*rest, "SGD", "0.05"][:4]
        print(json.dumps(speed(kind, float(seconds), name, float(rate))))
        return
    if what == "accuracy":
        value = accuracy(int(rest[0]))
    else:
        value = time_to(float(rest[0]), float(rest[1]), int(rest[2]), int(rest[3]))
    print(json.dumps({"value": value}))


if __name__ == "__main__":
    main()
