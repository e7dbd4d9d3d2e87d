"""A whole run in memory, as the series that pictures and tables need.

Theory of operation.  ``History`` is told every event of ``metrics.jsonl`` in order and keeps only
numbers, in compact arrays: a day of training is 170,000 progress events, of which whole
dictionaries would not fit.

A run that was resumed went back to its checkpoint: its time goes on, but its samples start again
from there, and what it had said about later samples no longer counts.  So series against time
show everything that happened; series against samples (``against_samples``), epochs and
evaluations show what counts, the last word on each.  Counters of a worker that start again from
zero, and the histograms of the stretches, are added up.

A run that is stopped is measured where it stands, in the middle of an epoch.  That is no epoch's
evaluation: it is kept at its true place, and only until the run goes on.
"""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Iterable, Mapping
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tardygrad.metrics import sink, summary, wording

Floats: TypeAlias = NDArray[np.float64]

PROGRESS = ("time_s", "epoch", "samples", "samples_per_s", "loss", "learning_rate")
STALENESS = ("mean", "p50", "p99", "max")
SPENT = ("computing_s", "waiting_s", "communicating_s")
COUNTERS = ("samples", *SPENT, "restarts")
TRAFFIC = ("samples", "bytes_pushed", "bytes_pulled")
FITTED = ("exchanges", "scatter_s2", "answers", "answering_s", "elapsed_s")
"""Counters of a worker from which a simulation takes its times (``fitting``)."""


def as_float(value: Any) -> float:
    """A number as float, anything else as NaN."""
    if isinstance(value, int | float):
        return float(value)
    return math.nan


class Series:
    """Columns of floats that grow by a row at a time."""

    def __init__(self, names: Iterable[str]) -> None:
        """Start empty, with these columns."""
        self._columns = {name: array("d") for name in names}

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row; what it lacks, or has no number for, is NaN."""
        for name, column in self._columns.items():
            column.append(as_float(row.get(name)))

    def __getitem__(self, name: str) -> Floats:
        """A column, ``float64 [rows]``."""
        return np.array(self._columns[name], dtype=np.float64)

    def __len__(self) -> int:
        """Number of rows."""
        return len(next(iter(self._columns.values())))


class WorkerHistory:
    """What one worker slot told: its counters over time, and its last row."""

    def __init__(self) -> None:
        """Start with nothing told."""
        self._series = Series(("time_s", *COUNTERS, *FITTED))
        self._last = dict.fromkeys((*COUNTERS, *FITTED), 0.0)
        self._base = dict.fromkeys((*COUNTERS, *FITTED), 0.0)
        self.row: Mapping[str, Any] = {}

    def add(self, time_s: Any, row: Mapping[str, Any]) -> None:
        """Take note of the worker's row in a progress event."""
        self.row = dict(row)
        totals: dict[str, Any] = {"time_s": time_s}
        for name in (*COUNTERS, *FITTED):
            value = as_float(row.get(name))
            if math.isnan(value):
                value = self._last[name]
            if value < self._last[name]:  # a resumed run counts from zero again
                self._base[name] += self._last[name]
            self._last[name] = value
            totals[name] = self._base[name] + value
        self._series.add(totals)

    def column(self, name: str) -> Floats:
        """``time_s`` or a counter that never goes back, ``float64 [progress events]``."""
        return self._series[name]

    def total(self, name: str) -> float:
        """A counter at the end."""
        return self._base[name] + self._last[name]

    def shares(self, edges: Floats) -> Floats:
        """Parts of each stretch of time spent computing, waiting, communicating.

        Args:
            edges: Rising instants in seconds, ``[bins + 1]``.

        Returns:
            ``float64 [3, bins]``; each column sums to at most 1, and to less where the worker
            was starting or dead.
        """
        time_s = self.column("time_s")
        if len(time_s) == 0:
            return np.zeros((3, len(edges) - 1))
        spent = np.array([np.interp(edges, time_s, self.column(name)) for name in SPENT])
        shares = np.diff(spent, axis=1) / np.diff(edges)
        shares /= np.maximum(shares.sum(axis=0), 1.0)  # overlapping work may count twice
        return np.asarray(shares, dtype=np.float64)


class History:
    """All that pictures and tables need of a run; ``add`` is the one mutator."""

    def __init__(self) -> None:
        """Start with no event."""
        self.start: dict[str, Any] = {}
        self.end: dict[str, Any] = {}
        self.stretches = 0
        self.stretches_in_histograms = 0
        self.last_time_s = 0.0
        self.progress = Series(PROGRESS)
        self.staleness = Series(STALENESS)
        self.workers: dict[int, WorkerHistory] = {}
        self.members: list[dict[str, Any]] = []
        self._epochs: dict[float, dict[str, Any]] = {}
        self._evaluations: dict[float, dict[str, Any]] = {}
        self._within_epoch: list[dict[str, Any]] = []
        self._histograms: dict[int, dict[int, int]] = {}
        self.traffic = dict.fromkeys(TRAFFIC, 0.0)
        self._events = 0

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """The history in a ``metrics.jsonl``.

        Raises:
            StorageError, RunDirectoryError: as ``sink.read``.
        """
        history = cls()
        for event in sink.read(path):
            history.add(event)
        return history

    def __len__(self) -> int:
        """Number of events told."""
        return self._events

    def add(self, event: Mapping[str, Any]) -> None:
        """Take note of one event; kinds that are not known are passed over."""
        self._events += 1
        time_s = as_float(event.get("time_s"))
        if not math.isnan(time_s):
            self.last_time_s = max(self.last_time_s, time_s)
        match event.get("event"):
            case "run_start":
                self.start = dict(event)
                self.end = {}  # of an earlier stretch
                self.stretches += 1
                self._within_epoch = []
            case "progress":
                self._add_progress(event)
            case "member":
                self.members.append(dict(event))
            case "epoch":
                self._epochs[as_float(event.get("epoch"))] = dict(event)
            case "evaluate":
                self._add_evaluation(event)
            case "run_end":
                self.end = dict(event)
                self._add_histograms(event)
                self._add_traffic(event)

    def _add_progress(self, event: Mapping[str, Any]) -> None:
        self.progress.add(event)
        self.staleness.add(event.get("staleness") or {})
        for row in event.get("workers") or ():
            worker = int(row.get("worker", 0))
            self.workers.setdefault(worker, WorkerHistory()).add(event.get("time_s"), row)

    def _add_evaluation(self, event: Mapping[str, Any]) -> None:
        epoch = as_float(event.get("epoch"))
        per_epoch = as_float(self.start.get("samples_per_epoch"))
        if event.get("final") and per_epoch > 0:
            epoch = as_float(event.get("samples")) / per_epoch
        told = {**event, "epoch": epoch}
        if epoch % 1 > 0:
            self._within_epoch = [told]
        else:
            self._evaluations[epoch] = told

    def _add_histograms(self, event: Mapping[str, Any]) -> None:
        told = event.get("staleness_histogram")
        if told is None:
            return
        self.stretches_in_histograms += 1
        for worker, histogram in told.items():
            before = self._histograms.get(int(worker), {})
            self._histograms[int(worker)] = summary.merge([before, summary.from_json(histogram)])

    def _add_traffic(self, event: Mapping[str, Any]) -> None:
        """Bytes, and the samples that they were for: those of the stretches that have an end."""
        before = as_float(self.start.get("samples", 0.0))
        told = {**event, "samples": as_float(event.get("samples")) - before}
        for name in TRAFFIC:
            self.traffic[name] += as_float(told.get(name))

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """The last word on each finished epoch, in order."""
        return [event for _, event in sorted(self._epochs.items())]

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The last evaluation after each epoch, in order.

        If the run was stopped within an epoch there is one more, whose ``epoch`` is no whole
        number: where it stopped.
        """
        told = [*self._evaluations.values(), *self._within_epoch]
        return sorted(told, key=lambda event: float(event["epoch"]))

    def metric_names(self) -> list[str]:
        """The metrics of the evaluations other than the loss, in the order they appeared."""
        return list(dict.fromkeys(n for event in self.evaluations for n in wording.metrics(event)))

    def against_samples(self) -> NDArray[np.bool_]:
        """Which progress rows still count when samples are the axis, ``bool [rows]``."""
        samples = self.progress["samples"]
        if len(samples) == 0:
            return np.zeros(0, dtype=np.bool_)
        later = np.append(np.fmin.accumulate(samples[::-1])[::-1][1:], np.inf)
        return np.asarray(samples < later, dtype=np.bool_)

    def member_times(self, kind: str, state: str) -> list[float]:
        """When members of a kind ("worker", "server") entered a state, in seconds."""
        return [
            as_float(event.get("time_s"))
            for event in self.members
            if event.get("kind") == kind and event.get("state") == state
        ]

    def staleness_by_worker(self) -> dict[int, dict[int, int]]:
        """Each worker's histogram over all stretches that came to their end."""
        return dict(sorted(self._histograms.items()))

    def staleness_histogram(self) -> dict[int, int]:
        """The same for the updates of all workers together."""
        return summary.merge(self.staleness_by_worker().values())
