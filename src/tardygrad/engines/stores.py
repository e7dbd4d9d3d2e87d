"""Snapshots in a run directory, as the engines see them.

A snapshot is written by its server and becomes valid with the checkpoint's manifest, which the
main process writes when all shards are there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tardygrad.engines.base import Job, Snapshot, Tensors, WorkerState
from tardygrad.errors import CheckpointError, StorageError
from tardygrad.layout import KeyRange, Layout
from tardygrad.storage.checkpoints import Checkpoint, CheckpointStore, ShardFile
from tardygrad.storage.run_directory import RunDirectory
from tardygrad.storage.worker_files import WorkerFiles


def store_of(directory: RunDirectory, job: Job) -> DirectoryStore:
    """The store of a run for the shards of a job."""
    run, keep = directory.record.run, job.config.checkpoint.keep
    return DirectoryStore(directory.path, job.layout, job.ranges, run=run, keep=keep)


def check_manifest(checkpoint: Checkpoint, run: str) -> Layout:
    """See that a checkpoint is of a run, and that its manifest agrees with itself.

    Returns:
        the layout of the model that it is of.

    Raises:
        CheckpointError: it is of another run, or its manifest is damaged though its checksum is
            right.
    """
    manifest, path = checkpoint.manifest, checkpoint.path
    found = str(manifest.get("run"))
    if found != run:
        raise CheckpointError(f"{path} is of another run ({found[:12]}, this is {run[:12]})")
    try:
        layout = Layout.from_json(manifest["layout"])
        borders = [0]
        for start, stop in manifest["ranges"]:
            if start != borders[-1] or KeyRange(start, stop).size == 0:
                raise ValueError(f"ranges {manifest['ranges']} do not follow on one another")
            borders.append(stop)
        if borders[-1] != layout.parameters_size:
            raise ValueError(f"ranges end at {borders[-1]} of {layout.parameters_size} parameters")
        samples = [int(count) for count in manifest["samples"]]
        if not len(samples) == len(borders) - 1 == len(checkpoint.shards):
            raise ValueError(f"expected ranges and samples of {len(checkpoint.shards)} shards")
        if manifest["fingerprint"] != layout.fingerprint():
            raise ValueError("its layout has another fingerprint")
        _ = checkpoint.left  # every entry of what workers left is one
    except (CheckpointError, KeyError, TypeError, ValueError) as error:
        said = f"no {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(f"the manifest of {path} is damaged: {said}") from error
    return layout


class DirectoryStore:
    """A ``SnapshotStore`` in a run directory.

    Args:
        run_directory: the run's directory.
        layout: the model's; a checkpoint of another model is refused.
        ranges: the shards' key ranges; a server passes over a checkpoint that was cut otherwise.
        run: the run's id; a checkpoint of another run is passed over.
        keep: how many checkpoints stay.
    """

    def __init__(
        self,
        run_directory: Path,
        layout: Layout,
        ranges: Sequence[KeyRange],
        *,
        run: str = "",
        keep: int = 3,
    ) -> None:
        self.files = CheckpointStore(run_directory)
        self._layout = layout
        self._ranges = [[r.start, r.stop] for r in ranges]
        self._run = run
        self._keep = keep
        self.committed: Callable[[Checkpoint], None] | None = None
        """Is told of every checkpoint that has become valid."""
        self._workers = WorkerFiles(run_directory)

    def write(
        self, step: int, shard: int, tensors: Tensors, state: dict[str, Any]
    ) -> tuple[str, int, str]:
        """Keep one shard's snapshot; what the others wrote is not touched. Raises StorageError."""
        file = self.files.write_shard(step, shard, tensors, {"state": state})
        return file.name, file.bytes, file.sha256

    def commit(
        self, step: int, files: tuple[tuple[str, int, str], ...], state: dict[str, Any]
    ) -> None:
        """Make the checkpoint valid, and delete those that are too many. Raises StorageError.

        Only the main process may call this, or :meth:`discard`.
        """
        manifest = {
            **state,
            "run": self._run,
            "fingerprint": self._layout.fingerprint(),
            "layout": self._layout.to_json(),
            "ranges": self._ranges,
        }
        try:
            if "left" in state:
                manifest["workers"] = self._workers.copy(state["left"], self.files.directory(step))
            made = self.files.commit(step, manifest, [ShardFile(*file) for file in files])
        except CheckpointError as error:
            raise StorageError(str(error)) from error
        if "left" in state:
            self._workers.clear()
        self.files.prune(self._keep)
        if self.committed is not None:
            self.committed(made)

    def discard(self, step: int) -> None:
        """Free what servers wrote for a checkpoint that is given up; one that is visible stays."""
        if step not in self.files.steps():
            self.files.discard(step)

    def check_run(self, checkpoint: Checkpoint) -> None:
        """Raise CheckpointError if a checkpoint is of another run, or its manifest is damaged."""
        check_manifest(checkpoint, self._run)

    def _check_shape(self, checkpoint: Checkpoint) -> None:
        self.check_run(checkpoint)
        # Of another model everything differs; that is told as such, and not passed over.
        if self._is_of_model(checkpoint) and not self.has_shape(checkpoint):
            raise CheckpointError(
                f"{checkpoint.path} is cut into {len(checkpoint.shards)} other shards"
            )

    def has_shape(self, checkpoint: Checkpoint) -> bool:
        """Whether the checkpoint is cut into this store's key ranges."""
        return bool(checkpoint.manifest.get("ranges") == self._ranges)

    def _is_of_model(self, checkpoint: Checkpoint) -> bool:
        return bool(checkpoint.manifest.get("fingerprint") == self._layout.fingerprint())

    def write_worker(self, state: WorkerState) -> None:
        """Keep what a worker leaves, until a checkpoint takes it up. Raises StorageError."""
        described = {"pushes": state.pushes, "codec": state.codec}
        self._workers.write(state.worker, state.incarnation, state.tensors, described)

    def worker(self, step: int, worker: int) -> WorkerState | None:
        """What the checkpoint has of a worker's slot, or None.

        Raises:
            CheckpointError: there is no such checkpoint any more, or the worker's file is damaged.
        """
        checkpoint = self.files.read(step)
        for entry in checkpoint.manifest.get("workers", ()):
            if entry["worker"] == worker:
                tensors, described = self._workers.load(checkpoint.path, entry)
                if sorted(described) != ["codec", "pushes"]:
                    raise CheckpointError(
                        f"{checkpoint.path / entry['name']} was written by another version"
                    )
                return WorkerState(worker, entry["incarnation"], **described, tensors=tensors)
        return None

    def workers(self) -> tuple[int, dict[int, WorkerState], list[str]]:
        """The newest checkpoint's number, what it has of workers, and why not all that it had.

        A server whose own file in a damaged checkpoint is whole goes on from there, and others
        from an older one: then nothing of workers belongs to all.
        """
        checkpoint = self.whole()
        if checkpoint is None or self.files.skipped:
            return 0, {}, self.skipped()
        found, lost = {}, []
        for entry in checkpoint.manifest.get("workers", ()):
            try:
                state = self.worker(checkpoint.step, entry["worker"])
            except CheckpointError as error:
                lost.append(f"that of worker {entry['worker']} is lost: {error}")
                continue
            if state is not None:
                found[state.worker] = state
        return checkpoint.step, found, lost

    def _check_model(self, checkpoint: Checkpoint) -> None:
        if not self._is_of_model(checkpoint):
            raise CheckpointError(
                f"{checkpoint.path} is of a model with other parameters than this one; resume with "
                "the model that the run was started with"
            )

    def skipped(self) -> list[str]:
        """Why newer checkpoints were passed over by the last search."""
        return [reason for _, reason in self.files.skipped]

    def next_step(self) -> int:
        """A step above every one that any directory has."""
        steps = [int(p.name) for p in self.files.path.glob("*") if p.name.isdigit()]
        return max(steps, default=0) + 1

    def whole(self) -> Checkpoint | None:
        """The newest checkpoint of the run whose every file is right, however it is cut.

        Raises:
            CheckpointError: it is of another model.
        """
        checkpoint = self.files.newest_valid(self.check_run)
        if checkpoint is not None:
            self._check_model(checkpoint)
        return checkpoint

    def states(self) -> list[dict[str, Any]]:
        """The protocol's state of every shard as its server will find it; empty without any.

        Where the newest whole checkpoint is cut otherwise, it is its own shards' states.

        Raises:
            CheckpointError: the newest valid checkpoint is of another model.
        """
        checkpoint = self.whole()
        if checkpoint is None:
            return []
        shards = range(len(checkpoint.shards))
        skipped = self.files.skipped
        if not skipped or not self.has_shape(checkpoint):
            return [self.files.load_metadata(checkpoint, s)["state"] for s in shards]
        # A newer one is damaged: servers whose own file in it is whole go on from there.
        found = [self.newest(s) for s in shards]
        self.files.skipped = skipped
        return [snapshot.state for snapshot in found if snapshot is not None]

    def newest(self, shard: int) -> Snapshot | None:
        """The newest snapshot of the shard that is whole, or None if there never was one.

        What became of the others' files does not matter: each shard goes on from its own snapshot,
        and its ledger says what it lacks.

        Raises:
            CheckpointError: it is of another model; or there are checkpoints, and in none of them
                the shard's file can be used.
        """
        found = self.files.newest_shard(shard, self._check_shape)
        if found is None:
            if self.files.any_finished():
                reasons = "; ".join(self.skipped())
                raise CheckpointError(
                    f"shard {shard} cannot be restored: {reasons}; restore a checkpoint from a copy"
                )
            return None
        self._check_model(found.checkpoint)
        return Snapshot(found.checkpoint.step, found.tensors, found.metadata["state"])
