"""A scheduler whose clock and whose correspondents are played by hand."""

from __future__ import annotations

from typing import Any

from tardygrad.data.fragments import FragmentPlan
from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev
from tardygrad.protocol.scheduler import Scheduler
from tardygrad.protocol.scheduler_settings import SchedulerSettings
from tardygrad.protocol.silence import SilenceLimits

PLAN = FragmentPlan(samples=48, batch_size=4, fragment_batches=3, seed=0)
FRAGMENTS = PLAN.fragments_per_epoch
LEASE_S, RESEND_S = 5.0, 1.0
EVERYTHING = 1 << 60
"""A fence above all: every grant has reached the worker."""


class Desk:
    """A scheduler, its clock, and what it said last."""

    def __init__(self, **changes: Any) -> None:
        values: dict[str, Any] = {
            "plan": PLAN, "epochs": 1, "workers": 2, "workers_max": 6, "shards": 2,
            "lease_s": LEASE_S, "silence": SilenceLimits(LEASE_S, LEASE_S, LEASE_S),
            "put_aside_after": 3, "start_s": 60.0, "stop_s": 30.0, "resend_s": RESEND_S,
            "restarts": 3, "backoff_s": 0.5, "backoff_max_s": 4.0, "checkpoint_every_s": 30.0,
            "uses_clocks": False,
        }  # fmt: skip
        self.machine = Scheduler(SchedulerSettings(**{**values, **changes}))
        self.now = 0.0
        self.effects: list[ef.Effect] = []
        self.asks = 0
        self.do(ev.Started())

    def do(self, event: ev.Event, after: float = 0.0) -> list[ef.Effect]:
        self.now += after
        self.effects = self.machine.handle(event, self.now)
        return self.effects

    def of(self, kind: type) -> list[Any]:
        return [e for e in self.effects if type(e) is kind]

    def sent(self, kind: type) -> list[Any]:
        return [e.message for e in self.of(ef.Send) if type(e.message) is kind]

    def serve(self, *shards: int, incarnation: int = 0, **ledger: Any) -> None:
        for shard in shards or range(len(self.machine.servers)):
            news = {"version": 0, "complete": (), "nexts": (), **ledger}
            self.do(ev.ServerReady(shard, incarnation, **news))

    def ask(
        self, worker: int, *, incarnation: int = 0, received: int = EVERYTHING, **changes: Any
    ) -> Any:
        """Ask for a lease; returns it if it is granted at once."""
        self.asks += 1
        asked = ev.LeaseAsked(
            worker, incarnation, 0, self.asks, received, prefetch=False, abandoned=False,
            reason="", clock=0,
        )  # fmt: skip
        self.do(asked._replace(**changes))
        granted = [g for g in self.sent(ev.Granted) if g.lease.worker == worker]
        return granted[0].lease if granted else None

    def book(self, lease: ev.Lease, number: int = 1) -> None:
        for shard, server in enumerate(self.machine.servers):
            where = (lease.epoch, lease.fragment)
            self.do(ev.Booked(shard, server.incarnation, number, *where))

    def beat(self, *workers: int) -> None:
        """A tick later: everybody shows signs of life, or only these workers."""
        self.now += 0.5
        for shard, server in enumerate(self.machine.servers):
            self.do(ev.Heartbeat("server", shard, server.incarnation, 0))
        for worker in workers:
            incarnation = self.machine.workers[worker].incarnation
            self.do(ev.Heartbeat("worker", worker, incarnation, 0))
        self.do(ev.Tick())

    def finish(self) -> None:
        """Train everything with worker 0."""
        while (lease := self.ask(0)) is not None:
            self.book(lease)

    def snapshot(self, shard: int, step: int) -> list[ef.Effect]:
        incarnation = self.machine.servers[shard].incarnation
        file = (f"{shard}", 1, "")
        return self.do(ev.SnapshotTaken(shard, incarnation, step, 4, 16, file))
