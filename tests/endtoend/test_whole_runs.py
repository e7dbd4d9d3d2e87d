"""Whole runs in real processes: what they give, and that they leave nothing behind."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from real_runs import SAMPLES, assert_exact, descendants, events, leftovers, settings

import tardygrad
from tardygrad.callbacks import Callback
from tardygrad.recipes.blobs import blobs


class Recorder(Callback):
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.samples = 0
        self.epochs: list[int] = []
        self.evaluated: list[tuple[int, int]] = []

    def on_train_begin(self) -> None:
        self.calls.append("begin")

    def on_step_end(self, samples: int, logs: dict[str, Any]) -> None:
        self.calls.append("step")
        self.samples = samples

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        self.calls.append("epoch")
        self.epochs.append(epoch)

    def on_evaluate(self, logs: dict[str, Any]) -> None:
        assert {"loss", "accuracy", "epoch"} <= logs.keys()
        assert logs["epoch"] in self.epochs, "an epoch was evaluated before it was told"
        self.calls.append("evaluate")
        self.evaluated.append((logs["epoch"], logs["samples"]))

    def on_checkpoint(self, logs: dict[str, Any]) -> None:
        assert logs["step"] > 0
        self.calls.append("checkpoint")

    def on_train_end(self, logs: dict[str, Any]) -> None:
        assert logs["outcome"] == "done"
        self.calls.append("end")


def test_a_run_tells_gives_and_leaves_what_it_should(tmp_path: Path) -> None:
    recorder = Recorder()
    document = settings(evaluation={"every_epochs": 1}, epochs=3)
    for number in range(2):
        result = tardygrad.train(
            recipe=document, out=tmp_path / f"run-{number}", quiet=True, callbacks=[recorder]
        )
        gc.collect()
        opened = [p.readlink() for p in Path("/proc/self/fd").iterdir() if p.is_symlink()]
        if number == 0:
            before, recorder = len(opened), Recorder()
    assert len(opened) <= before, opened
    assert not leftovers(os.getpid())
    assert not [name for name in descendants(os.getpid()).values() if name.startswith("tg ")]

    assert result.outcome == "done", result.reason
    assert recorder.calls[0] == "begin" and recorder.calls[-1] == "end"
    assert recorder.epochs == [1, 2, 3]
    assert recorder.samples == 3 * SAMPLES
    # One after each epoch but the last, whose parameters are the final ones.
    assert [epoch for epoch, _ in recorder.evaluated] == [1, 2, 3]
    assert all(epoch * SAMPLES <= samples <= 3 * SAMPLES for epoch, samples in recorder.evaluated)
    assert recorder.calls.count("checkpoint") >= 1
    _assert_model_is_as_reported(result)
    assert_exact(result.run_directory, epochs=3, samples=SAMPLES)
    _assert_speeds(result.run_directory)


def _assert_speeds(run: Path) -> None:
    told = events(run, "run_end")[-1]
    assert told["ledger"]["exact"]
    # Trained from the first update on: what came before is no part of any speed.
    assert 0 < told["seconds"] <= told["time_s"] - told["first_update_s"]
    assert told["samples_per_s"] == pytest.approx(told["samples"] / told["seconds"])
    speeds = [row["samples_per_s"] for row in told["workers"]]
    assert speeds == pytest.approx([row["samples"] / told["seconds"] for row in told["workers"]])
    assert sum(speeds) > 0.9 * told["samples_per_s"]


def test_a_simulated_update_does_not_count_from_the_command(tmp_path: Path) -> None:
    document = settings(engine="inline", epochs=1)
    result = tardygrad.train(recipe=document, out=tmp_path / "run", quiet=True)
    assert result.summary["first_update_s"] is None
    assert result.summary["seconds"] > 0


def _assert_model_is_as_reported(result: Any) -> None:
    x, y = (torch.from_numpy(a) for a in blobs(train=SAMPLES)[1])
    with torch.no_grad():
        output = result.model(x)
    loss = float(torch.nn.functional.cross_entropy(output.float(), y))
    assert loss == pytest.approx(result.metrics["loss"], rel=1e-4)
    accuracy = float((output.argmax(1) == y).float().mean())
    assert accuracy == pytest.approx(result.metrics["accuracy"], abs=1e-6)


class Normed(torch.nn.Module):
    """Averaged buffers, dropout, and a layer that is never trained."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = torch.nn.Linear(32, 32)
        self.frozen.requires_grad_(False)
        self.body = torch.nn.Sequential(
            torch.nn.Linear(32, 32),
            torch.nn.BatchNorm1d(32),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.1),
            torch.nn.Linear(32, 10),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x + 0.1 * self.frozen(x))


class Tied(torch.nn.Module):
    """Two layers with one weight, in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(32, 32), torch.nn.Linear(32, 32)
        self.second.weight = self.first.weight
        self.last = torch.nn.Linear(32, 10)
        self.to(torch.bfloat16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(torch.bfloat16)
        return self.last(torch.relu(self.second(torch.relu(self.first(x))))).float()


def test_tied_weights_in_half_precision(tmp_path: Path) -> None:
    document = settings(epochs=12)
    del document["model"]
    document["method"] |= {"exchange_period": 4, "mixing": 0.5}
    result = tardygrad.train(Tied, recipe=document, out=tmp_path / "run", quiet=True)
    assert result.outcome == "done", result.reason
    assert result.metrics["accuracy"] > 0.8
    assert result.model.first.weight is result.model.second.weight
    assert result.model.first.weight.dtype == torch.bfloat16
    _assert_model_is_as_reported(result)
    assert_exact(result.run_directory, epochs=12, samples=SAMPLES)


def test_averaged_statistics_dropout_frozen_layers_and_bounded_clocks(tmp_path: Path) -> None:
    document = settings(epochs=12)
    del document["model"]
    document["method"] = {
        "name": "async_sgd",
        "consistency": {"name": "ssp", "bound": 0},
        "optimizer": {"class": "Adam", "arguments": {"lr": 0.005}},
    }
    result = tardygrad.train(Normed, recipe=document, out=tmp_path / "run", quiet=True)
    assert result.outcome == "done", result.reason
    assert result.metrics["accuracy"] > 0.8
    _assert_model_is_as_reported(result)
    assert_exact(result.run_directory, epochs=12, samples=SAMPLES)
    # In step: between a read and its application come at most the others' pushes of two steps.
    assert result.summary["staleness"]["max"] <= 2 * 2
    mean = result.model.body[1].running_mean
    assert torch.isfinite(mean).all() and mean.abs().sum() > 0
