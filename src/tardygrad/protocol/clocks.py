"""Clocks: who holds whom back where a consistency rule binds the workers to each other.

Theory of operation. A worker's clock counts its exchanges. A *member* is a worker that trains, or
is about to; only members hold others back. A server keeps the members' clocks by what they pushed
(``ClockTable``) and publishes the slowest; a worker whose rule needs more waits for that.

For the bound to hold from the first exchange on, a member must count before it starts, and with the
clock that it really has. So a lease that makes a worker a member is held back until every server
has seen the new list (``Roster``). The list carries the clock that the worker named when it asked,
and so does the lease: a worker that begins a new session goes on from there. One that is behind the
slowest member (a new process) takes up that one's clock with its first pull. A new session is a new
entry: what an earlier one pushed says nothing.

With no member left nobody holds anybody back. Workers that still wait then have lost their leases
without knowing it; they may go on, and learn it.
"""

from __future__ import annotations

from tardygrad.protocol.events import Lease, MembersChanged

NOBODY = 1 << 62
"""The slowest member's clock when there is no member: beyond every need, not to be taken up."""


class ClockTable:
    """One server's view of the members' clocks."""

    def __init__(self) -> None:
        self._slowest = 0
        self._generation = -1
        self._clocks: dict[int, tuple[int, int]] = {}
        self._at: dict[int, int] = {}

    @property
    def published(self) -> int:
        """The slowest member's clock, or ``NOBODY``."""
        return self._slowest if self._clocks else NOBODY

    @property
    def members(self) -> list[tuple[int, int]]:
        """The members, each as ``(worker, session)``."""
        return [(worker, session) for worker, (session, _) in self._clocks.items()]

    @property
    def count(self) -> int:
        """How many members there are; 1 if nobody is known to be one."""
        return max(len(self._clocks), 1)

    def is_member(self, worker: int, session: int) -> bool:
        """Whether this session of the worker's is a member."""
        known = self._clocks.get(worker)
        return known is not None and known[0] == session

    def change(self, event: MembersChanged) -> None:
        """Take in a list of members, unless a newer one is known."""
        if event.generation <= self._generation:
            return
        self._generation = event.generation
        before, self._clocks, self._at = self._clocks, {}, {}
        for worker, session, clock in event.workers:
            known = before.get(worker)
            if known is not None and known[0] == session:
                clock = max(clock, known[1])
            self._put(worker, session, max(clock, self._slowest))
        self._advance()

    def pushed(self, worker: int, session: int, clock: int) -> None:
        """A member's exchange ``clock - 1`` is booked here."""
        known = self._clocks.get(worker)
        if known is None or known[0] != session or known[1] >= clock:
            return
        left = self._at[known[1]] - 1
        if left:
            self._at[known[1]] = left
        else:
            del self._at[known[1]]
        self._put(worker, session, clock)
        if not left and known[1] == self._slowest:
            self._advance()

    def _put(self, worker: int, session: int, clock: int) -> None:
        self._clocks[worker] = (session, clock)
        self._at[clock] = self._at.get(clock, 0) + 1

    def _advance(self) -> None:
        self._slowest = min(self._at, default=self._slowest)


class Roster:
    """The scheduler's list of members, and the leases that wait until all servers know it."""

    def __init__(self, shards: int) -> None:
        self.generation = 0
        self.changed = False
        self._members: dict[int, tuple[int, int]] = {}
        self._seen = [0] * shards
        self._held: dict[int, tuple[int, int, Lease]] = {}

    @property
    def sessions(self) -> dict[int, int]:
        """The session of each worker that is a member."""
        return {worker: session for worker, (session, _) in self._members.items()}

    def join(self, ask: int, lease: Lease) -> bool:
        """A worker is to get a lease; whether it can be told now, or must wait for the servers."""
        known = self._members.get(lease.worker)
        if known is not None and known[0] == lease.session:
            return True
        self._members[lease.worker] = (lease.session, lease.clock)
        self._held[lease.worker] = (self.generation + 1, ask, lease)
        self.changed = True
        return False

    def asks_again(self, worker: int, ask: int) -> bool:
        """Whether the worker's lease is being held back; it will be told under the new number."""
        held = self._held.get(worker)
        if held is None:
            return False
        self._held[worker] = (held[0], ask, held[2])
        return True

    def leave(self, worker: int) -> None:
        """This worker holds nobody back any more."""
        self._held.pop(worker, None)
        if self._members.pop(worker, None) is not None:
            self.changed = True

    def clear(self) -> None:
        """A server has come back: no lease is valid, and it must hear of that."""
        self._members, self._held = {}, {}
        self.changed = True

    def told(self) -> MembersChanged:
        """The message about the newest list."""
        self.generation += 1
        self.changed = False
        members = tuple((w, s, c) for w, (s, c) in sorted(self._members.items()))
        return MembersChanged(self.generation, members)

    def seen(self, shard: int, generation: int) -> list[tuple[int, Lease]]:
        """A server knows a list: the leases that this sets free, each with its ask."""
        self._seen[shard] = max(self._seen[shard], generation)
        known = min(self._seen)
        free = [w for w, (since, _, _) in self._held.items() if since <= known]
        return [self._held.pop(worker)[1:] for worker in free]
