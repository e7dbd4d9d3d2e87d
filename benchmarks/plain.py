"""The peer: one process, a PyTorch loop written well.

Data are float32 tensors in memory, a batch is one ``index_select`` of a permutation, gradients are
set to None, the optimizer is ``torch.optim.SGD`` as it comes, one compute thread.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import torch

from benchmarks import memory
from tardygrad import recipes
from tardygrad.data import mnist
from tardygrad.data.fragments import FragmentPlan, Permutations
from tardygrad.recipes.networks import cnn, convnet, mlp

BATCH = 64
_MODELS: dict[str, Callable[[], torch.nn.Module]] = {"mlp": mlp, "cnn": cnn}


def speed(kind: str, seconds: float) -> dict[str, float]:
    """Samples per second over ``seconds``, after one second of warm-up, and the memory in use."""
    train, _ = mnist.load()
    x, y = train.tensors
    model = _MODELS[kind]()
    loss_function = torch.nn.functional.cross_entropy
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
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


def time_to(accuracy: float, rate: float, seed: int, epochs: int) -> float:
    """Seconds that the CNN trains (evaluation not counted) to the test accuracy; inf if never."""
    torch.manual_seed(seed)
    (x, y), (tx, ty) = (source.tensors for source in mnist.load())
    model = cnn()
    loss_function = torch.nn.functional.cross_entropy
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    spent = 0.0
    for _ in range(epochs):
        began = time.monotonic()
        order = torch.randperm(len(x))
        for start in range(0, len(x), BATCH):
            indices = order[start : start + BATCH]
            batch, target = torch.index_select(x, 0, indices), torch.index_select(y, 0, indices)
            optimizer.zero_grad(set_to_none=True)
            loss_function(model(batch), target).backward()
            optimizer.step()
        spent += time.monotonic() - began
        with torch.no_grad():
            right = sum(
                int((model(tx[i : i + 1000]).argmax(1) == ty[i : i + 1000]).sum())
                for i in range(0, len(tx), 1000)
            )
        if right / len(tx) >= accuracy:
            return spent
    return float("inf")


def accuracy(seed: int) -> float:
    """Per cent of the test set after recipe mnist-async's samples, trained serially."""
    document = recipes.load("mnist-async")
    arguments = document["method"]["optimizer"]["arguments"]
    train, test = mnist.load()
    plan = FragmentPlan(samples=len(train), batch_size=BATCH, fragment_batches=32, seed=seed)
    order = Permutations(plan)
    torch.manual_seed(seed)
    model = convnet()
    decay = document["method"]["weight_decay"]
    optimizer = torch.optim.SGD(model.parameters(), weight_decay=decay, **arguments)
    for epoch in range(document["epochs"]):
        for fragment in range(plan.fragments_per_epoch):
            for number in range(plan.batches(fragment)):
                batch, target = train.batch(order.indices(epoch, fragment, number))
                optimizer.zero_grad(set_to_none=True)
                torch.nn.functional.cross_entropy(model(batch), target).backward()
                optimizer.step()
    x, y = test.tensors
    with torch.no_grad():
        return 100.0 * float((model(x).argmax(1) == y).float().mean())


def main() -> None:
    """Print one JSON object."""
    torch.set_num_threads(1)
    what, *rest = sys.argv[1:]
    if what == "speed":
        print(json.dumps(speed(rest[0], float(rest[1]))))
        return
    if what == "accuracy":
        value = accuracy(int(rest[0]))
    else:
        value = time_to(float(rest[0]), float(rest[1]), int(rest[2]), int(rest[3]))
    print(json.dumps({"value": value}))


if __name__ == "__main__":
    main()
