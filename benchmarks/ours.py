"""Our side: real runs of tardygrad through its public Python interface.

Speed is taken from the run's own ``progress`` events, over a window that begins one second after
the first update and ends while every worker still trains.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tardygrad
from benchmarks import memory
from benchmarks.crossing import crossing, to_measure
from tardygrad.metrics.sink import read
from tardygrad.storage.checkpoints import CheckpointStore
from tardygrad.training import job_of_run

WARM_S = 1.0
CHECKPOINT_S = 0.25
"""Short against the time of crossing.EVERY samples, so that no measurement is missed."""


class Window(tardygrad.Callback):
    """Stops the run when enough was seen; notes a worker's memory in the middle."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._seen: list[tuple[float, int]] = []
        self.memory: dict[str, float] | None = None

    def on_step_end(self, samples: int, logs: dict[str, Any]) -> None:
        """Note the time and the samples, from the first update on."""
        # What comes after the stop was asked for counts the pause in which workers leave.
        if not samples or self.stop_training:
            return
        self._seen.append((logs["time_s"], samples))
        since = logs["time_s"] - self._seen[0][0]
        if since > WARM_S + self._seconds / 2 and self.memory is None:
            self.memory = memory.largest_worker(os.getpid())
        if since >= WARM_S + self._seconds:
            self.stop_training = True

    def speed(self) -> float:
        """Samples per second within the window.

        Raises:
            RuntimeError: the run ended before the window did.
        """
        if not self.stop_training:
            raise RuntimeError(f"the run ended before {WARM_S + self._seconds:g} s of training")
        first, _ = self._seen[0]
        inside = [(at, samples) for at, samples in self._seen if at - first >= WARM_S]
        (began, before), (ended, after) = inside[0], inside[-1]
        return (after - before) / (ended - began)


def speed(document: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Train until the window is over; returns what was seen."""
    window = Window(seconds)
    with tempfile.TemporaryDirectory() as directory:
        result = tardygrad.train(
            recipe=document, out=Path(directory) / "run", quiet=True, callbacks=[window]
        )
        return {
            "value": window.speed(),
            "staleness": result.summary["staleness"]["mean"],
            **(window.memory or {}),
        }


def time_to(wanted: float, rate: float, seed: int, epochs: int) -> float:
    """Seconds from the first update to the parameters with the wanted accuracy; inf if never.

    Frequent checkpoints keep the parameters, which are measured after the run. Taking them is on
    the clock, and each counts from when it is complete, a little after its parameters were current.
    """
    document = {
        "name": "benchmark",
        "model": {"factory": "tardygrad.recipes.networks:cnn"},
        "data": {"source": "mnist"},
        "method": {"name": "async_sgd", "optimizer": {"arguments": {"lr": rate}}},
        "evaluation": {"every_epochs": 0},
        "checkpoint": {"every_s": CHECKPOINT_S, "keep": 1_000_000},
        "workers": 2,
        "servers": 1,
        "epochs": epochs,
        "seed": seed,
    }
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "run"
        result = tardygrad.train(recipe=document, out=out, quiet=True)
        return crossing(_checkpoints(out, result.summary["first_update_s"]), wanted)


def _checkpoints(run: Path, first_update_s: float) -> Iterator[tuple[float, float]]:
    """Seconds and accuracy of the checkpoints, about every EVERY samples."""
    job = job_of_run(run)
    assert job.test is not None
    adapter, store = job.build_adapter(), CheckpointStore(run)
    for event in to_measure(read(run / "metrics.jsonl")):
        tensors, _ = store.load_shard(store.read(event["step"]), 0)
        adapter.load(tensors["parameters"])
        yield event["time_s"] - first_update_s, adapter.evaluate(job.test, 100)["accuracy"]


def accuracy(seed: int) -> float:
    """Per cent of the test set after recipe mnist-async."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "run"
        result = tardygrad.train(recipe="mnist-async", seed=seed, out=out, quiet=True)
    return 100.0 * result.metrics["accuracy"]


def main() -> None:
    """Print one JSON object."""
    what, *rest = sys.argv[1:]
    if what == "speed":
        print(json.dumps(speed(json.loads(rest[0]), float(rest[1]))))
    elif what == "accuracy":
        print(json.dumps({"value": accuracy(int(rest[0]))}))
    else:
        value = time_to(float(rest[0]), float(rest[1]), int(rest[2]), int(rest[3]))
        print(json.dumps({"value": value}))


if __name__ == "__main__":
    main()
