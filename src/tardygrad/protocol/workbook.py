"""The work of a run: which fragments are fresh, leased, being fenced, waiting again, or done.

Theory of operation. An epoch's fragments are issued in order. A fragment is *fresh* until it is
first leased, and *done* once every shard has booked it whole. A fragment whose lease ended early is
*fencing*: all shards are asked to refuse the old lease and to say where they stand; only when all
have answered is it *pending*, to be leased again from the lowest batch that some shard lacks. So no
two leases of a fragment can both change a shard.

At most two epochs are open at a time (one, if the admission rule says so): workers that find an
epoch exhausted go on with the next one while others finish, but nobody gets further ahead.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection

from tardygrad.data.fragments import FragmentPlan
from tardygrad.errors import InvariantViolation
from tardygrad.protocol.events import Lease, ServerReady
from tardygrad.protocol.states import FRAGMENT

Fragment = tuple[int, int]
"""``(epoch, fragment)``."""

FRESH, LEASED, FENCING, PENDING, DONE = "fresh", "leased", "fencing", "pending", "done"


class _EpochBook:
    __slots__ = ("booked", "done", "issued", "states")

    def __init__(self) -> None:
        self.issued = 0
        self.done = 0
        # Of those that are not fresh.
        self.states: dict[int, str] = {}
        self.booked: dict[int, set[int]] = {}


class _Fencing:
    __slots__ = ("fence", "known", "nexts", "waiting")

    def __init__(self, fence: int, shards: range, known: int) -> None:
        self.fence = fence
        # No shard stood further than this when the lease that ended began.
        self.known = known
        self.waiting = set(shards)
        self.nexts: dict[int, int] = {}


class WorkBook:
    """Pure bookkeeping; the scheduler is its only user."""

    def __init__(
        self, plan: FragmentPlan, epochs: int, shards: int, first_fence: int, open_epochs: int = 2
    ) -> None:
        self.plan = plan
        self.epochs = epochs
        self.leases: dict[int, Lease] = {}
        self.fencing: dict[Fragment, _Fencing] = {}
        self.next_fence = first_fence
        self._open_epochs = open_epochs
        self._fragments = plan.fragments_per_epoch
        self._shards = range(shards)
        self._books: list[_EpochBook] = []
        self._ended: set[int] = set()
        self._unfinished: set[int] = set()
        self._pending: list[tuple[int, int, int, tuple[int, ...]]] = []
        self._fence_of: dict[Fragment, int] = {}
        self._fences_of_worker: dict[int, list[int]] = {}

    # --- questions ----------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Every epoch is done."""
        return len(self._books) >= self.epochs and not self._unfinished

    def remaining(self) -> int:
        """Fragments of the run that nobody has a lease of and that are not done."""
        fresh = (self.epochs - len(self._books)) * self._fragments
        if self._books:
            fresh += self._fragments - self._books[-1].issued
        return fresh + len(self._pending) + len(self.fencing)

    def available(self) -> bool:
        """Whether a lease can be granted now."""
        return bool(self._pending) or self._fresh_epoch() is not None

    @property
    def torn(self) -> bool:
        """Whether there is work of which some shards have booked more than others."""
        return any(p[3] for p in self._pending) or any(x.cuts for x in self.leases.values())

    def holds_lease(self, worker: int) -> bool:
        """Whether the worker holds a lease."""
        return bool(self._fences_of_worker.get(worker))

    def fragments_done(self) -> int:
        """Fragments of the whole run that are done."""
        return sum(book.done for book in self._books)

    def state(self, where: Fragment) -> str:
        """A fragment's state (``states.FRAGMENT``)."""
        epoch, fragment = where
        return self._books[epoch].states.get(fragment, FRESH) if epoch < len(self._books) else FRESH

    def check(self) -> None:
        """See that each fragment's state is what the rest of the book says of it.

        Raises:
            InvariantViolation: it is not.
        """
        said = dict.fromkeys(self._fence_of, LEASED)
        said |= dict.fromkeys(self.fencing, FENCING)
        said |= dict.fromkeys(((e, f) for e, f, _, _ in self._pending), PENDING)
        held = {(e, f): s for e, b in enumerate(self._books) for f, s in b.states.items()}
        if said != {where: state for where, state in held.items() if state != DONE}:
            raise InvariantViolation(f"the fragments are {held}, but the book has {said}")

    def _turn(self, where: Fragment, cause: str) -> None:
        self._books[where[0]].states[where[1]] = FRAGMENT.after(self.state(where), cause)

    # --- leases -------------------------------------------------------------------------------

    def _fresh_epoch(self) -> int | None:
        if self._books and self._books[-1].issued < self._fragments:
            return len(self._books) - 1
        if len(self._books) < self.epochs and len(self._unfinished) < self._open_epochs:
            return len(self._books)
        return None

    def new_fence(self) -> int:
        """The next fence number."""
        fence = self.next_fence
        self.next_fence += 1
        return fence

    def grant(self, worker: int, session: int, clock: int = 0, share: float = 1.0) -> Lease | None:
        """Lease the most urgent fragment to ``worker``, or None if there is none now."""
        if self._pending:
            epoch, fragment, first, cuts = heapq.heappop(self._pending)
        else:
            fresh = self._fresh_epoch()
            if fresh is None:
                return None
            if fresh == len(self._books):
                self._open()
            epoch, first, cuts = fresh, 0, ()
            fragment = self._books[fresh].issued
            self._books[fresh].issued += 1
        stop = self.plan.batches(fragment)
        self._turn((epoch, fragment), "leased")
        fence = self.new_fence()
        lease = Lease(fence, session, worker, epoch, fragment, first, stop, cuts, clock, share)
        self.leases[lease.fence] = lease
        self._fence_of[(epoch, fragment)] = lease.fence
        self._fences_of_worker.setdefault(worker, []).append(lease.fence)
        return lease

    def _open(self) -> None:
        self._unfinished.add(len(self._books))
        self._books.append(_EpochBook())

    def _close_lease(self, where: Fragment) -> Lease | None:
        fence = self._fence_of.pop(where, None)
        if fence is None:
            return None
        lease = self.leases.pop(fence)
        self._fences_of_worker[lease.worker].remove(fence)
        return lease

    def release(self, worker: int) -> list[Fragment]:
        """End the worker's leases; returns the fragments that must be fenced."""
        fences = list(self._fences_of_worker.get(worker, ()))
        return [
            self._begin_fencing((x.epoch, x.fragment)) for x in map(self.leases.get, fences) if x
        ]

    def release_all(self) -> list[Fragment]:
        """End every lease; returns the fragments that must be fenced."""
        held = [(x.epoch, x.fragment) for x in self.leases.values()]
        return [self._begin_fencing(where) for where in held]

    def _begin_fencing(self, where: Fragment) -> Fragment:
        lease = self._close_lease(where)
        self._turn(where, "ended" if lease else "lacking")
        known = self.plan.batches(where[1]) if lease is None else max((lease.first, *lease.cuts))
        self.fencing[where] = _Fencing(self.new_fence(), self._shards, known)
        return where

    def gained(self, where: Fragment, fence: int, next_batch: int) -> bool:
        """Whether a shard's answer shows that something came of the lease that ended."""
        entry = self.fencing.get(where)
        return entry is not None and entry.fence == fence and next_batch > entry.known

    def fenced(self, shard: int, where: Fragment, fence: int, next_batch: int) -> bool:
        """Take in a shard's answer; True when the fragment is no longer fencing."""
        entry = self.fencing.get(where)
        if entry is None or entry.fence != fence:
            return False
        entry.waiting.discard(shard)
        entry.nexts[shard] = next_batch
        if entry.waiting:
            return False
        epoch, fragment = where
        stop = self.plan.batches(fragment)
        for s, standing in entry.nexts.items():
            if standing == stop:
                self.booked(s, epoch, fragment)
        if self.state(where) == FENCING:
            self._turn(where, "answered")
            del self.fencing[where]
            first, *cuts = sorted(set(entry.nexts.values()))
            heapq.heappush(self._pending, (epoch, fragment, first, tuple(cuts)))
        return True

    # --- what the shards say ------------------------------------------------------------------

    def booked(self, shard: int, epoch: int, fragment: int) -> Lease | None:
        """A shard has booked a fragment whole. Returns the lease that this completes, if any."""
        book, where = self._books[epoch], (epoch, fragment)
        before = self.state(where)
        if before == DONE:
            return None
        shards = book.booked.setdefault(fragment, set())
        shards.add(shard)
        if len(shards) < len(self._shards):
            return None
        del book.booked[fragment]
        self._turn(where, "booked")
        book.done += 1
        if book.done == self._fragments:
            self._unfinished.discard(epoch)
        # Nobody has to answer, nobody gets it again.
        self.fencing.pop(where, None)
        if before == PENDING:
            self._forget_pending({where})
        return self._close_lease(where)

    def _forget_pending(self, fragments: Collection[Fragment]) -> None:
        self._pending = [p for p in self._pending if (p[0], p[1]) not in fragments]
        heapq.heapify(self._pending)

    def newly_ended(self) -> list[int]:
        """Epochs that ended since the last call, each reported once in a run."""
        ended = [
            e for e in range(len(self._books)) if e not in self._unfinished and e not in self._ended
        ]
        self._ended.update(ended)
        return ended

    def forget_ended(self, epochs: int) -> None:
        """Treat the first ``epochs`` epochs as reported before (a resumed run)."""
        self._ended.update(range(epochs))

    def restored(self, ready: ServerReady) -> list[Fragment]:
        """Take in the ledger of a shard that came back; returns the fragments to fence.

        Afterwards no lease is active. Whatever the shard's ledger lacks is fencing, so that it will
        be leased again; other shards will skip what they have.
        """
        nexts = {(e, f): n for e, f, n in ready.nexts}
        complete = set(ready.complete)
        self._issue_what_was_touched(complete, nexts)
        again = dict.fromkeys(self.release_all())
        for epoch, book in enumerate(self._books):
            for fragment in range(book.issued):
                where = (epoch, fragment)
                if epoch in complete or nexts.get(where) == self.plan.batches(fragment):
                    if where in self.fencing:
                        continue
                    self.booked(ready.shard, epoch, fragment)
                    if self.state(where) in (DONE, PENDING):
                        continue
                    # Only this shard's ledger tells of it: the others must be asked.
                else:
                    self._unbook(ready.shard, where)
                if where in self.fencing:
                    self.fencing[where].waiting.add(ready.shard)
                else:
                    self._begin_fencing(where)
                again[where] = None
        self._forget_pending(self.fencing)
        return list(again)

    def _issue_what_was_touched(
        self, complete: set[int], nexts: dict[tuple[int, int], int]
    ) -> None:
        touched = [e for e, _ in nexts] + list(complete)
        while touched and len(self._books) <= max(touched):
            self._open()
        for epoch, book in enumerate(self._books):
            if epoch in complete or epoch < len(self._books) - 1:
                book.issued = self._fragments
        for epoch, fragment in nexts:
            book = self._books[epoch]
            book.issued = max(book.issued, fragment + 1)

    def _unbook(self, shard: int, where: Fragment) -> None:
        epoch, fragment = where
        book = self._books[epoch]
        if self.state(where) == DONE:
            book.done -= 1
            book.booked[fragment] = set(self._shards)
            self._unfinished.add(epoch)
        if fragment in book.booked:
            book.booked[fragment].discard(shard)
