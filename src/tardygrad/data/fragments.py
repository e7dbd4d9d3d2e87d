"""How an epoch is cut into work, and which samples a piece of work holds.

Theory of operation. An epoch is a permutation of the samples, cut into batches (the last may be
short), cut into *fragments*: runs of `fragment_batches` batches (the last may be short too). A
fragment is what a worker leases; a batch is what the ledger counts. `FragmentPlan` is the
arithmetic of that, in integers only, so that the scheduler and the ledger can use it anywhere.

`Permutations` says which samples a batch holds. Nothing is sent: every process computes the same
permutation from (seed, epoch). Exactly-once training rests on all of them agreeing, also hosts
with different numpy versions; `Generator.permutation` may change its stream between versions,
raw PCG64 output may not, so the permutation is the order of raw PCG64 numbers. Each number's lowest
bits are its sample's: no two are equal, so any sort gives the same order, the fastest too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

__all__ = ["FragmentPlan", "Permutations"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FragmentPlan:
    """The cut of every epoch into fragments and batches. All counts start at 0.

    Attributes:
        samples: Samples of the data set, each trained once an epoch.
        batch_size: Samples of a batch; the epoch's last batch may be short.
        fragment_batches: Batches of a fragment; the epoch's last fragment may be short.
        seed: Decides the permutations; at least 0.
        batches_per_epoch: Batches of an epoch, a short last one included.
        fragments_per_epoch: Fragments of an epoch, a short last one included.

    Raises:
        ValueError: If a count is below 1 or the seed is negative.

    >>> plan = FragmentPlan(samples=100, batch_size=8, fragment_batches=4, seed=0)
    >>> plan.batches_per_epoch, plan.fragments_per_epoch, plan.batches(3)
    (13, 4, 1)
    >>> plan.samples_in(3, 0, 1), plan.position(epoch=2, fragment=3, batch=0)
    (4, 296)
    """

    samples: int
    batch_size: int
    fragment_batches: int
    seed: int
    # Kept and not worked out anew: every step of every worker asks for them several times.
    batches_per_epoch: int = field(init=False, repr=False, compare=False)
    fragments_per_epoch: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("samples", "batch_size", "fragment_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        batches = -(-self.samples // self.batch_size)
        object.__setattr__(self, "batches_per_epoch", batches)
        object.__setattr__(self, "fragments_per_epoch", -(-batches // self.fragment_batches))

    def batches(self, fragment: int) -> int:
        """Batches of the fragment: `fragment_batches`, or fewer for the epoch's last.

        Raises:
            ValueError: If the epoch has no such fragment.
        """
        if not 0 <= fragment < self.fragments_per_epoch:
            raise ValueError(
                f"fragment {fragment} is not one of the epoch's {self.fragments_per_epoch} "
                f"(0 to {self.fragments_per_epoch - 1})"
            )
        return min(self.fragment_batches, self.batches_per_epoch - fragment * self.fragment_batches)

    def samples_in(self, fragment: int, first: int, stop: int) -> int:
        """Samples of the fragment's batches `[first, stop)`, exact for a short last batch.

        Raises:
            ValueError: If the fragment has no such batches.
        """
        if not 0 <= first <= stop <= self.batches(fragment):
            raise ValueError(
                f"fragment {fragment} has batches 0 to {self.batches(fragment) - 1}, "
                f"not [{first}, {stop})"
            )
        return self._start(fragment, stop) - self._start(fragment, first)

    def position(self, epoch: int, fragment: int, batch: int) -> int:
        """Samples of the run before this batch, if all went in nominal order.

        `batch` may be `batches(fragment)`: the position after the fragment.

        Raises:
            ValueError: If there is no such place.
        """
        if epoch < 0 or not 0 <= batch <= self.batches(fragment):
            raise ValueError(
                f"no batch {batch} in fragment {fragment} of epoch {epoch}: fragment {fragment} "
                f"has {self.batches(fragment)} batches, epochs start at 0"
            )
        return epoch * self.samples + self._start(fragment, batch)

    def _start(self, fragment: int, batch: int) -> int:
        """Samples of the epoch before this batch."""
        before = fragment * self.fragment_batches + batch
        return min(before * self.batch_size, self.samples)


class Permutations:
    """The samples of each batch, from the plan's seed. Keeps the last two epochs used.

    Two, because around an epoch's end a worker may redo a fragment of the old epoch while the next
    one has begun. An epoch costs 8 bytes a sample to keep, and a sort to make.
    """

    def __init__(self, plan: FragmentPlan) -> None:
        self.plan = plan
        self._epochs: dict[int, npt.NDArray[np.int64]] = {}

    def indices(self, epoch: int, fragment: int, batch: int) -> npt.NDArray[np.int64]:
        """The sample numbers of one batch, int64 `[batch_size]` (fewer for a short last batch).

        The array is the caller's own.

        Raises:
            ValueError: If there is no such batch.
        """
        before = epoch * self.plan.samples
        start = self.plan.position(epoch, fragment, batch) - before
        stop = self.plan.position(epoch, fragment, batch + 1) - before
        return self._epoch(epoch)[start:stop].copy()

    def batches(
        self, epoch: int, fragment: int, first: int, stop: int
    ) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
        """Position in the run and sample numbers of each of the batches `[first, stop)`.

        As `FragmentPlan.position` and `indices` give them, which ask anew for every batch.

        Raises:
            ValueError: If there are no such batches.
        """
        plan = self.plan
        end = plan.position(epoch, fragment, stop)
        order, before = self._epoch(epoch), epoch * plan.samples
        for at in range(plan.position(epoch, fragment, first), end, plan.batch_size):
            start = at - before
            yield at, order[start : min(start + plan.batch_size, end - before)].copy()

    def _epoch(self, epoch: int) -> npt.NDArray[np.int64]:
        order = self._epochs.get(epoch)
        if order is None:
            order = self._make(epoch)
            while len(self._epochs) > 1:
                del self._epochs[next(iter(self._epochs))]
        else:
            if len(self._epochs) == 1 or next(reversed(self._epochs)) == epoch:
                return order
            del self._epochs[epoch]  # and back in below: dictionaries keep the order of use
        self._epochs[epoch] = order
        return order

    def _make(self, epoch: int) -> npt.NDArray[np.int64]:
        raw = np.random.PCG64(np.random.SeedSequence((self.plan.seed, epoch)))
        keys = raw.random_raw(self.plan.samples)
        low = np.uint64((1 << (self.plan.samples - 1).bit_length()) - 1)
        keys &= ~low
        keys |= np.arange(self.plan.samples, dtype=np.uint64)
        keys.sort()
        keys &= low
        return keys.view(np.int64)
