"""One checkpoint at a time: snapshots of all shards are collected, then the manifest is written.

Snapshots need no common moment: each holds its shard's parameters *and* ledger, so whatever one
lacks is known and trained again. A round that loses a server is abandoned, and its number never
used again.
"""

from __future__ import annotations

from tardygrad.protocol.effects import CommitCheckpoint
from tardygrad.protocol.events import SnapshotTaken


class CheckpointRound:
    """The scheduler's view of the checkpoint in the making."""

    def __init__(self, shards: int, first_step: int) -> None:
        self.step = first_step - 1
        self.active = False
        self._shards = shards
        self._taken: dict[int, SnapshotTaken] = {}

    def begin(self) -> int:
        """Start the next round and return its step."""
        self.step += 1
        self.active = True
        self._taken = {}
        return self.step

    def abandon(self) -> None:
        """Forget the round."""
        self.active = False
        self._taken = {}

    def take(self, taken: SnapshotTaken, state: dict[str, object]) -> CommitCheckpoint | None:
        """Add a shard's snapshot; the commit once all are there."""
        self._taken[taken.shard] = taken
        if len(self._taken) < self._shards:
            return None
        self.active = False
        ordered = [self._taken[s] for s in range(self._shards)]
        everything = {
            **state,
            "versions": [t.version for t in ordered],
            "samples": [t.samples for t in ordered],
        }
        return CommitCheckpoint(self.step, tuple(t.file for t in ordered), everything)
