"""Who takes part: what the scheduler knows of each worker and each server.

Also the rules about their replacement.
"""

from __future__ import annotations

from tardygrad.protocol.effects import MemberChanged
from tardygrad.protocol.events import Lease, LeaseAsked
from tardygrad.protocol.silence import Silence
from tardygrad.protocol.states import SHARD, SLOT

STARTING = "starting"
READY = "ready"
DEAD = "dead"
LEFT = "left"
PUT_ASIDE = "put_aside"

ALIVE = (STARTING, READY)


class WorkerEntry:
    """One worker slot."""

    __slots__ = (
        "asked", "booked", "clock", "deaths", "due", "granted", "heard", "in_vain", "incarnation",
        "last_ask", "moved", "session", "silence", "slowest_s", "state", "steps", "wanted",
        "worker",
    )  # fmt: skip

    def __init__(self, worker: int, incarnation: int) -> None:
        self.worker = worker
        self.incarnation = incarnation
        self.state = SLOT.start
        self.session = 0
        self.due = 0.0
        self.heard = 0.0
        self.moved = 0.0
        self.slowest_s = 0.0
        self.steps = -1
        self.clock = 0
        self.booked = False
        self.wanted = True
        self.deaths = 0
        self.in_vain = 0
        self.silence = Silence()
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

    def turn(self, cause: str) -> None:
        """Come into the state that follows (``states.SLOT``)."""
        self.state = SLOT.after(self.state, cause)

    def changed(self, state: str, reason: str) -> MemberChanged:
        """What people are told of it."""
        return MemberChanged("worker", self.worker, self.incarnation, state, reason)

    def born(self, incarnation: int, due: float) -> None:
        """A new process takes the slot, now or at a later time."""
        self.incarnation = incarnation
        self.turn("born")
        self.asked = self.granted = None
        self.last_ask = 0
        self.steps = -1
        self.clock = 0
        self.booked = False
        self.due = self.heard = self.moved = due
        self.silence.breaks_off()

    def beat(self, steps: int, session: int, clock: int, now: float) -> None:
        """A sign of life; progress too if ``steps`` grew."""
        self.heard = now
        # In a session that is over it may have been further than anybody can be now.
        self.clock = clock if session == self.session else 0
        self.silence.heard(now)
        if steps > self.steps:
            if self.steps > 0:
                self.slowest_s = max(self.slowest_s, now - self.moved)
            self.steps, self.moved = steps, now


class ServerEntry:
    """One shard's server."""

    __slots__ = (
        "heard", "incarnation", "moved", "promoted", "restarts", "shard", "silence", "state",
        "steps",
    )  # fmt: skip

    def __init__(self, shard: int, incarnation: int) -> None:
        self.shard = shard
        self.incarnation = incarnation
        self.state = SHARD.start
        self.promoted = False
        self.restarts = 0
        self.steps = 0
        self.heard = 0.0
        self.moved = 0.0
        self.silence = Silence()

    @property
    def ready(self) -> bool:
        """It is up, and the scheduler knows its ledger."""
        return self.state == READY

    def turn(self, cause: str) -> None:
        """Come into the state that follows (``states.SHARD``)."""
        self.state = SHARD.after(self.state, cause)

    def changed(self, state: str, reason: str) -> MemberChanged:
        """What people are told of it."""
        return MemberChanged("server", self.shard, self.incarnation, state, reason)

    def succeeded(self, now: float, *, promoted: bool) -> None:
        """Another process takes the place: a backup, or one that begins from a snapshot."""
        self.incarnation += 1
        self.promoted = promoted
        self.silence.breaks_off()
        self.spoke(now)

    def spoke(self, now: float) -> None:
        """A message of its main thread."""
        self.heard = self.moved = now

    def beat(self, steps: int, now: float) -> None:
        """A sign of life, of a thread of its own; progress too if ``steps`` changed."""
        self.heard = now
        self.silence.heard(now)
        if steps != self.steps:
            self.steps, self.moved = steps, now


class Restarts:
    """How often a dead worker is replaced, how soon, and when there is no sense in it.

    Args:
        budget: replacements of the whole run.
        first_s: how long the replacement of a slot that has died once waits.
        most_s: how long any replacement waits at most.
        put_aside_after: so many lives of a slot may end in vain, one after the other.
    """

    def __init__(self, budget: int, *, first_s: float, most_s: float, put_aside_after: int) -> None:
        self.used = 0
        self._budget = budget
        self._first_s, self._most_s = first_s, most_s
        self._put_aside_after = put_aside_after
        self._in_vain = 0

    def moved(self) -> None:
        """Training advances: whatever ended before was not in vain."""
        self._in_vain = 0

    def died(self, entry: WorkerEntry, slots: int, *, own: bool) -> str:
        """Take in a death; why no replacement would do better, or an empty string.

        Args:
            entry: whose.
            slots: how many there are that are filled again.
            own: whether it said itself what it died of, as an exception of its own does.
        """
        entry.deaths += 1
        self._in_vain = 0 if entry.has_worked else self._in_vain + 1
        if not entry.booked and (own or not entry.has_worked):
            entry.in_vain += 1
        if self._in_vain <= slots + 2:
            return ""
        return f"{self._in_vain} workers died in a row before they had done anything"

    def hopeless(self, entry: WorkerEntry) -> str:
        """Why this slot is not worth another try where others work, or an empty string."""
        if entry.in_vain < self._put_aside_after:
            return ""
        return f"it died {entry.in_vain} times in a row before a fragment of it was booked"

    def delay_s(self, entry: WorkerEntry) -> float | None:
        """Seconds until the slot is filled again; None if all restarts are used up."""
        if self.used >= self._budget:
            return None
        self.used += 1
        exponent = min(max(entry.deaths - 1, 0), 30)
        return float(min(self._first_s * 2**exponent, self._most_s))
