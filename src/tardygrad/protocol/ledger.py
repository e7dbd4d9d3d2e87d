"""A shard's ledger: for each fragment, the first batch that is not booked yet.

The ledger changes together with the shard (one mutator, one event), so "applied" and "booked" can
never disagree. A push names its batch range; against the ledger that range is new, already there,
ahead of its turn, or across the border of what is there. A batch is booked as applied or as
dropped, never both, never twice. Finished epochs shrink to two numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tardygrad.data.fragments import FragmentPlan

NEW = "new"
KNOWN = "known"
AHEAD = "ahead"
ACROSS = "across"


class _Entry:
    __slots__ = ("fence", "next")

    def __init__(self, next_batch: int, fence: int) -> None:
        self.next = next_batch
        self.fence = fence


class Ledger:
    """What one shard has booked."""

    def __init__(self, plan: FragmentPlan) -> None:
        self._plan = plan
        self._fragments = plan.fragments_per_epoch
        self._last_batches = plan.batches(self._fragments - 1)
        self._entries: dict[tuple[int, int], _Entry] = {}
        self._applied: dict[int, int] = {}
        self._dropped: dict[int, int] = {}
        self._fragments_left: dict[int, int] = {}
        self._complete: set[int] = set()
        self.consumed = 0
        """Samples booked in the whole run, the learning-rate schedule's clock."""

    def _batches(self, fragment: int) -> int:
        whole = fragment < self._fragments - 1
        return self._plan.fragment_batches if whole else self._last_batches

    def fence(self, epoch: int, fragment: int) -> int:
        """The lowest fence that this fragment's pushes may carry."""
        entry = self._entries.get((epoch, fragment))
        return 0 if entry is None else entry.fence

    def next(self, epoch: int, fragment: int) -> int:
        """The first batch of the fragment that is not booked."""
        if epoch in self._complete:
            return self._batches(fragment)
        entry = self._entries.get((epoch, fragment))
        return 0 if entry is None else entry.next

    def raise_fence(self, epoch: int, fragment: int, fence: int) -> None:
        """Refuse pushes of the fragment under a fence lower than ``fence`` from now on."""
        if epoch in self._complete:
            return
        entry = self._entries.setdefault((epoch, fragment), _Entry(0, fence))
        entry.fence = max(entry.fence, fence)

    def place(self, epoch: int, fragment: int, first: int, stop: int) -> str:
        """Where ``[first, stop)`` lies: NEW (its turn), KNOWN, AHEAD of its turn, or ACROSS."""
        standing = self.next(epoch, fragment)
        if first == standing:
            return NEW
        if stop <= standing:
            return KNOWN
        return AHEAD if first > standing else ACROSS

    def book(
        self, epoch: int, fragment: int, stop: int, samples: int, fence: int, *, applied: bool
    ) -> bool:
        """Book batches up to ``stop``; True when that was the fragment's last batch."""
        entry = self._entries.get((epoch, fragment))
        if entry is None:
            entry = self._entries[(epoch, fragment)] = _Entry(0, fence)
        entry.next = stop
        if fence > entry.fence:
            entry.fence = fence
        totals = self._applied if applied else self._dropped
        totals[epoch] = totals.get(epoch, 0) + samples
        self.consumed += samples
        if stop < self._batches(fragment):
            return False
        left = self._fragments_left.get(epoch, self._fragments) - 1
        self._fragments_left[epoch] = left
        if left == 0:
            self._forget(epoch)
        return True

    def _forget(self, epoch: int) -> None:
        self._complete.add(epoch)
        del self._fragments_left[epoch]
        self._entries = {k: v for k, v in self._entries.items() if k[0] != epoch}

    @property
    def epochs_begun(self) -> int:
        """How many epochs there are up to the last one of which anything is booked."""
        return max((*self._applied, *self._dropped), default=-1) + 1

    @property
    def epochs_complete(self) -> int:
        """How many epochs from the first on are booked whole."""
        return next(e for e in range(len(self._complete) + 1) if e not in self._complete)

    def is_complete(self, epoch: int) -> bool:
        """Whether the epoch is booked whole."""
        return epoch in self._complete

    def complete(self) -> tuple[int, ...]:
        """The epochs that are booked whole."""
        return tuple(sorted(self._complete))

    def nexts(self) -> tuple[tuple[int, int, int], ...]:
        """``(epoch, fragment, next)`` for every fragment touched in an unfinished epoch."""
        return tuple((e, f, entry.next) for (e, f), entry in sorted(self._entries.items()))

    def standing(self) -> dict[tuple[int, int], int]:
        """``(epoch, fragment)`` to the first batch not booked, finished epochs included."""
        fragments = range(self._fragments)
        whole = {(e, f): self._batches(f) for e in self.complete() for f in fragments}
        return whole | {where: entry.next for where, entry in self._entries.items()}

    def booked(self) -> dict[tuple[int, int], int]:
        """:meth:`standing` without fragments of which nothing is booked."""
        return {where: batch for where, batch in self.standing().items() if batch}

    def merged(self, others: Sequence[Ledger]) -> Ledger:
        """The ledger of a shard that is made of this one's and others that have booked the same.

        Fences are the highest. Of what some dropped and others applied, it counts as dropped.
        """
        made = Ledger.from_state(self._plan, self.state())
        for other in others:
            for (epoch, fragment), entry in sorted(other._entries.items()):
                made.raise_fence(epoch, fragment, entry.fence)
            for epoch, dropped in sorted(other._dropped.items()):
                more = dropped - made._dropped.get(epoch, 0)
                if more > 0:
                    made._dropped[epoch] = dropped
                    made._applied[epoch] = made._applied.get(epoch, 0) - more
        return made

    def state(self) -> dict[str, Any]:
        """Plain data for a snapshot."""
        return {
            "consumed": self.consumed,
            "complete": sorted(self._complete),
            "applied": sorted(self._applied.items()),
            "dropped": sorted(self._dropped.items()),
            "entries": [[e, f, x.next, x.fence] for (e, f), x in sorted(self._entries.items())],
        }

    @classmethod
    def from_state(cls, plan: FragmentPlan, state: dict[str, Any]) -> Ledger:
        """The ledger that :meth:`state` described."""
        ledger = cls(plan)
        ledger.consumed = int(state["consumed"])
        ledger._complete = set(state["complete"])
        ledger._applied = {int(e): int(n) for e, n in state["applied"]}
        ledger._dropped = {int(e): int(n) for e, n in state["dropped"]}
        for epoch, fragment, next_batch, fence in state["entries"]:
            ledger._entries[(epoch, fragment)] = _Entry(next_batch, fence)
            if next_batch == plan.batches(fragment):
                left = ledger._fragments_left.get(epoch, plan.fragments_per_epoch)
                ledger._fragments_left[epoch] = left - 1
        return ledger
