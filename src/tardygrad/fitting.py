"""Simulated times from a real run's metrics: what its workers took for a step and an exchange.

Means over the whole run, one for each worker. How single steps scattered is not on record, so the
fitted steps are all alike; what a server takes for an update is not either, and stays as it is
configured.
"""

from __future__ import annotations

import os
from typing import Any

from tardygrad.errors import RunDirectoryError
from tardygrad.metrics.history import History
from tardygrad.storage.run_directory import RunDirectory

__all__ = ["simulation_like"]


def simulation_like(run: str | os.PathLike[str]) -> dict[str, Any]:
    """Settings that make a simulation take the times of a real run.

    Args:
        run: the run's directory.

    Returns:
        ``workers``, and ``compute`` and ``network`` of the section ``simulation``, in seconds.

    Raises:
        RunDirectoryError: there is no such run, or a worker of it has not trained.
    """
    directory = RunDirectory.open(run)
    history = History.read(directory.metrics_jsonl)
    batch_size = int(history.start.get("batch_size", 0))
    period = int(history.start.get("method", {}).get("exchange_period", 1))
    compute, network = [], []
    for number, worker in sorted(history.workers.items()):
        batches = worker.total("samples") / max(batch_size, 1)
        if batches < 1:
            raise RunDirectoryError(
                f"{directory}: worker {number} trained nothing, so nothing tells its speed; take a "
                "run in which every worker did"
            )
        compute.append(_rounded(worker.total("computing_s") / batches))
        # There and back again, once an exchange.
        exchanges = batches / min(period, int(history.start.get("fragment_batches", period)))
        network.append(_rounded(worker.total("communicating_s") / exchanges / 2))
    if not compute:
        raise RunDirectoryError(f"{directory} has no progress on record yet; wait, and try again")
    return {"workers": len(compute), "simulation": {"compute": compute, "network": network}}


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.4g}")
