"""Our side: real runs of tardygrad through its public Python interface.

Speed is taken from the run's own ``progress`` events, over a window that begins one second after
the first update and ends while every worker still trains.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import tardygrad
from benchmarks import memory
from tardygrad.metrics.sink import read

WARM_S = 1.0


class Window(tardygrad.Callback):
    """Stops the run when enough was seen; notes a worker's memory in the middle."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._seen: list[tuple[float, int]] = []
        self.memory: dict[str, float] | None = None

    def on_step_end(self, samples: int, logs: dict[str, Any]) -> None:
        """Note the time and the samples, from the first update on."""
        if not samples:
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


def time_to(accuracy: float, rate: float, seed: int, epochs: int) -> float:
    """Seconds from the first update to the parameters that reach the accuracy; inf if never."""

    class Reached(tardygrad.Callback):
        def on_evaluate(self, logs: dict[str, Any]) -> None:
            self.stop_training = logs["accuracy"] >= accuracy

    document = {
        "name": "benchmark",
        "model": {"factory": "tardygrad.recipes.networks:cnn"},
        "data": {"source": "mnist"},
        "method": {"name": "async_sgd", "optimizer": {"arguments": {"lr": rate}}},
        "workers": 2,
        "servers": 1,
        "epochs": epochs,
        "seed": seed,
    }
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "run"
        result = tardygrad.train(recipe=document, out=out, quiet=True, callbacks=[Reached()])
        first = result.summary["first_update_s"]
        times = [
            event["at_s"]
            for event in read(out / "metrics.jsonl")
            if event["event"] == "evaluate" and event["accuracy"] >= accuracy
        ]
    return min(times) - first if times else float("inf")


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
