"""The invariants, checked on the trace records by code that shares nothing with the ledger.

``Auditor`` follows a live run (the simulator feeds it every record as it is written) and raises at
the first record that breaks an invariant. ``account`` looks at finished traces and counts, batch by
batch, how often each sample was applied: it is what ``tardygrad ledger`` prints.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from tardygrad.data.fragments import FragmentPlan
from tardygrad.errors import InvariantViolation
from tardygrad.protocol import trace
from tardygrad.protocol.trace import Record


class _Shard:
    __slots__ = ("fences", "gathered", "incarnation", "lives", "nexts", "snapshots", "version")

    def __init__(self) -> None:
        self.incarnation: int | None = None
        self.version = 0
        self.nexts: dict[tuple[int, int], int] = {}
        self.fences: dict[tuple[int, int], int] = {}
        self.gathered = 0
        # Earlier incarnations of which nothing was lost.
        self.lives: tuple[int, ...] = ()
        self.snapshots: dict[int, tuple[int, int, dict[tuple[int, int], int]]] = {0: (0, 0, {})}


class Auditor:
    """Checks every record of every shard as it is written.

    Args:
        plan: how the data is cut.
        shards: number of shards.
        limit: the staleness policy's cut-off, if it has one: no applied update reaches it.
    """

    def __init__(self, plan: FragmentPlan, shards: int, *, limit: int | None = None) -> None:
        self._plan = plan
        self._samples_in = functools.cache(plan.samples_in)
        self._limit = limit
        self._shards = [_Shard() for _ in range(shards)]

    def adopt(
        self,
        shard: int,
        step: int,
        version: int,
        nexts: dict[tuple[int, int], int],
        gathered: int = 0,
    ) -> None:
        """Know a snapshot that was taken before this auditor began to look (a resumed run)."""
        self._shards[shard].snapshots.setdefault(step, (version, gathered, dict(nexts)))

    def feed(self, shard: int, record: Record) -> None:
        """Take in the next record of a shard.

        Raises:
            InvariantViolation: the record contradicts the shard's history.
        """
        state = self._shards[shard]
        if record.kind == trace.RESTORED:
            self._restored(shard, state, record)
            return
        if record.kind == trace.PROMOTED:
            self._promoted(shard, state, record)
            return
        if state.incarnation is None:
            state.incarnation = record.incarnation
        if record.incarnation != state.incarnation:
            raise _broken(shard, record, f"the shard is at incarnation {state.incarnation}")
        if record.kind == trace.SNAPSHOT:
            state.snapshots[record.seq] = (state.version, state.gathered, dict(state.nexts))
        elif record.kind == trace.APPLIED:
            self._moved(shard, state, record)
            self._check_read(shard, state, record, state.version - 1)
            self._book(shard, state, record)
        elif record.kind in (trace.GATHERED, trace.INCLUDED):
            if record.version != state.version:
                raise _broken(shard, record, "an update that was only gathered moved the version")
            self._check_read(shard, state, record, state.version)
            self._book(shard, state, record)
            state.gathered += 1
        elif record.kind == trace.COMMITTED:
            if not record.seq == state.gathered > 0:
                raise _broken(shard, record, f"{state.gathered} updates are gathered")
            self._moved(shard, state, record)
            state.gathered = 0
        elif record.kind == trace.DROPPED:
            if record.version != state.version:
                raise _broken(shard, record, "a drop moved the version")
            self._book(shard, state, record)

    def _restored(self, shard: int, state: _Shard, record: Record) -> None:
        if state.incarnation is not None and record.incarnation <= state.incarnation:
            raise _broken(shard, record, f"incarnation {state.incarnation} was there before")
        if record.seq not in state.snapshots:
            raise _broken(shard, record, "that snapshot was never taken")
        version, state.gathered, nexts = state.snapshots[record.seq]
        if record.version != version:
            raise _broken(shard, record, f"the snapshot was of v{version}")
        state.incarnation, state.version, state.nexts = record.incarnation, version, dict(nexts)
        # What a restored shard forgot may be fenced lower than before, never reused.
        state.fences, state.lives = {}, ()

    def _promoted(self, shard: int, state: _Shard, record: Record) -> None:
        before = 0 if state.incarnation is None else state.incarnation
        if record.incarnation <= before:
            raise _broken(shard, record, f"incarnation {before} was there before")
        if record.version != state.version:
            raise _broken(shard, record, f"the shard was at v{state.version}: something is lost")
        state.lives = (*state.lives, before)
        state.incarnation = record.incarnation

    def holds(self, shard: int, nexts: dict[tuple[int, int], int], gathered: int) -> None:
        """See that a promoted server has booked and gathered everything that is on record.

        Raises:
            InvariantViolation: it lacks something, or has more.
        """
        state = self._shards[shard]
        on_record = {where: batch for where, batch in state.nexts.items() if batch}
        if nexts != on_record or gathered != state.gathered:
            raise InvariantViolation(
                f"shard {shard}: the promoted server has booked {nexts} and gathered {gathered} "
                f"updates, on record are {on_record} and {state.gathered}"
            )

    def _moved(self, shard: int, state: _Shard, record: Record) -> None:
        if record.version != state.version + 1:
            raise _broken(shard, record, f"version {state.version + 1} is next")
        state.version = record.version

    def _check_read(self, shard: int, state: _Shard, record: Record, version: int) -> None:
        incarnation, read = record.reads[shard]
        # A version of a predecessor of which nothing was lost is one of this life too.
        if incarnation != state.incarnation and incarnation not in state.lives:
            raise _broken(shard, record, "it was computed from another life")
        staleness = version - read
        if not staleness == record.staleness >= 0:
            raise _broken(shard, record, f"its staleness is {staleness}")
        if self._limit is not None and staleness >= self._limit:
            raise _broken(shard, record, f"its staleness is cut off at {self._limit}")

    def _book(self, shard: int, state: _Shard, record: Record) -> None:
        where = (record.epoch, record.fragment)
        standing = state.nexts.get(where, 0)
        if not record.first == standing < record.stop:
            what = f"batch {standing} of the fragment is next: something is lost or counted twice"
            raise _broken(shard, record, what)
        samples = self._samples_in(record.fragment, record.first, record.stop)
        if record.samples != samples:
            raise _broken(shard, record, f"these are {samples} samples")
        if record.fence < state.fences.get(where, 0):
            raise _broken(shard, record, f"fence {state.fences[where]} was seen before")
        state.fences[where] = record.fence
        state.nexts[where] = record.stop

    def finished(self, epochs: int) -> None:
        """Check that every batch of every epoch is booked on every shard.

        Raises:
            InvariantViolation: something is missing.
        """
        for shard in range(len(self._shards)):
            self.finished_shard(shard, epochs)

    def finished_shard(self, shard: int, epochs: int) -> None:
        """:meth:`finished` for one shard alone."""
        for epoch in range(epochs):
            for fragment in range(self._plan.fragments_per_epoch):
                got = self._shards[shard].nexts.get((epoch, fragment), 0)
                if got != self._plan.batches(fragment):
                    raise InvariantViolation(
                        f"shard {shard}: epoch {epoch}, fragment {fragment} stands at batch "
                        f"{got} of {self._plan.batches(fragment)} at the end"
                    )


def _broken(shard: int, record: Record, what: str) -> InvariantViolation:
    return InvariantViolation(f"shard {shard}: {what}; the record is {record}")


class Row(NamedTuple):
    """One epoch on one shard, in samples. ``complete``: later epochs need not wait for it."""

    epoch: int
    shard: int
    applied: int
    dropped: int
    missing: int
    twice: int
    complete: bool


def account(traces: Sequence[Iterable[Record]], plan: FragmentPlan, epochs: int) -> list[Row]:
    """Count how often each sample was applied, per epoch and shard.

    Args:
        traces: for each shard its records, oldest first.
        plan: how the data is cut.
        epochs: epochs of the run; those that nobody has touched are left out.
    """
    sizes = np.array(
        [
            [
                plan.samples_in(f, b, b + 1) if b < plan.batches(f) else 0
                for b in range(plan.fragment_batches)
            ]
            for f in range(plan.fragments_per_epoch)
        ],
        dtype=np.int64,
    )
    rows: list[Row] = []
    for shard, records in enumerate(traces):
        counts: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for record in trace.surviving(list(records)):
            if record.epoch not in counts:
                counts[record.epoch] = (np.zeros_like(sizes), np.zeros_like(sizes))
            applied, dropped = counts[record.epoch]
            target = dropped if record.kind == trace.DROPPED else applied
            target[record.fragment, record.first : record.stop] += 1
        rows += [
            _row(epoch, shard, sizes, *counts[epoch]) for epoch in range(epochs) if epoch in counts
        ]
    return sorted(rows, key=lambda row: (row.epoch, row.shard))


def _row(
    epoch: int, shard: int, sizes: np.ndarray, applied: np.ndarray, dropped: np.ndarray
) -> Row:
    times = applied + dropped
    missing = int(sizes[times == 0].sum())
    return Row(
        epoch=epoch,
        shard=shard,
        applied=int((sizes * (applied > 0)).sum()),
        dropped=int((sizes * ((dropped > 0) & (applied == 0))).sum()),
        missing=missing,
        twice=int((sizes * np.maximum(times - 1, 0)).sum()),
        complete=missing == 0,
    )
