"""The proof that every sample counted once, from the traces of a run.

Theory of operation. The traces say what each shard applied, in order, and where a restored server
went back to; what survives is counted batch by batch (``protocol.invariants.account``), by code
that shares nothing with the ledger that trained.

What is demanded. A sample applied twice is an error at any time. A sample that is *not yet* applied
is one only if its epoch must be whole. Which epochs those are, no trace can say: two epochs are
open at a time, and a server that was restored may have opened older ones again. The run's outcome
says it: a run that is ``done`` has promised every epoch of its configuration, the ones that nobody
touched included; a run that was preempted, failed, was killed or is still going on has promised
none, and its unfinished epochs are *under way*. Samples dropped by policy are booked, not missing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tardygrad import documents
from tardygrad.config import RunConfig
from tardygrad.data.fragments import FragmentPlan
from tardygrad.errors import LedgerError, RunDirectoryError
from tardygrad.metrics import sink
from tardygrad.protocol import invariants, trace
from tardygrad.storage.run_directory import RunDirectory
from tardygrad.storage.traces import Piece, read_pieces

__all__ = ["Audit", "Row", "audit", "run_plan"]


class Row(NamedTuple):
    """One epoch (counted from 1) on one shard, in samples.

    ``complete`` is False for an epoch under way: what it lacks is then not missing, but to come.
    """

    epoch: int
    shard: int
    applied: int
    dropped: int
    missing: int
    twice: int
    complete: bool


@dataclass(frozen=True)
class Audit:
    """What the traces prove. ``exact``: nothing twice, and nothing missing where all is due."""

    exact: bool
    rows: list[Row]

    def verdict(self) -> str:
        """The finding in one line.

        >>> Audit(True, [Row(1, shard, 60_000, 0, 0, 0, True) for shard in (0, 1)]).verdict()
        'exact: 60,000 samples applied once on each of 2 shards, 0 dropped, 0 missing, 0 twice'
        """
        if not self.rows:
            return "exact: nothing was applied yet"
        due = [row for row in self.rows if row.complete]
        shards = len({row.shard for row in self.rows})
        where = "the one shard" if shards == 1 else f"each of {shards} shards"
        once = "once " if self.exact else ""
        counts = [
            f"{'exact' if self.exact else 'NOT EXACT'}: "
            f"{_span(self.rows, 'applied')} samples applied {once}on {where}",
            f"{_span(self.rows, 'dropped')} dropped",
            f"{_span(due, 'missing')} missing",
            f"{_span(self.rows, 'twice')} twice",
        ]
        coming = sorted({row.epoch for row in self.rows if not row.complete})
        if coming:
            noun = "epoch" if len(coming) == 1 else "epochs"
            counts.append(f"{noun} {' and '.join(map(str, coming))} under way")
        return ", ".join(counts)


def audit(run: str | os.PathLike[str], *, outcome: str | None = None) -> Audit:
    """Count how often each sample of a run was applied.

    Args:
        run: The run's directory; the run may be going on.
        outcome: How the run ended, where ``run.json`` does not say it yet.

    Raises:
        RunDirectoryError: There is no run, or it has not begun to train.
        LedgerError: A trace is damaged, missing, or not of this run.
        StorageError: Something cannot be read.
    """
    directory = RunDirectory.open(run)
    pieces = read_pieces(directory.path)
    plan = run_plan(directory.path)
    if outcome is None:
        outcome = directory.record.outcome
    due = _config(directory).epochs if outcome == "done" else 0
    return _judge(pieces, plan, due)


def run_plan(run: Path) -> FragmentPlan:
    """How the data of a run are cut, from its configuration and its first event.

    Raises:
        RunDirectoryError: There is no run, or it has not begun to train.
    """
    directory = RunDirectory.open(run)
    config = _config(directory)
    for event in sink.read(directory.metrics_jsonl):
        if event.get("event") == "run_start":
            samples = int(event["samples_per_epoch"])
            return FragmentPlan(
                samples=samples,
                batch_size=config.batch_size,
                fragment_batches=config.fragment_batches_for(samples),
                seed=config.seed,
            )
    raise RunDirectoryError(
        f"{directory} has not begun to train: its metrics.jsonl has no run_start; resume it"
    )


def _config(directory: RunDirectory) -> RunConfig:
    return RunConfig.model_validate(
        documents.parse(directory.read_config(), str(directory.config_yaml))
    )


def _judge(pieces: Sequence[Piece], plan: FragmentPlan, due: int) -> Audit:
    """Rows and finding; the first ``due`` epochs must be whole."""
    touched = max((_check(piece, plan) for piece in pieces), default=0)
    traces = [piece.records for piece in pieces]
    counted: dict[tuple[int, int], invariants.Row] = {}
    for row in invariants.account(traces, plan, max(due, touched)):
        counted[row.epoch, row.shard] = row
    # An epoch whose every update was rolled back is as if nobody had begun it.
    begun = max((epoch + 1 for epoch, _ in counted), default=0)
    untouched = (0, 0, plan.samples, 0)
    shards = sorted({piece.shard for piece in pieces})
    rows: list[Row] = []
    for epoch in range(max(due, begun)):
        for shard in shards:
            found = [
                tuple(counted[epoch, n][2:6]) if (epoch, n) in counted else untouched
                for n, piece in enumerate(pieces)
                if piece.shard == shard
            ]
            # Of a shard that was several, what holds for all of it.
            applied = min(counts[0] for counts in found)
            dropped, missing, twice = (max(counts[i] for counts in found) for i in (1, 2, 3))
            complete = epoch < due or missing == 0
            rows.append(Row(epoch + 1, shard, applied, dropped, missing, twice, complete))
    exact = not any(row.twice or (row.complete and row.missing) for row in rows)
    return Audit(exact, rows)


def _check(piece: Piece, plan: FragmentPlan) -> int:
    """See that a trace fits the plan; returns how many epochs it has touched."""
    epochs = 0
    for record in piece.records:
        if record.kind in trace.BOOKED:
            epochs = max(epochs, record.epoch + 1)
            try:
                samples = plan.samples_in(record.fragment, record.first, record.stop)
            except ValueError:
                samples = -1
            if samples != record.samples:
                raise LedgerError(
                    f"the trace of shard {piece.shard} is not of this configuration: it has "
                    f"{record.samples} samples in batches {record.first} to {record.stop - 1} of "
                    f"fragment {record.fragment} in epoch {record.epoch + 1}, the plan {plan} has "
                    f"{max(samples, 0)}; restore config.yaml as the run wrote it"
                )
    return epochs


def _span(rows: Sequence[Row], field: str) -> str:
    """Samples per shard: one number, or from the least to the most."""
    sums: dict[int, int] = {}
    for row in rows:
        sums[row.shard] = sums.get(row.shard, 0) + int(getattr(row, field))
    least, most = min(sums.values(), default=0), max(sums.values(), default=0)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
