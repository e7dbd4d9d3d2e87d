"""Snapshots in a run directory, as the engines see them.

A snapshot is written by its server and becomes valid with the checkpoint's manifest, which the
main process writes when all shards are there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tardygrad.engines.base import Snapshot, Tensors
from tardygrad.errors import CheckpointError, StorageError
from tardygrad.storage.checkpoints import Checkpoint, CheckpointStore, ShardFile


class DirectoryStore:
    """A ``SnapshotStore`` in a run directory.

    Args:
        run_directory: the run's directory.
        fingerprint: of the model's layout; a checkpoint of another model is refused.
        keep: how many checkpoints stay.
    """

    def __init__(self, run_directory: Path, fingerprint: str, keep: int = 3) -> None:
        self._store = CheckpointStore(run_directory)
        self._fingerprint = fingerprint
        self._keep = keep

    def write(
        self, step: int, shard: int, tensors: Tensors, state: dict[str, Any]
    ) -> tuple[str, int, str]:
        """Keep one shard's snapshot. Raises StorageError."""
        try:
            file = self._store.write_shard(step, shard, tensors, {"state": state})
        except StorageError:
            self._store.discard(step)
            raise
        return file.name, file.bytes, file.sha256

    def commit(
        self, step: int, files: tuple[tuple[str, int, str], ...], state: dict[str, Any]
    ) -> None:
        """Make the checkpoint valid, and delete those that are too many. Raises StorageError."""
        manifest = {**state, "layout": self._fingerprint}
        try:
            self._store.commit(step, manifest, [ShardFile(*file) for file in files])
        except CheckpointError as error:
            raise StorageError(str(error)) from error
        self._store.prune(self._keep)

    def newest_checkpoint(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None.

        Raises:
            CheckpointError: it is of another model.
        """
        checkpoint = self._store.newest_valid()
        if checkpoint is not None and checkpoint.manifest.get("layout") != self._fingerprint:
            raise CheckpointError(
                f"{checkpoint.path} is of a model with other parameters than this one; resume with "
                "the model that the run was started with"
            )
        return checkpoint

    def skipped(self) -> list[str]:
        """Why newer checkpoints were passed over by the last search."""
        return [reason for _, reason in self._store.skipped]

    def any_committed(self) -> bool:
        """Whether any checkpoint was ever complete, be it damaged since."""
        return bool(self._store.steps())

    def next_step(self) -> int:
        """A step above every one that any directory has."""
        steps = [int(p.name) for p in self._store.path.glob("*") if p.name.isdigit()]
        return max(steps, default=0) + 1

    def states(self) -> list[dict[str, Any]]:
        """The protocol's state of every shard in the newest valid checkpoint; empty without one."""
        checkpoint = self.newest_checkpoint()
        if checkpoint is None:
            return []
        shards = range(len(checkpoint.shards))
        return [self._store.load_metadata(checkpoint, shard)["state"] for shard in shards]

    def newest(self, shard: int) -> Snapshot | None:
        """The shard's snapshot in the newest valid checkpoint, or None."""
        checkpoint = self.newest_checkpoint()
        if checkpoint is None:
            return None
        tensors, metadata = self._store.load_shard(checkpoint, shard)
        return Snapshot(checkpoint.step, tensors, metadata["state"])
