"""Who takes part: what the scheduler knows of each worker and each server.

Also the two rules about them that need no other state: when silence means death, and how long to
wait before a replacement is started. Both return their reason.
"""

from __future__ import annotations

from collections.abc import Iterable

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
        "asked", "deaths", "granted", "heard", "incarnation", "last_ask", "moved", "session",
        "slowest_s", "state", "steps", "worker",
    )  # fmt: skip

    def __init__(self, worker: int, incarnation: int) -> None:
        self.worker = worker
        self.incarnation = incarnation
        self.state = STARTING
        self.session = 0
        self.heard = 0.0
        self.moved = 0.0
        self.slowest_s = 0.0
        self.steps = -1
        self.deaths = 0
        self.asked: LeaseAsked | None = None
        self.last_ask = 0
        self.granted: Lease | None = None

    @property
    def alive(self) -> bool:
        """Its process is there, or about to be."""
        return self.state in ALIVE

    def born(self, incarnation: int, now: float) -> None:
        """A new process takes the slot."""
        self.incarnation = incarnation
        self.state = STARTING
        self.asked = self.granted = None
        self.last_ask = 0
        self.steps = -1
        self.heard = self.moved = now

    def beat(self, steps: int, now: float) -> None:
        """A sign of life; progress too if ``steps`` grew."""
        self.heard = now
        if steps > self.steps:
            if self.steps > 0:
                self.slowest_s = max(self.slowest_s, now - self.moved)
            self.steps, self.moved = steps, now


class ServerEntry:
    """One shard's server."""

    __slots__ = ("heard", "incarnation", "ready", "restarts", "shard")

    def __init__(self, shard: int, incarnation: int) -> None:
        self.shard = shard
        self.incarnation = incarnation
        self.ready = False
        self.restarts = 0
        self.heard = 0.0


def silence(entry: WorkerEntry, *, lease_s: float, start_s: float, leased: bool, now: float) -> str:
    """Why the worker must be taken for dead, or an empty string.

    Silent beyond ``lease_s`` is dead (while it starts: beyond ``start_s``). Alive but without
    progress counts as hung after a time learned from its own slowest step: twenty such steps, and
    never less than ten leases.
    """
    quiet = now - entry.heard
    allowed = start_s if entry.state == STARTING else lease_s
    if quiet > allowed:
        return f"no sign of life for {quiet:.1f} s (allowed: {allowed:g} s)"
    if entry.state == READY and leased and entry.steps > 0:
        still = now - entry.moved
        allowed = max(10 * lease_s, 20 * entry.slowest_s)
        if still > allowed:
            return f"no progress for {still:.1f} s (allowed: {allowed:.1f} s)"
    return ""


def backoff(deaths: int, *, first_s: float, most_s: float) -> float:
    """Seconds to wait before a slot that died ``deaths`` times in a row is filled again."""
    exponent = min(max(deaths - 1, 0), 30)
    return float(min(first_s * 2**exponent, most_s))


def no_one_left(workers: Iterable[WorkerEntry]) -> bool:
    """Whether no worker is alive or will be."""
    return not any(w.alive for w in workers)
