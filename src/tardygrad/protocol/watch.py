"""The watch: whose silence, and whose standing still, means death.

Theory of operation. Signs of life come from a thread of its own, so they prove that a process is
there, not that it does anything. Therefore two clocks are kept for each member: when it was last
*heard*, and when it last *moved*. Limits that nobody can know beforehand are learned (how long it
is silent, see ``Silence``; how long a worker's steps take) or grow with each death in a row (how
long it takes to build a model), so that what is merely slow gets through in the end.

Where workers wait for each other, standing still is held against one alone: of those that are least
far, by the clock in their signs of life, the one that stands still longest. Whoever is least far
waits for nobody. Its time counts from when the last of the others had come as far, since until then
it may have waited; somebody who begins anew, behind all others, gives nobody more time.

Members that are silent together are so for one reason, and it is none of theirs: the machine. And
nothing means anything if the scheduler itself was stopped: then all is forgiven.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from tardygrad.protocol.membership import READY, STARTING, ServerEntry, WorkerEntry
from tardygrad.protocol.outbox import Outbox
from tardygrad.protocol.silence import MARGIN, Silence, SilenceLimits
from tardygrad.protocol.workbook import WorkBook


class _Heard(Protocol):
    """A member: when it was last heard, and what is known of its silence."""

    heard: float
    silence: Silence


class Watch:
    """A part of the scheduler, which alone uses it.

    Args:
        workers: the scheduler's entries.
        servers: the same.
        book: who holds a lease.
        outbox: what servers have not answered.
        silence: the bounds of what is learned about signs of life.
        lease_s: what may take long at least gets ten times so many seconds.
        start_s: a process must be ready within so many seconds.
        uses_clocks: whether workers may have to wait for each other.
    """

    def __init__(
        self, workers: Sequence[WorkerEntry], servers: Sequence[ServerEntry], book: WorkBook,
        outbox: Outbox, *, silence: SilenceLimits, lease_s: float, start_s: float,
        uses_clocks: bool,
    ) -> None:  # fmt: skip
        self._workers, self._servers = workers, servers
        self._book, self._outbox = book, outbox
        self._silence_limits, self._lease_s, self._start_s = silence, lease_s, start_s
        self._uses_clocks = uses_clocks
        self._last_look = 0.0
        # How far even the last of those at work has been, and since when nobody waits for that.
        self._least = 0
        self._freed = 0.0

    def begin(self, now: float) -> None:
        """The run begins."""
        self._last_look = now
        for server in self._servers:
            server.spoke(now)

    def paused(self, now: float) -> float:
        """For how long this machine slept or was stopped, if so: then all silence is forgiven."""
        pause = now - self._last_look
        self._last_look = now
        if pause <= self._silence_limits.least_s / 2:
            return 0.0
        for worker in self._workers:
            worker.heard = worker.moved = now
            worker.due += pause
            worker.silence.breaks_off()
        for server in self._servers:
            server.spoke(now)
            server.silence.breaks_off()
        return pause

    def lost_workers(self, now: float) -> Iterator[tuple[WorkerEntry, str]]:
        """The workers that must be taken for dead, and why."""
        # While a server is missing nobody can move.
        serving = all(s.ready for s in self._servers)
        if not serving:
            self._least = 0  # it may come back with fewer versions
        awaited = self._awaited(now) if self._uses_clocks else None
        for entry in self._workers:
            if entry.alive:
                may_move = serving and awaited in (None, entry)
                why = self._silence(entry, now, may_move and self._book.holds_lease(entry.worker))
                if why:
                    yield entry, why

    def lost_servers(self, now: float) -> Iterator[tuple[ServerEntry, str]]:
        """The servers that must be taken for dead, and why."""
        for entry in self._servers:
            quiet, still = now - entry.heard, now - entry.moved
            allowed = self.quiet_s(entry, now) if entry.ready else self._start_s
            if quiet > allowed:
                if entry.ready:
                    entry.silence.took_for_dead(quiet)
                yield entry, f"no sign of life for {quiet:.1f} s (allowed: {allowed:.3g} s)"
            elif entry.ready and still > self._start_s:
                asked = self._outbox.oldest(entry.shard)
                if asked is not None and now - asked > self._start_s:
                    yield entry, f"no answer for {now - asked:.1f} s (allowed: {self._start_s:g} s)"

    def _awaited(self, now: float) -> WorkerEntry | None:
        """Whom others may wait for, of those at work: of those least far, the longest still."""
        at_work = [w for w in self._workers if w.alive and self._book.holds_lease(w.worker)]
        found = min(at_work, key=lambda w: (w.clock, w.moved), default=None)
        if found is not None and found.clock > self._least:
            self._freed, self._least = now, found.clock
        return found

    def quiet_s(self, entry: _Heard, now: float) -> float:
        """For so many seconds a member that is up may be silent."""
        limits = self._silence_limits
        if now - entry.heard <= limits.least_s:
            return limits.least_s
        up = [w.heard for w in self._workers if w.state == READY and w is not entry]
        up += [s.heard for s in self._servers if s.ready and s is not entry]
        shared = now - max(up, default=now)
        return max(entry.silence.limit_s(limits), min(MARGIN * shared, limits.most_s))

    def _silence(self, entry: WorkerEntry, now: float, leased: bool) -> str:
        # A death may have been for want of patience: the next process in the slot gets more.
        patience = self._start_s * 2.0 ** min(entry.deaths, 4)
        if entry.state == STARTING:
            age = now - entry.due
            return (
                f"not ready after {age:.1f} s (allowed: {patience:g} s)" if age > patience else ""
            )
        quiet = now - entry.heard
        allowed = self.quiet_s(entry, now)
        if quiet > allowed:
            entry.silence.took_for_dead(quiet)
            return f"no sign of life for {quiet:.1f} s (allowed: {allowed:.3g} s)"
        if entry.state != READY or not leased:
            return ""
        # Twenty of its slowest steps. Before the first one nothing is known but the others' steps,
        # for which it may have to wait.
        allowed = max(10 * self._lease_s, 20 * entry.slowest_s)
        if entry.steps <= 0:
            allowed = max(allowed, patience, 20 * max(w.slowest_s for w in self._workers))
        still = now - max(entry.moved, self._freed)
        return (
            f"no progress for {still:.1f} s (allowed: {allowed:.1f} s)" if still > allowed else ""
        )
