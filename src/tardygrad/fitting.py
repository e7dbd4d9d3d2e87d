"""Simulated times from a real run's metrics: what its workers and servers took for their parts.

Theory of operation. A worker's counters only grow, so the difference of two reports tells of what
lies between them; the first one is left out, with its first step, which is longer than all others.
How much single steps scatter is taken from the differences of successive ones, so that a machine
which is slow for a while does not pass for steps that scatter. A method that trains each batch
several times takes so many steps with it, and a simulation draws each of them.

The simulator's ways are all of one length, so what an exchange costs beside the steps is divided
by the ways that lie in it: two, there and back again for the parameters, where pushes are answered
while the next step is computed; four where the worker waits for the answer, and then the server's
time for the update is in it too.

What a run does not tell is left as it is configured: control messages, bandwidth (what a local run
copies is in the exchange), slow phases (they are part of the spread) and faults.
"""

from __future__ import annotations

import math
import os
from typing import Any

from tardygrad import methods
from tardygrad.errors import RunDirectoryError
from tardygrad.metrics.history import FITTED, SPENT, History, WorkerHistory
from tardygrad.storage.run_directory import RunDirectory

__all__ = ["simulation_like"]

_STEADY = 0.01
"""A spread of less than this part of the mean is none."""


def simulation_like(run: str | os.PathLike[str], workers: int | None = None) -> dict[str, Any]:
    """Settings that make a simulation take the times of a real run.

    Args:
        run: the run's directory.
        workers: how many there are to be; None = as many as the run had when it was last begun or
            resumed. Fewer are its first ones; more begin again with its first one.

    Returns:
        ``workers`` and ``servers``, and of the section ``simulation``, in seconds: ``compute`` and
        ``network`` for each worker, and ``apply`` if the run has ended.

    Raises:
        RunDirectoryError: there is no such run, or a worker of it has not trained.
    """
    directory = RunDirectory.open(run)
    history = History.read(directory.metrics_jsonl)
    batch_size = int(history.start.get("batch_size", 0))
    servers = history.end.get("servers") or ()
    pushes = sum(server["pushes"] for server in servers)
    apply_s = sum(server["applying_s"] for server in servers) / pushes if pushes else None
    section = history.start.get("method")
    steps_per_batch = methods.parse(section).steps_per_batch if section else 1
    there = int(history.start.get("workers", len(history.workers)))
    if workers is not None:
        there = min(there, workers)
    compute, network = [], []
    for number, worker in sorted(history.workers.items())[:there]:
        told = _steady(worker)
        batches = told["samples"] / max(batch_size, 1)
        if batches < 1 or told["exchanges"] < 1:
            raise RunDirectoryError(
                f"{directory}: worker {number} trained nothing (or an earlier version of tardygrad "
                "did not count its exchanges), so nothing tells its speed; take a run in which "
                "every worker did"
            )
        compute.append(_compute(told, batches, steps_per_batch))
        network.append(_rounded(_way_s(told, apply_s or 0.0)))
    if not compute:
        raise RunDirectoryError(f"{directory} has no progress on record yet; wait, and try again")
    count = len(compute) if workers is None else workers
    simulation: dict[str, Any] = {
        key: [each[number % len(each)] for number in range(count)]
        for key, each in (("compute", compute), ("network", network))
    }
    if apply_s is not None:
        simulation["apply"] = _rounded(apply_s)
    servers_there = {"servers": int(history.start["servers"])} if "servers" in history.start else {}
    return {"workers": count, **servers_there, "simulation": simulation}


def _steady(worker: WorkerHistory) -> dict[str, float]:
    """Counts between the first report that tells of an exchange and the last, if any lie there."""
    columns = {name: worker.column(name) for name in ("samples", *SPENT, *FITTED)}
    exchanges = columns["exchanges"]
    first = int((exchanges > 0).argmax())
    if exchanges[-1] == exchanges[first]:
        return {name: float(column[-1]) for name, column in columns.items()}
    return {name: float(column[-1] - column[first]) for name, column in columns.items()}


def _compute(
    told: dict[str, float], batches: float, steps_per_batch: int
) -> float | dict[str, Any]:
    mean_s = told["computing_s"] / (batches * steps_per_batch)
    # The variance that is told is that of a batch, which is the sum of those of its steps.
    spread = math.sqrt(told["scatter_s2"] / told["exchanges"] / steps_per_batch)
    if spread < _STEADY * mean_s:
        return _rounded(mean_s)
    # Steps are seldom much shorter than most, and sometimes much longer.
    return {
        "distribution": "lognormal", "mean_s": _rounded(mean_s), "spread": _rounded(spread),
    }  # fmt: skip


def _way_s(told: dict[str, float], apply_s: float) -> float:
    """Seconds of one way, of the two or four that are in an exchange."""
    # What is counted as nothing else is the work between steps: machines, messages.
    between = told["elapsed_s"] - sum(told[name] for name in SPENT)
    exchange_s = (told["communicating_s"] + max(between, 0.0)) / told["exchanges"]
    if told["answers"] < 0.9 * told["exchanges"]:
        return exchange_s / 2
    answer_s = told["answering_s"] / told["answers"]
    return (exchange_s + max(answer_s - apply_s, 0.0)) / 4


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.4g}")
