"""The balancer: learns how fast each worker is, and decides how much it trains in an exchange.

Theory of operation. A worker measures itself: it knows when a computation began and when it ended,
and tells with every request for a lease how many samples its process has computed in how many
seconds. What others see, its bookings, would not do: where workers wait for each other all book at
the same pace, however fast they are. New measurements count as much as all earlier ones together,
so a worker that slows down is found out within a few leases.

A decision travels with the next lease and holds until another is made. Noise makes none: the speed
ratio must have changed by more than a tenth since the one that the present share was made of.
Equal workers therefore keep the share that they begin with, 1. A slot keeps its speed when its
process is replaced, until the new one has told its own; the dead are nobody's measure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from tardygrad.balancing import ByBatch, BySteps
from tardygrad.protocol.effects import Decided
from tardygrad.protocol.events import LeaseAsked

_KEPT = 0.5
"""What a measurement still counts once the next one is in."""
_NOTABLE = 0.1
"""How much a ratio of speeds must have changed to count."""


class _Speed:
    __slots__ = ("incarnation", "samples", "seconds", "told_s", "told_samples")

    def __init__(self) -> None:
        self.incarnation = -1
        self.told_samples, self.told_s = 0, 0.0
        self.samples = self.seconds = 0.0

    def tell(self, event: LeaseAsked) -> None:
        if event.incarnation != self.incarnation:
            self.incarnation = event.incarnation
            self.told_samples, self.told_s = 0, 0.0
        samples, seconds = event.samples - self.told_samples, event.seconds - self.told_s
        if samples <= 0 or seconds <= 0:
            return
        self.told_samples, self.told_s = event.samples, event.seconds
        self.samples = _KEPT * self.samples + samples
        self.seconds = _KEPT * self.seconds + seconds

    @property
    def samples_per_s(self) -> float:
        return self.samples / self.seconds if self.seconds else 0.0


class Balancer:
    """A part of the scheduler, which alone uses it.

    Args:
        rule: what is balanced.
    """

    def __init__(self, rule: BySteps | ByBatch) -> None:
        self._rule = rule
        self._speeds: defaultdict[int, _Speed] = defaultdict(_Speed)
        # For each worker its share, and the ratio of speeds that it was made of.
        self._shares: dict[int, tuple[float, float]] = {}

    def tell(self, event: LeaseAsked) -> None:
        """A worker asks for a lease, and says what it has computed."""
        self._speeds[event.worker].tell(event)

    def decide(self, worker: int, present: Iterable[int]) -> tuple[float, list[Decided]]:
        """The share of a worker that is about to get a lease.

        Args:
            worker: its slot.
            present: the slots whose workers are alive.

        Returns:
            The share, and what is to be logged: nothing if the share is what it was.
        """
        share, ratio_before = self._shares.get(worker, (1.0, 1.0))
        speeds = {w: s for w in present if (s := self._speeds[w].samples_per_s)}
        if worker not in speeds:
            return share, []
        other = self._rule.measure(speeds)
        ratio = speeds[worker] / speeds[other]
        found = self._rule.share(ratio)
        if found == share or abs(ratio - ratio_before) <= _NOTABLE * ratio_before:
            return share, []
        self._shares[worker] = (found, ratio)
        reason = (
            f"it computes {speeds[worker]:.4g} samples/s, the {self._rule.extreme} (worker "
            f"{other}) {speeds[other]:.4g}; before: {self._rule.told(share)}"
        )
        return found, [Decided(f"worker {worker}: {self._rule.told(found)}", reason)]
