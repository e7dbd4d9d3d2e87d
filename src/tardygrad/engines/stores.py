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
        """Keep one shard's snapshot; what the others wrote is not touched. Raises StorageError."""
        file = self._store.write_shard(step, shard, tensors, {"state": state})
        return file.name, file.bytes, file.sha256

    def commit(
        self, step: int, files: tuple[tuple[str, int, str], ...], state: dict[str, Any]
    ) -> None:
        """Make the checkpoint valid, and delete those that are too many. Raises StorageError.

        Only the main process may call this, or :meth:`discard`.
        """
        manifest = {**state, "layout": self._fingerprint}
        try:
            self._store.commit(step, manifest, [ShardFile(*file) for file in files])
        except CheckpointError as error:
            raise StorageError(str(error)) from error
        self._store.prune(self._keep)

    def discard(self, step: int) -> None:
        """Free what servers wrote for a checkpoint that is given up; one that is visible stays."""
        if step not in self._store.steps():
            self._store.discard(step)

    def _check_model(self, checkpoint: Checkpoint) -> None:
        if checkpoint.manifest.get("layout") != self._fingerprint:
            raise CheckpointError(
                f"{checkpoint.path} is of a model with other parameters than this one; resume with "
                "the model that the run was started with"
            )

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
        """The protocol's state of every shard as its server will find it; empty without any.

        Raises:
            CheckpointError: the newest valid checkpoint is of another model.
        """
        checkpoint = self._store.newest_valid()
        if checkpoint is None:
            return []
        self._check_model(checkpoint)
        shards = range(len(checkpoint.shards))
        skipped = self._store.skipped
        if not skipped:
            return [self._store.load_metadata(checkpoint, s)["state"] for s in shards]
        # A newer one is damaged: servers whose own file in it is whole go on from there.
        found = [self.newest(s) for s in shards]
        self._store.skipped = skipped
        return [snapshot.state for snapshot in found if snapshot is not None]

    def newest(self, shard: int) -> Snapshot | None:
        """The newest snapshot of the shard that is whole, or None.

        What became of the others' files does not matter: each shard goes on from its own snapshot,
        and its ledger says what it lacks.

        Raises:
            CheckpointError: it is of another model.
        """
        found = self._store.newest_shard(shard)
        if found is None:
            return None
        self._check_model(found.checkpoint)
        return Snapshot(found.checkpoint.step, found.tensors, found.metadata["state"])
