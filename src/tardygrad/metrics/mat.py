"""``metrics.mat``: the run as arrays, for MATLAB and ``scipy.io.loadmat``.

Theory of operation.  Everything is derived from ``metrics.jsonl``.  Per-epoch arrays share one
axis, ``epoch``: every epoch that was finished or evaluated, from 1 (0 for an evaluation before
training).  What an epoch lacks is NaN, so that all of them can be plotted against each other.
Where a run was stopped within an epoch, what was measured there is in ``result`` alone.

=========================  =================================================================
epoch                      [E] number of the epoch
train_loss                 [E] mean training loss over the epoch
test_loss, test_<metric>   [E] the evaluation after the epoch (test_accuracy, ...)
samples                    [E] samples applied in the run by the end of the epoch
time_s                     [E] seconds since the run's first start, at the end of the epoch
progress_*                 [P] about every 0.5 s: time_s, epoch, samples, samples_per_s, loss,
                           learning_rate, staleness_mean, _p50, _p99, _max
staleness_values           [V] every staleness that occurred, in all stretches that ended
staleness_counts           [V] updates of each, all workers
staleness_counts_worker    [W, V] the same for each worker
worker_*                   [W] id, samples, computing_s, waiting_s, communicating_s, restarts
settings                   struct: what the run was started with
result                     struct: how it ended (absent if it has not ended)
=========================  =================================================================
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tardygrad.metrics import history as histories
from tardygrad.metrics import summary
from tardygrad.metrics.history import Floats, History, as_float
from tardygrad.metrics.sink import replace_file

FILE_NAME = "metrics.mat"
"""The name of the file in a run directory."""

_NAME_LENGTH_MAX = 63  # MATLAB's limit for names of variables and fields
_RESULT = (
    "outcome",
    "reason",
    "samples",
    "seconds",
    "samples_per_s",
    "first_update_s",
    "staleness",
    "ledger",
    "digest",
    "bytes_pushed",
    "bytes_unencoded",
    "bytes_pulled",
    "final",
)


def write_mat(history: History, path: Path) -> Path:
    """Write ``metrics.mat``; an older file is replaced whole.

    Raises:
        ImportError: scipy is missing (``report`` says so in words).
        StorageError: the file cannot be written.
    """
    from scipy.io import savemat

    buffer = io.BytesIO()
    savemat(buffer, contents(history), long_field_names=True, do_compression=True, oned_as="row")
    replace_file(path, buffer.getvalue())
    return path


def contents(history: History) -> dict[str, Any]:
    """The variables of the file, as in the table above."""
    variables = _per_epoch(history)
    for name in histories.PROGRESS:
        variables[f"progress_{name}"] = history.progress[name]
    for name in histories.STALENESS:
        variables[f"progress_staleness_{name}"] = history.staleness[name]
    variables |= _staleness(history)
    variables |= _workers(history)
    stamps = ("event", "time_s")
    start = {name: value for name, value in history.start.items() if name not in stamps}
    variables["settings"] = _struct(start)
    if history.end:
        end = {name: history.end[name] for name in _RESULT if name in history.end}
        variables["result"] = _struct(end)
    return variables


def _per_epoch(history: History) -> dict[str, Any]:
    trained = {as_float(event.get("epoch")): event for event in history.epochs}
    tested = {event["epoch"]: event for event in history.evaluations if event["epoch"] % 1 == 0}
    epochs = sorted(epoch for epoch in {**trained, **tested} if not math.isnan(epoch))
    nothing: Mapping[str, Any] = {}

    def column(events: Mapping[float, Mapping[str, Any]], name: str) -> Floats:
        values = [as_float(events.get(epoch, nothing).get(name)) for epoch in epochs]
        return np.array(values, dtype=np.float64)

    variables: dict[str, Any] = {
        "epoch": np.array(epochs, dtype=np.float64),
        "train_loss": column(trained, "loss"),
        "test_loss": column(tested, "loss"),
        "test_accuracy": column(tested, "accuracy"),
        "samples": column({**tested, **trained}, "samples"),
        "time_s": column({**tested, **trained}, "time_s"),
    }
    for name in history.metric_names():
        variables[_identifier(f"test_{name}")] = column(tested, name)
    return variables


def _staleness(history: History) -> dict[str, Any]:
    by_worker = history.staleness_by_worker()
    together = summary.merge(by_worker.values())
    values = list(together)
    table = [[counts.get(value, 0) for value in values] for counts in by_worker.values()]
    return {
        "staleness_values": np.array(values, dtype=np.int64),
        "staleness_counts": np.array(list(together.values()), dtype=np.int64),
        "staleness_counts_worker": np.array(table, dtype=np.int64).reshape(len(table), len(values)),
    }


def _workers(history: History) -> dict[str, Any]:
    workers = sorted(history.workers.items())
    variables: dict[str, Any] = {
        "worker_id": np.array([worker for worker, _ in workers], dtype=np.int64)
    }
    for name in histories.COUNTERS:
        totals = [told.total(name) for _, told in workers]
        variables[f"worker_{name}"] = np.array(totals, dtype=np.float64)
    return variables


def _struct(values: Mapping[str, Any]) -> dict[str, Any]:
    """A MATLAB struct: numbers, texts and structs; null becomes NaN, anything else its text."""
    struct: dict[str, Any] = {}
    for name, value in values.items():
        key = _identifier(name)
        if isinstance(value, Mapping):
            struct[key] = _struct(value)
        elif value is None:
            struct[key] = math.nan
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            struct[key] = str(value)  # MATLAB has no such integer
        elif isinstance(value, bool | int | float | str):
            struct[key] = value
        else:
            struct[key] = str(value)
    return struct or {"empty": True}  # a struct without fields cannot be read back


def _identifier(name: str) -> str:
    """A name that MATLAB takes: letters, digits and underscores, starting with a letter."""
    plain = re.sub(r"\W", "_", name, flags=re.ASCII)
    if not plain[:1].isalpha():
        plain = f"x{plain}"
    return plain[:_NAME_LENGTH_MAX]
