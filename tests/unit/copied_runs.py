"""Checkpoints that are copied elsewhere, and whole runs that do, for tests."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import tardygrad
from stopping import StopAfter
from tardygrad.storage.checkpoints import Checkpoint, CheckpointStore

PATIENCE_S = 60.0


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def write(store: CheckpointStore, step: int, *, run: str = "a") -> Checkpoint:
    files = [
        store.write_shard(step, shard, {"parameters": torch.full((9,), float(step))}, {"n": step})
        for shard in range(2)
    ]
    return store.commit(step, {"samples": [step], "run": run}, files)


def model() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.Tanh(), torch.nn.Linear(9, 3))


def data() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(96, 6, generator=torch.Generator().manual_seed(1))
    return x, x[:, :3].argmax(dim=1)


def stopped(run: Path, url: str, **settings: Any) -> tardygrad.Result:
    checkpoint = {"every_s": 0.5, "keep": 2, "url": url}
    return tardygrad.train(
        model, data(), out=run, quiet=True, engine="inline", workers=2, servers=2, epochs=4,
        batch_size=8, simulation={"compute": 0.2}, checkpoint=checkpoint,
        callbacks=[StopAfter(2)], **settings,
    )  # fmt: skip


def log(run: Path) -> str:
    return (run / "events.log").read_text()
