"""Real runs, undisturbed and under fire, computed again: the same parameters, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from real_runs import kill_some, saboteur, settings, wait_until

import tardygrad


def network() -> torch.nn.Module:
    """BatchNorm and dropout: what depends on more than parameters and batch."""
    return torch.nn.Sequential(
        torch.nn.Linear(32, 16),
        torch.nn.BatchNorm1d(16),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.2),
        torch.nn.Linear(16, 10),
    )


class Noisy(torch.utils.data.Dataset[Any]):
    """Data that are augmented at random, from every generator that people use."""

    def __len__(self) -> int:
        return 512

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        shift = torch.randn(1) + float(np.random.normal())
        return torch.full((32,), index / 512) + 0.1 * shift, index % 10


def replayed(run: Path, data: Any = None, **changes: Any) -> tardygrad.Result:
    document = settings(**changes)
    del document["model"]
    if data is not None:
        del document["data"]
    result = tardygrad.train(network, data, recipe=document, out=run, quiet=True)
    report = tardygrad.replay(run)
    assert report.matches, (report.expected, report.found)
    assert report.updates > 0
    return result


@pytest.mark.parametrize(
    "method",
    [
        {"optimizer": {"class": "Adam", "arguments": {"lr": 0.01}}},
        {"exchange_period": 4, "mixing": 0.5, "clip_norm": 1.0, "weight_decay": 1e-4},
        {"consistency": {"name": "ssp", "bound": 1}, "staleness": {"name": "inverse"}},
    ],
)
def test_a_real_run_is_repeated(tmp_path: Path, method: dict[str, Any]) -> None:
    replayed(tmp_path / "run", method={"name": "async_sgd", **method})


def test_a_real_run_under_fire_is_repeated(tmp_path: Path) -> None:
    run = tmp_path / "run"

    def deed() -> None:
        kill_some("worker", 4, seed=3)
        wait_until(lambda: any(run.glob("checkpoints/*/manifest.json")), "a checkpoint")
        kill_some("server", 2, seed=4)
        kill_some("worker", 2, seed=5)

    enough = tardygrad.Callback()

    def all_of_it() -> None:
        try:
            deed()
        finally:
            enough.stop_training = True

    document = settings(
        epochs=100_000,
        checkpoint={"every_s": 0.2},
        method={"name": "async_sgd", "mixing": 0.7},
    )
    del document["model"]
    with saboteur(all_of_it):
        result = tardygrad.train(network, recipe=document, out=run, quiet=True, callbacks=[enough])
    assert result.outcome == "preempted"
    report = tardygrad.replay(run)
    assert report.matches, (report.expected, report.found)
    assert tardygrad.audit(run).exact


def test_random_augmentation_is_repeated(tmp_path: Path) -> None:
    replayed(tmp_path / "run", Noisy(), epochs=2)
