"""Who takes part: what the scheduler knows of each worker and each server.

Also the rules about their replacement.
"""

from __future__ import annotations

from collections.abc import Iterable

from tardygrad.protocol.effects import MemberChanged
from tardygrad.protocol.events import Lease, LeaseAsked

STARTING = "starting"
READY = "ready"
DEAD = "dead"
LEFT = "left"
PUT_ASIDE = "put_aside"

ALIVE = (STARTING, READY)


class WorkerEntry:
    """One worker slot."""

    __slots__ = (
        "asked", "booked", "deaths", "due", "granted", "heard", "incarnation", "last_ask", "moved",
        "session", "slowest_s", "state", "steps", "worker",
    )  # fmt: skip

    def __init__(self, worker: int, incarnation: int) -> None:
        self.worker = worker
        self.incarnation = incarnation
        self.state = STARTING
        self.session = 0
        self.due = 0.0
        self.heard = 0.0
        self.moved = 0.0
        self.slowest_s = 0.0
        self.steps = -1
        self.booked = False
        self.deaths = 0
        self.asked: LeaseAsked | None = None
        self.last_ask = 0
        self.granted: Lease | None = None

    @property
    def alive(self) -> bool:
        """Its process is there, or about to be."""
        return self.state in ALIVE

    @property
    def has_worked(self) -> bool:
        """Its present process has computed something."""
        return self.steps > 0 or self.booked

    def changed(self, state: str, reason: str) -> MemberChanged:
        """What people are told of it."""
        return MemberChanged("worker", self.worker, self.incarnation, state, reason)

    def born(self, incarnation: int, due: float) -> None:
        """A new process takes the slot, now or at a later time."""
        self.incarnation = incarnation
        self.state = STARTING
        self.asked = self.granted = None
        self.last_ask = 0
        self.steps = -1
        self.booked = False
        self.due = self.heard = self.moved = due

    def beat(self, steps: int, now: float) -> None:
        """A sign of life; progress too if ``steps`` grew."""
        self.heard = now
        if steps > self.steps:
            if self.steps > 0:
                self.slowest_s = max(self.slowest_s, now - self.moved)
            self.steps, self.moved = steps, now


class ServerEntry:
    """One shard's server."""

    __slots__ = (
        "heard", "incarnation", "moved", "promoted", "ready", "restarts", "shard", "steps",
    )  # fmt: skip

    def __init__(self, shard: int, incarnation: int) -> None:
        self.shard = shard
        self.incarnation = incarnation
        self.ready = False
        self.promoted = False
        self.restarts = 0
        self.steps = 0
        self.heard = 0.0
        self.moved = 0.0

    def changed(self, state: str, reason: str) -> MemberChanged:
        """What people are told of it."""
        return MemberChanged("server", self.shard, self.incarnation, state, reason)

    def spoke(self, now: float) -> None:
        """A message of its main thread."""
        self.heard = self.moved = now

    def beat(self, steps: int, now: float) -> None:
        """A sign of life, of a thread of its own; progress too if ``steps`` changed."""
        self.heard = now
        if steps != self.steps:
            self.steps, self.moved = steps, now


class Restarts:
    """How often a dead worker is replaced, how soon, and when there is no sense in it.

    Args:
        budget: replacements of the whole run.
        workers: number of workers.
        first_s: how long the replacement of a slot that has died once waits.
        most_s: how long any replacement waits at most.
    """

    def __init__(self, budget: int, workers: int, *, first_s: float, most_s: float) -> None:
        self.used = 0
        self._budget, self._workers = budget, workers
        self._first_s, self._most_s = first_s, most_s
        self._in_vain = 0

    def moved(self) -> None:
        """Training advances: whatever ended before was not in vain."""
        self._in_vain = 0

    def died(self, entry: WorkerEntry) -> str:
        """Take in a death; why no replacement would do better, or an empty string."""
        entry.deaths += 1
        self._in_vain = 0 if entry.has_worked else self._in_vain + 1
        if self._in_vain <= self._workers + 2:
            return ""
        return f"{self._in_vain} workers died in a row before they had done anything"

    def delay_s(self, entry: WorkerEntry) -> float | None:
        """Seconds until the slot is filled again; None if all restarts are used up."""
        if self.used >= self._budget:
            return None
        self.used += 1
        exponent = min(max(entry.deaths - 1, 0), 30)
        return float(min(self._first_s * 2**exponent, self._most_s))


def no_one_left(workers: Iterable[WorkerEntry]) -> bool:
    """Whether no worker is alive or will be."""
    return not any(w.alive for w in workers)
