"""A shard's open sum: pushes of one group that wait until all its ranks have pushed.

Theory of operation. The ranks of a group average their updates, and each pushes the mean for the
batches that it contributed: the *parts* of a sum. A sum is booked whole or not at all, so a part is
answered only when the last one is there. Where one part cannot be taken in, none can, and nothing
more of that group: the generation is *broken*, its ranks are refused and begin new sessions.

A rank's next part comes only after the commit of the one before, so one sum is open at a time.
"""

from __future__ import annotations

from tardygrad.protocol.events import Push


class Parts:
    """The parts that wait; nothing is booked before all are there."""

    def __init__(self) -> None:
        self._waiting: dict[int, Push] = {}
        self._broken = 0

    @property
    def generation(self) -> int:
        """Whose sum is open; 0 if none is."""
        return next((push.generation for push in self._waiting.values()), 0)

    @property
    def members(self) -> list[tuple[int, int]]:
        """Whose parts wait, each as ``(worker, session)``."""
        return [(push.worker, push.session) for push in self._waiting.values()]

    def is_broken(self, generation: int) -> bool:
        """Whether nothing of this group is taken in any more."""
        return generation <= self._broken

    def add(self, push: Push) -> list[Push]:
        """Take in a part; returns all parts, by worker, when it was the last one."""
        self._waiting[push.worker] = push
        if len(self._waiting) < push.ranks:
            return []
        whole = [self._waiting[worker] for worker in sorted(self._waiting)]
        self._waiting.clear()
        return whole

    def break_up(self, generation: int) -> list[Push]:
        """Take in nothing of this and earlier groups any more; returns the parts that waited."""
        self._broken = max(self._broken, generation)
        late = [push for push in self._waiting.values() if self.is_broken(push.generation)]
        for push in late:
            del self._waiting[push.worker]
        return late
