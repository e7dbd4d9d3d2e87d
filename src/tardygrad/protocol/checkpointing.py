"""One checkpoint at a time: snapshots of all shards are collected, then the manifest is written.

Snapshots need no common moment: each holds its shard's parameters *and* ledger, so whatever one
lacks is known and trained again. A round that loses a server is abandoned, and its number never
used again.
"""

from __future__ import annotations

from collections.abc import Sequence

from tardygrad.protocol.effects import CommitCheckpoint, Send
from tardygrad.protocol.events import SnapshotAsked, SnapshotTaken
from tardygrad.protocol.membership import ServerEntry
from tardygrad.protocol.outbox import Outbox


class CheckpointRound:
    """The scheduler's view of the checkpoint in the making.

    Args:
        shards: number of shards.
        first_step: the number of the first checkpoint.
        outbox: where commands to servers are kept until they are answered.
    """

    def __init__(self, shards: int, first_step: int, outbox: Outbox) -> None:
        self.step = first_step - 1
        self.active = False
        self.since = 0.0
        self._shards = range(shards)
        self._outbox = outbox
        self._taken: dict[int, SnapshotTaken] = {}

    def begin(self, servers: Sequence[ServerEntry], floor: int, now: float) -> list[Send]:
        """Start the next round: all servers are asked for a snapshot.

        Args:
            servers: all of them.
            floor: fences that they refuse from then on.
            now: the time.
        """
        self.step += 1
        self.active, self.since = True, now
        self._taken = {}
        asked = [SnapshotAsked(self.step, floor, server.incarnation) for server in servers]
        return [self._outbox.command(("snapshot", s), s, asked[s], now) for s in self._shards]

    def abandon(self) -> None:
        """Forget the round."""
        self.active = False
        self._taken = {}
        for shard in self._shards:
            self._outbox.forget(("snapshot", shard))

    def answered(self, shard: int) -> None:
        """The shard need not be asked again."""
        self._outbox.forget(("snapshot", shard))

    def lacking(self) -> list[int]:
        """The shards whose snapshot is awaited."""
        return [s for s in self._shards if self.active and s not in self._taken]

    def take(self, taken: SnapshotTaken, state: dict[str, object]) -> CommitCheckpoint | None:
        """Add a shard's snapshot; the commit once all are there."""
        self._taken[taken.shard] = taken
        if self.lacking():
            return None
        self.active = False
        ordered = [self._taken[s] for s in self._shards]
        everything = {
            **state,
            "versions": [t.version for t in ordered],
            "samples": [t.samples for t in ordered],
        }
        return CommitCheckpoint(self.step, tuple(t.file for t in ordered), everything)
