"""How near the simulator comes: real runs, and simulated ones that were fitted to them.

``python -m benchmarks.fidelity`` trains the recipe mnist-mlp by several methods for some seconds
each, simulates every run with the times that ``tardygrad simulate --like`` takes from it, and
prints throughput and mean staleness of both as a Markdown table. ``--wait 0.01`` gives each step a
sleep, as if a device computed: then no worker takes another's processor, which is what the
simulator assumes. ``--from async_sgd`` fits once, to that method's run, and predicts the others.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

METHODS = ("async_sgd", "sync_sgd", "ssp", "softsync", "local_sgd", "diloco")
WAIT = "TARDYGRAD_FIDELITY_WAIT_S"


class Waiting(torch.nn.Module):
    """An MLP whose forward pass in training waits first, as for a device."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        from tardygrad.recipes.networks import mlp

        self.inner = mlp(sizes)
        self.wait_s = float(os.environ.get(WAIT, "0"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Wait, then compute; x is [N, 784]."""
        if self.training and self.wait_s:
            time.sleep(self.wait_s)
        out: torch.Tensor = self.inner(x)
        return out


class Told(NamedTuple):
    """What a run came to: samples a second once it was under way, and mean staleness."""

    samples_per_s: float
    staleness: float


def told(directory: Path) -> Told:
    """What the metrics of a run say, without its beginning and its end."""
    from tardygrad.metrics import summary
    from tardygrad.metrics.history import History

    history = History.read(directory / "metrics.jsonl")
    time_s, samples = history.progress["time_s"], history.progress["samples"]
    rows = [i for i in range(len(samples)) if 0 < samples[i] < samples[-1]]
    if len(rows) < 2:
        raise SystemExit(f"{directory} is too short to tell its speed; give more --epochs")
    first, last = rows[0], rows[-1]
    speed = (samples[last] - samples[first]) / (time_s[last] - time_s[first])
    return Told(float(speed), summary.mean(history.staleness_histogram()))


def document_of(method: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The recipe by a method, measured only at its end."""
    from tardygrad import recipes
    from tardygrad.comparing import documents_of
    from tardygrad.documents import merge

    settings: dict[str, Any] = {
        "epochs": arguments.epochs,
        "workers": arguments.workers,
        "servers": arguments.servers,
        "evaluation": {"every_epochs": 0},
        "checkpoint": {"every_s": float("inf")},
    }
    if arguments.wait:
        settings["model"] = {"factory": "benchmarks.fidelity:Waiting"}
    job = merge(recipes.load("mnist-mlp"), settings)
    return documents_of(job, [method], {})[method]


def simulated(document: dict[str, Any], like: dict[str, Any], place: Path) -> Told:
    """Simulate the document with the fitted times."""
    from tardygrad import training
    from tardygrad.documents import merge

    tick = {"engine": "inline", "simulation": {"tick_s": 0.05}}
    os.environ[WAIT] = "0"
    training.run(training.resolve(merge(merge(document, like), tick)), out=place, quiet=True)
    return told(place)


def real(document: dict[str, Any], wait_s: float, place: Path) -> Told:
    """Train by the document."""
    from tardygrad import training

    os.environ[WAIT] = repr(wait_s)
    training.run(training.resolve(document), out=place, quiet=True)
    return told(place)


def row(name: str, pairs: Sequence[tuple[Told, Told]]) -> str:
    """One line of the table: medians over the rounds."""
    sides = list(zip(*pairs, strict=True))
    speed, speed_there = (statistics.median(t.samples_per_s for t in side) for side in sides)
    stale, stale_there = (statistics.median(t.staleness for t in side) for side in sides)
    deviations = sorted(100 * (s.samples_per_s / r.samples_per_s - 1) for r, s in pairs)
    spread = f" ({deviations[0]:+.0f} to {deviations[-1]:+.0f})" if len(pairs) > 1 else ""
    return (
        f"| `{name}` | {speed:,.0f} | {speed_there:,.0f} | "
        f"{statistics.median(deviations):+.0f} %{spread} | {stale:.2f} | {stale_there:.2f} |"
    )


def main(words: Sequence[str] | None = None) -> int:
    """Measure, simulate, print; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fidelity", description=__doc__)
    parser.add_argument("--methods", default=",".join(METHODS), help="names, with commas")
    parser.add_argument("--rounds", type=int, default=3, help="real runs of each method")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--servers", type=int, default=2)
    parser.add_argument("--wait", type=float, default=0.0, help="seconds that a step sleeps")
    parser.add_argument("--from", dest="source", help="fit to this method's runs alone")
    arguments = parser.parse_args(words)
    from tardygrad.fitting import simulation_like

    methods = arguments.methods.split(",")
    if arguments.source is not None and arguments.source not in methods:
        parser.error(f"--from {arguments.source}: it is not among --methods")
    documents = {name: document_of(name, arguments) for name in methods}
    pairs: dict[str, list[tuple[Told, Told]]] = {name: [] for name in methods}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            places = {name: Path(folder) / f"{name}-{number}" for name in methods}
            measured = {
                name: real(documents[name], arguments.wait, place) for name, place in places.items()
            }
            for name, place in places.items():
                like = simulation_like(places.get(arguments.source, place))
                simulation = simulated(documents[name], like, Path(f"{place}-simulated"))
                pairs[name].append((measured[name], simulation))
                print(f"{number}: {row(name, pairs[name][-1:])}", file=sys.stderr, flush=True)
    print("| method | measured, samples/s | simulated | | measured, mean staleness | simulated |")
    print("|---|---|---|---|---|---|")
    for name, found in pairs.items():
        print(row(name, found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
