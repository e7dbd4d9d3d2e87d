"""What workers leave for those who come after them: files beside a checkpoint's shards.

Theory of operation. A worker that leaves in good order knows of no checkpoint; it writes its file
into ``checkpoints/workers`` and says that it leaves. When the run's last checkpoint is made
visible, the files of those who left are copied into its directory, and its manifest names them with
size and checksum; what waited is deleted after that, so that a checkpoint that fails can be tried
again. So they are there exactly if they belong to that checkpoint: what a worker that died left is
never taken up, and a checkpoint that is taken while workers train has none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tardygrad.errors import CheckpointError
from tardygrad.storage.atomic import (
    PathLike,
    make_directory,
    storage_error,
    write_bytes,
)

if TYPE_CHECKING:
    import torch

__all__ = ["WorkerFiles"]


class WorkerFiles:
    """The workers' files of one run."""

    def __init__(self, run_directory: PathLike) -> None:
        self._waiting = Path(run_directory) / "checkpoints" / "workers"

    def write(
        self,
        worker: int,
        incarnation: int,
        tensors: Mapping[str, torch.Tensor],
        described: Mapping[str, Any],
    ) -> None:
        """Keep what a worker leaves; ``described`` is whatever JSON can express.

        Raises:
            StorageError: the file cannot be written.
        """
        from safetensors.torch import save

        make_directory(self._waiting)
        metadata = {"described": json.dumps(described)}
        write_bytes(self._waiting / _name(worker, incarnation), save(dict(tensors), metadata))

    def copy(self, left: Iterable[Sequence[int]], directory: Path) -> list[dict[str, Any]]:
        """Copy the files of those who ``left`` (worker, incarnation) into a checkpoint's directory.

        Returns:
            What the manifest says of them.

        Raises:
            StorageError: a file cannot be copied.
        """
        found: list[dict[str, Any]] = []
        try:
            for worker, incarnation in left:
                path = self._waiting / _name(worker, incarnation)
                if not path.exists():
                    continue
                data = path.read_bytes()
                write_bytes(directory / path.name, data)
                found.append(
                    {
                        "worker": worker,
                        "incarnation": incarnation,
                        "name": path.name,
                        "bytes": len(data),
                        "sha256": hashlib.sha256(data).hexdigest(),
                    }
                )
        except OSError as error:
            raise storage_error(error, self._waiting, "read") from error
        return found

    def clear(self) -> None:
        """Delete whatever waits: a checkpoint has what belongs to it."""
        with contextlib.suppress(OSError):
            shutil.rmtree(self._waiting)

    @staticmethod
    def load(
        directory: Path, entry: Mapping[str, Any]
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """A file by its entry in a manifest: the tensors, and what describes them.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        path = directory / entry["name"]
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise CheckpointError(f"{path} is damaged: its SHA-256 is not the manifest's")
        try:
            length = int.from_bytes(data[:8], "little")
            metadata = json.loads(data[8 : 8 + length])["__metadata__"]
            return load(data), json.loads(metadata["described"])
        except (SafetensorError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path} is not a readable file of a worker: {error}") from error


def _name(worker: int, incarnation: int) -> str:
    return f"worker-{worker:03d}.{incarnation}.safetensors"
