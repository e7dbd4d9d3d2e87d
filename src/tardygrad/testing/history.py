"""The history of a simulated run, and what must be true of it.

``History`` looks on while a simulation runs, through interruptions and resumptions. As it goes it
feeds an auditor of its own, which knows nothing of checkpoints and ledgers, and checks that no
worker runs further ahead than its bound and that nothing is applied after the end. ``check`` does
what can only be done afterwards: count every sample, and ask whether each death and each failure
had a cause.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch

from tardygrad.consistency import SSP
from tardygrad.data.fragments import Permutations
from tardygrad.engines.base import Job, RunEnd
from tardygrad.errors import InvariantViolation
from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev
from tardygrad.protocol import trace
from tardygrad.protocol.invariants import Auditor, account
from tardygrad.protocol.meetings import Met
from tardygrad.protocol.residuals import Residual
from tardygrad.protocol.scheduler import Scheduler
from tardygrad.protocol.worker import COMPUTING, Worker
from tardygrad.testing import verdict


class History:
    """Everything that matters of what happened.

    Args:
        job: the run's job.
        log: is handed every event as a line of text.
    """

    def __init__(self, job: Job, log: Callable[[str], None] | None = None) -> None:
        self.job = job
        self.shards = len(job.ranges)
        self.records: list[list[trace.Record]] = [[] for _ in range(self.shards)]
        self.residuals: list[Residual] = []
        self.meetings: list[Met] = []
        self.stretches: list[verdict.Stretch] = []
        self._auditor = Auditor(job.plan, self.shards, limit=job.method.staleness.limit)
        consistency = job.method.consistency
        self._bound = consistency.bound if isinstance(consistency, SSP) else None
        self._log = log
        self._scheduler: Scheduler | None = None
        self._workers: dict[int, Worker] = {}

    # --- looking on ---------------------------------------------------------------------------

    def begins(self, job: Job) -> None:
        """A stretch of the run begins."""
        self.job = job
        self.stretches.append(verdict.Stretch())
        self._workers = {}

    def record(self, shard: int, record: trace.Record) -> None:
        """A shard wrote a record in its trace."""
        self.records[shard].append(record)
        self._auditor.feed(shard, record)
        if self.stretches[-1].closed and record.kind in trace.BOOKED:
            raise InvariantViolation(f"after the end shard {shard} still takes in {record}")

    def residual(self, entry: Residual) -> None:
        """Something happened to a worker's residual."""
        self.residuals.append(entry)

    def met(self, entry: Met) -> None:
        """A worker may have averaged its replica with another's."""
        self.meetings.append(entry)

    def handled(
        self, now: float, address: ev.Address, machine: Any, event: Any, effects: list[ef.Effect]
    ) -> None:
        """A machine has handled an event."""
        stretch = self.stretches[-1]
        stretch.seconds = now
        if self._log is not None and type(event) not in (ev.Tick, ev.Heartbeat):
            self._log(_line(now, address, event, effects))
        if address[0] == "scheduler":
            self._scheduler = machine
            for effect in effects:
                stretch.see(now, effect)
        elif self._bound is not None and address[0] == "worker":
            self._workers[address[1]] = machine
            for effect in effects:
                if type(effect) is ef.Compute:
                    self._check_bound(machine, self._bound)

    def _check_bound(self, runner: Worker, bound: int) -> None:
        assert self._scheduler is not None
        leases = self._scheduler.book.leases
        if not self._scheduler.serving:
            return
        ahead = [
            w
            for w in self._workers.values()
            if w.phase == COMPUTING and w.lease is not None and w.lease.fence in leases
        ]
        if runner not in ahead:
            return
        slowest = min(ahead, key=lambda w: w.clock)
        if runner.clock - slowest.clock > bound:
            raise InvariantViolation(
                f"worker {runner.worker} starts exchange {runner.clock} while worker "
                f"{slowest.worker} is still in exchange {slowest.clock}; the bound is {bound}"
            )

    # --- afterwards ---------------------------------------------------------------------------

    def check(self, end: RunEnd) -> None:
        """Check the ledger of the whole run, and that every misfortune had a cause.

        Raises:
            InvariantViolation: a promise does not hold.
        """
        epochs = self.job.config.epochs
        if end.outcome == "done":
            self._auditor.finished(epochs)
        rows = account(self.records, self.job.plan, epochs)
        for row in rows:
            whole = row.applied + row.dropped == self.job.plan.samples
            if row.twice or (end.outcome == "done" and not whole):
                raise InvariantViolation(f"the ledger is not exact: {row}")
        if end.outcome == "done" and len(rows) != epochs * self.shards:
            raise InvariantViolation(f"{len(rows)} epochs and shards are accounted for")
        for stretch in self.stretches:
            verdict.judge(self.job, stretch)

    def applied_per_sample(self) -> torch.Tensor:
        """By the trace: how often each sample was applied, int64 ``[shards, samples]``."""
        plan = self.job.plan
        permutations = Permutations(plan)
        counts = torch.zeros((self.shards, plan.samples), dtype=torch.int64)
        for shard, records in enumerate(self.records):
            for record in sorted(trace.surviving(records), key=lambda r: r.epoch):
                if record.kind == trace.APPLIED:
                    for batch in range(record.first, record.stop):
                        indices = permutations.indices(record.epoch, record.fragment, batch)
                        counts[shard, torch.from_numpy(indices)] += 1
        return counts

    def digest(self) -> str:
        """sha256 of all records and times: equal digests mean equal histories."""
        hasher = hashlib.sha256()
        for records in self.records:
            encoder = trace.Encoder(self.shards)
            for record in records:
                hasher.update(encoder.encode(record))
        hasher.update(repr([stretch.changes for stretch in self.stretches]).encode())
        return hasher.hexdigest()


def _line(now: float, address: ev.Address, event: Any, effects: list[ef.Effect]) -> str:
    kind = type(event).__name__
    fields = " ".join(f"{key}={value}" for key, value in event._asdict().items())
    text = f"{now:10.5f} {address[0]}-{address[1]:<2} {kind} {fields}"
    return "\n".join([text, *(f"{'':>14}-> {effect}" for effect in effects)])
