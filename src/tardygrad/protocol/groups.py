"""Groups: which workers average their updates among themselves, and when that begins and ends.

Theory of operation. A group is made of sessions that begin together. A lease that makes a worker a
member waits, when all servers know the member (see ``Roster``), until every worker has come that is
expected: those that are ready, but for those that there is no work for. Then all are told their
leases and their places in the group. Patience is limited: who is late gets a new group.

A group ends when one of its sessions does, or when somebody comes: all its sessions end, their
leases go through fencing as those of a lost worker, and the next group begins from what the shards
have. So a group's life costs a step at its end, and no sample.

Members train *apart*, each as a group of its own, in two cases. Where some shards lack batches that
others have, a sum could not be booked whole on either. And where groups break one after the other
before anything is booked, something is wrong with them that the servers can do without.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tardygrad.protocol.events import ALONE, Group, Lease
from tardygrad.protocol.membership import STARTING, WorkerEntry

_IN_VAIN = 3
"""So many groups may end in a row before anything is booked; then members train apart."""


class Groups:
    """A part of the leasing desk, which alone uses it.

    Args:
        first: the first group's number.
        patience_s: for so long those that have come wait for those that have not.
    """

    def __init__(self, first: int, patience_s: float) -> None:
        self._next = first
        self._patience_s = patience_s
        self._places: dict[int, tuple[int, Group]] = {}
        self._coming: dict[int, tuple[int, Lease]] = {}
        self._since: float | None = None
        self._apart = False
        self._in_vain = 0

    def place(self, worker: int) -> Group:
        """The worker's place in its session's group."""
        found = self._places.get(worker)
        return ALONE if found is None else found[1]

    def moved(self) -> None:
        """Something is booked."""
        self._in_vain = 0

    # --- coming and going ---------------------------------------------------------------------

    def comes(self, ask: int, lease: Lease) -> None:
        """All servers know the member that this lease makes."""
        self._coming[lease.worker] = (ask, lease)

    def asks_again(self, worker: int, ask: int) -> bool:
        """Whether the worker's lease waits here; it will be told under the new number."""
        found = self._coming.get(worker)
        if found is None:
            return False
        self._coming[worker] = (ask, found[1])
        return True

    def leaves(self, worker: int) -> None:
        """The worker's leases are over; if it was in a group, so is that."""
        self._coming.pop(worker, None)

    # --- ending -------------------------------------------------------------------------------

    def why_over(self, members: Mapping[int, int], *, torn: bool) -> str:
        """Why the group ends now, or an empty string.

        Args:
            members: the session of each worker that is a member now.
            torn: some shards lack batches that others have.
        """
        gone = [w for w, (session, _) in self._places.items() if members.get(w) != session]
        if self._apart:
            for worker in gone:
                del self._places[worker]
            mended = not torn and self._in_vain < _IN_VAIN
            return "they need not train apart any more" if mended and self._places else ""
        if gone:
            return f"worker {gone[0]} is not in it any more"
        if torn and len(self._places) > 1:
            return "some shards lack batches that others have"
        new = [w for w in members if w not in self._places]
        return f"worker {new[0]} comes" if new and self._places else ""

    def end(self) -> list[tuple[int, int]]:
        """End the group; returns its ``(worker, session)``."""
        if not self._apart and len(self._places) > 1:
            self._in_vain += 1
        over = [(worker, session) for worker, (session, _) in self._places.items()]
        self._places = {}
        return over

    # --- beginning ----------------------------------------------------------------------------

    def is_due(self, workers: Iterable[WorkerEntry], now: float, *, excused: Iterable[int]) -> bool:
        """Whether those that have come begin now; ``excused`` are those without work."""
        if not self._coming:
            self._since = None
            return False
        if self._since is None:
            self._since = now
        if self._places:
            # Only where members train apart does one that comes not end what there is.
            return self._apart
        here = {*self._coming, *excused}
        absent = [w for w in workers if w.alive and w.worker not in here]
        late = now - self._since >= self._patience_s
        return late or all(w.state == STARTING and w.due > now for w in absent)

    def begin(self, *, torn: bool) -> list[tuple[int, Lease, Group]]:
        """Begin; returns each lease that can be told now, with its ask and its place."""
        leases = [self._coming[worker] for worker in sorted(self._coming)]
        if not self._places:
            self._apart = torn or self._in_vain >= _IN_VAIN
        self._coming, self._since = {}, None
        size = 1 if self._apart else len(leases)
        told = []
        for rank, (ask, lease) in enumerate(leases):
            group = Group(self._next, rank % size, size)
            self._places[lease.worker] = (lease.session, group)
            told.append((ask, lease, group))
        self._next += 1
        return told
