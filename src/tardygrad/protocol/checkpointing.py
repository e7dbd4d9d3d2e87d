"""One checkpoint at a time: snapshots of all shards are collected, then the manifest is written.

Snapshots need no common moment: each holds its shard's parameters *and* ledger, so whatever one
lacks is known and trained again. A round that loses a server is abandoned, and its number never
used again. The last one of a run is tried again for a while when its disk refuses it: a disk that
is full, or a share that is away, is often there again some seconds later.
"""

from __future__ import annotations

from collections.abc import Sequence

from tardygrad.protocol.effects import CommitCheckpoint, Send
from tardygrad.protocol.events import SnapshotAsked, SnapshotTaken
from tardygrad.protocol.membership import ServerEntry
from tardygrad.protocol.outbox import Outbox

_AGAIN_S = 1.0


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
        self._again: float | None = None
        self._refused_since: float | None = None

    def begin(self, servers: Sequence[ServerEntry], floor: int, now: float) -> list[Send]:
        """Start the next round: all servers are asked for a snapshot.

        Args:
            servers: all of them.
            floor: fences that they refuse from then on.
            now: the time.
        """
        self.step += 1
        self.active, self.since = True, now
        if self._again is None:
            self._refused_since = None
        self._taken, self._again = {}, None
        asked = [SnapshotAsked(self.step, floor, server.incarnation) for server in servers]
        return [self._outbox.command(("snapshot", s), s, asked[s], now) for s in self._shards]

    def abandon(self) -> None:
        """Forget the round."""
        self.active = False
        self._taken = {}
        for shard in self._shards:
            self._outbox.forget(("snapshot", shard))

    def reopen(self) -> None:
        """Forget the round, and that it was the last one."""
        self.abandon()
        self._again = self._refused_since = None

    def refused(self, now: float, patience_s: float) -> bool:
        """A disk refused the last one: whether another is due soon, or the patience is over.

        The patience began with the first refusal in an unbroken row of tries.
        """
        if self._refused_since is None:
            self._refused_since = now
        if now - self._refused_since > patience_s:
            return False
        self._again = now + _AGAIN_S
        return True

    def due_again(self, now: float) -> bool:
        """Whether the last one is to be tried again now."""
        return self._again is not None and now >= self._again

    def forgive(self, pause_s: float) -> None:
        """The scheduler itself was stopped for so long."""
        self.since += pause_s
        if self._refused_since is not None:
            self._refused_since += pause_s

    def late(self, now: float, patience_s: float) -> bool:
        """Whether snapshots are awaited for longer than this."""
        return self.active and now - self.since > patience_s

    def answered(self, shard: int) -> bool:
        """The shard need not be asked again; whether the round is still going on."""
        self._outbox.forget(("snapshot", shard))
        return self.active

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
