"""The simulator's disks: snapshots and manifests take their time, and may come too late.

Theory of operation. As in a real run, every process has its writes done beside its work, one after
another. A snapshot holds what the shard was when it was asked for, and is lost if its server dies
before it is written. A manifest makes its checkpoint visible only when it is written: a server that
is restored meanwhile goes back to the checkpoint before.
"""

from __future__ import annotations

from tardygrad.config import Duration
from tardygrad.engines.base import Observer, SnapshotStore, checkpoint_fields
from tardygrad.engines.inline_world import Member, Stored, World
from tardygrad.engines.network import Sampler
from tardygrad.errors import StorageError
from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev

_MAIN: ev.Address = ("store", 0)


class Disks:
    """What is being written.

    Args:
        world: the simulator's world.
        store: where it is written.
        observer: who is told of checkpoints.
        duration: how long a write takes.
        seed: the run's seed.
    """

    def __init__(
        self, world: World, store: SnapshotStore, observer: Observer, duration: Duration, seed: int
    ) -> None:
        self._world, self._store, self._observer = world, store, observer
        self._draw = Sampler(duration, [seed, 5])
        self._busy: dict[tuple[ev.Address, int], float] = {}
        self._manifests: list[ef.CommitCheckpoint] = []
        self.lost = ""
        """Why the newest checkpoint is not there, if it is not."""

    def _wait(self, address: ev.Address, incarnation: int) -> float:
        now, process = self._world.now, (address, incarnation)
        self._busy[process] = max(self._busy.get(process, now), now) + self._draw()
        return self._busy[process] - now

    def snapshot(self, effect: ef.SaveSnapshot, source: ev.Address, member: Member) -> None:
        """Begin to write a shard's snapshot."""
        stored = Stored(effect, member.host.snapshot())
        wait = self._wait(source, member.incarnation)
        self._world.later(wait, source, stored, member.incarnation)

    def written(self, shard: int, stored: Stored) -> ev.SnapshotWritten:
        """A shard's snapshot is written, or could not be."""
        effect = stored.effect
        assert isinstance(effect, ef.SaveSnapshot)
        state = {"version": effect.version, **effect.state}
        file, error = ("", 0, ""), ""
        try:
            file = self._store.write(effect.step, shard, stored.tensors or {}, state)
        except StorageError as failure:
            error = str(failure)
        return ev.SnapshotWritten(effect.step, effect.version, effect.samples, file, error)

    def manifest(self, effect: ef.CommitCheckpoint, source: ev.Address) -> None:
        """Begin to write a manifest."""
        self._manifests.append(effect)
        self._world.later(self._wait(_MAIN, 0), _MAIN, Stored(effect, None))

    def next_manifest(self) -> None:
        """The oldest manifest is written: its checkpoint is visible."""
        if not self._manifests:
            return
        effect = self._manifests.pop(0)
        try:
            self._store.commit(effect.step, effect.files, effect.state)
        except StorageError as failure:
            self._observer.decided(f"checkpoint {effect.step} is given up", str(failure))
            self.lost = str(failure)
            return
        self.lost = ""
        self._observer.emit("checkpoint", **checkpoint_fields(effect, 0.0))

    def finish(self) -> None:
        """The main process waits for its disk before it goes."""
        while self._manifests:
            self.next_manifest()
