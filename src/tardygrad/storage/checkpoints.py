"""Checkpoints: files of all shards, and a manifest that makes them one thing.

::

    checkpoints/000000120000/shard-000.safetensors    written by server 0
                             shard-001.safetensors    written by server 1
                             manifest.json            written last, by whoever coordinates

Servers write their shards whenever they get to it, each from its own process.  The manifest comes
last and by one rename, so a checkpoint is visible exactly when it is complete.  It states size and
checksum of every file and of itself; damage is therefore found before anything is restored, and an
older checkpoint takes over.  A visible checkpoint is never overwritten: a step that is
checkpointed again gets new shard files beside the old ones, and the new manifest decides.  To
delete is the reverse of to write: the manifest goes first.

A store keeps no state but a directory's name and may be used in many processes.  Several writers
of different shards do not disturb each other; commit, prune and discard are for one coordinator.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from tardygrad.errors import CheckpointError, StorageError
from tardygrad.storage.atomic import (
    PathLike,
    make_directory,
    replace,
    storage_error,
    sync_directory,
    write_json,
)
from tardygrad.storage.safetensors_file import read_texts, write_tensors

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_FORMAT = 1
_STEP_DIGITS = 12

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ShardFile:
    """One file of a checkpoint: its name in the directory, its size, its SHA-256 in hex."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A committed checkpoint; ``manifest`` is what the committer said, ``shards`` by number."""

    step: int
    path: Path
    manifest: dict[str, Any]
    shards: tuple[ShardFile, ...]

    @property
    def left(self) -> tuple[ShardFile, ...]:
        """The files that the manifest names beside the shards: what workers left."""
        entries = self.manifest.get("workers", ())
        return tuple(ShardFile(e["name"], e["bytes"], e["sha256"]) for e in entries)


Check = Callable[[Checkpoint], None]


class LoadedShard(NamedTuple):
    """One shard of a checkpoint, read and verified; the tensors are the caller's."""

    checkpoint: Checkpoint
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one run, in ``run_directory``/checkpoints.

    ``skipped`` tells what the last ``newest_valid`` or ``newest_shard`` passed over: pairs of path
    and reason.
    """

    def __init__(self, run_directory: PathLike) -> None:
        self.path = Path(run_directory) / "checkpoints"
        self.skipped: list[tuple[Path, str]] = []

    def write_shard(
        self,
        step: int,
        shard: int,
        tensors: Mapping[str, torch.Tensor],
        metadata: Mapping[str, Any],
    ) -> ShardFile:
        """Write one shard's part of checkpoint ``step``; it stays invisible until ``commit``.

        Args:
            step: A number that grows from checkpoint to checkpoint; it names the directory.
            shard: The shard's number, from 0.
            tensors: Any shapes and dtypes on any device; copied out before this returns.
            metadata: Whatever JSON can express: version, ledger, lineage, ...

        Returns:
            What ``commit`` wants to know of the file.

        Raises:
            StorageError: The file cannot be written and nothing of it is left; ``discard`` frees
                what the other shards of this step take.
        """
        directory = self.directory(step)
        make_directory(directory)
        texts = {key: json.dumps(value) for key, value in metadata.items()}
        name = _free_name(directory, shard)
        try:
            with replace(directory / name) as file:
                size, digest = write_tensors(file, tensors, texts)
        except StorageError:
            # It may stand there whole, and only its name not be durable.
            with contextlib.suppress(OSError):
                (directory / name).unlink(missing_ok=True)
            raise
        return ShardFile(name=name, bytes=size, sha256=digest)

    def commit(
        self, step: int, manifest: Mapping[str, Any], shards: Sequence[ShardFile]
    ) -> Checkpoint:
        """Make checkpoint ``step`` visible, all at once.

        Args:
            step: As given to ``write_shard``.
            manifest: Whatever JSON can express; it comes back as ``Checkpoint.manifest``.
            shards: What ``write_shard`` returned, in the order of the shards' numbers.

        Raises:
            CheckpointError: A file is missing, has another size, or stands in a wrong place.
            StorageError: The manifest cannot be written; the checkpoint stays invisible.
        """
        directory = self.directory(step)
        _check_complete(directory, shards)
        document = {
            "format": _FORMAT,
            "step": step,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "shards": [asdict(file) for file in shards],
            "manifest": dict(manifest),
        }
        write_json(directory / MANIFEST, {**document, "sha256": _checksum(document)})
        _remove_superseded(directory, shards)
        return self.read(step)

    def read(self, step: int) -> Checkpoint:
        """Checkpoint ``step`` by its manifest alone; its shard files are not looked at.

        Raises:
            CheckpointError: It was never committed, or its manifest is damaged.
        """
        return _read_manifest(self.directory(step))

    def verify(self, checkpoint: Checkpoint) -> None:
        """Read every byte of ``checkpoint`` and compare.

        Raises:
            CheckpointError: A file is missing or differs; the message names it.
        """
        for file in checkpoint.shards:
            verify_file(checkpoint.path / file.name, file)

    def newest_valid(self, check: Check | None = None) -> Checkpoint | None:
        """The newest checkpoint whose every byte is right, or None if there is none.

        ``check`` raises ``CheckpointError`` at one that is to be passed over all the same.
        """

        def whole(checkpoint: Checkpoint) -> Checkpoint:
            if check is not None:
                check(checkpoint)
            self.verify(checkpoint)
            return checkpoint

        return self._newest(whole)

    def newest_shard(self, shard: int, check: Check | None = None) -> LoadedShard | None:
        """One shard of the newest checkpoint where *its* file is right, or None.

        The other shards' files are not looked at, and its own is read once. ``check`` as for
        ``newest_valid``.

        Raises:
            CheckpointError: The newest checkpoint has no such shard.
        """

        def load(checkpoint: Checkpoint) -> LoadedShard | Checkpoint:
            if check is not None:
                check(checkpoint)
            if shard >= len(checkpoint.shards):
                return checkpoint  # whole, but of another run: no older one helps
            return LoadedShard(checkpoint, *self.load_shard(checkpoint, shard))

        found = self._newest(load)
        if isinstance(found, Checkpoint):
            _shard_file(found, shard)
        return found if isinstance(found, LoadedShard) else None

    def _newest(self, take: Callable[[Checkpoint], _T]) -> _T | None:
        self.skipped = []
        for _, directory in reversed(self._directories()):
            try:
                return take(_read_manifest(directory))
            except CheckpointError as error:
                self.skipped.append((directory, str(error)))
                _log.warning("checkpoint passed over: %s", error)
        return None

    def any_finished(self) -> bool:
        """Whether any checkpoint was ever complete, be its manifest damaged since."""
        return any((directory / MANIFEST).exists() for _, directory in self._directories())

    def steps(self) -> list[int]:
        """The steps of all visible checkpoints, oldest first (their shards are not verified)."""
        return [step for step, directory in self._directories() if _is_visible(directory)]

    def load_shard(
        self, checkpoint: Checkpoint, shard: int
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The tensors (on the CPU, owned by the caller) and the metadata of one shard.

        Raises:
            CheckpointError: There is no such shard, or its file is missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        path, file = _shard_file(checkpoint, shard)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise _unreadable(path, error) from error
        _compare(path, file, len(data), hashlib.sha256(data).hexdigest())
        try:
            return load(data), read_texts(io.BytesIO(data))
        except (SafetensorError, ValueError) as error:
            raise CheckpointError(f"{path} is not a readable shard file: {error}") from error

    def load_metadata(self, checkpoint: Checkpoint, shard: int) -> dict[str, Any]:
        """The metadata of one shard alone, of a checkpoint that was verified; needs no torch.

        Only the beginning of the file is read, so its checksum is not looked at.

        Raises:
            CheckpointError: There is no such shard, or its file is missing or unreadable.
        """
        path, file = _shard_file(checkpoint, shard)
        try:
            with path.open("rb") as stream:
                _compare(path, file, os.fstat(stream.fileno()).st_size, file.sha256)
                return read_texts(stream)
        except OSError as error:
            raise _unreadable(path, error) from error
        except ValueError as error:
            raise CheckpointError(f"{path} is not a readable shard file: {error}") from error

    def prune(self, keep: int) -> list[Path]:
        """Delete all but the newest ``keep`` checkpoints, and what was never finished.

        Unfinished directories go only if they are older than the newest checkpoint: a newer one
        is being written.  A checkpoint with a damaged manifest does not count as kept and goes
        with those of its age.  What cannot be deleted is logged and stays; training need not stop
        for that.

        Returns:
            The directories that are gone.
        """
        if keep < 1:
            raise ValueError(f"keep = {keep}: at least one checkpoint must be kept")
        visible = self.steps()
        if not visible:
            return []
        oldest_kept, newest = visible[-keep:][0], visible[-1]
        doomed = [
            directory
            for step, directory in self._directories()
            if step < oldest_kept or (step < newest and not (directory / MANIFEST).exists())
        ]
        return [directory for directory in doomed if _remove(directory)]

    def discard(self, step: int) -> bool:
        """Delete checkpoint ``step``, finished or not, such as one for which the disk was full."""
        return _remove(self.directory(step))

    def directory(self, step: int) -> Path:
        """Where checkpoint ``step`` lies or would lie."""
        if step < 0:
            raise ValueError(f"step = {step}: expected 0 or more")
        return self.path / f"{step:0{_STEP_DIGITS}d}"

    def _directories(self) -> list[tuple[int, Path]]:
        """All steps with a directory, complete or not, oldest first."""
        try:
            entries = list(self.path.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise storage_error(error, self.path, "read") from error
        return sorted((int(entry.name), entry) for entry in entries if is_step(entry.name))


def _shard_file(checkpoint: Checkpoint, shard: int) -> tuple[Path, ShardFile]:
    if not 0 <= shard < len(checkpoint.shards):
        raise CheckpointError(
            f"{checkpoint.path} has no shard {shard}: it holds {len(checkpoint.shards)} "
            "(was it written with another number of servers?)"
        )
    file = checkpoint.shards[shard]
    return checkpoint.path / file.name, file


def is_step(name: str) -> bool:
    """Whether a directory is named like a checkpoint."""
    return len(name) >= _STEP_DIGITS and name.isascii() and name.isdigit()


def _stem(shard: int) -> str:
    return f"shard-{shard:03d}"


def _free_name(directory: Path, shard: int) -> str:
    """The plain name, unless a visible checkpoint may be using it."""
    plain = f"{_stem(shard)}.safetensors"
    if not (directory / MANIFEST).exists():
        return plain
    numbered = (f"{_stem(shard)}.{n}.safetensors" for n in itertools.count(1))
    candidates = itertools.chain([plain], numbered)
    return next(name for name in candidates if not (directory / name).exists())


def _check_complete(directory: Path, shards: Sequence[ShardFile]) -> None:
    if not shards:
        raise CheckpointError(f"cannot commit {directory}: expected the file of at least one shard")
    for number, file in enumerate(shards):
        if not file.name.startswith(f"{_stem(number)}."):
            raise CheckpointError(
                f"cannot commit {directory}: {file.name} stands in the place of shard {number}; "
                "give the files in the order of the shards' numbers, without gaps"
            )
        try:
            size = (directory / file.name).stat().st_size
        except OSError as error:
            raise _unreadable(directory / file.name, error) from error
        _compare(directory / file.name, file, size, file.sha256)


def _remove_superseded(directory: Path, shards: Sequence[ShardFile]) -> None:
    """Of a step that was checkpointed twice, the files that the new manifest does not name."""
    named = {file.name for file in shards}
    for path in directory.glob("shard-*.safetensors"):
        if path.name not in named:
            try:
                path.unlink()
            except OSError as error:
                _log.warning("%s", storage_error(error, path, "delete"))


def _checksum(document: Mapping[str, Any]) -> str:
    """Of the content and not the text: it survives being reformatted, but not being edited."""
    # Through JSON and back first, so that it is taken of what a reader will get.
    content = json.loads(json.dumps(document))
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _read_manifest(directory: Path) -> Checkpoint:
    path = directory / MANIFEST
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{directory} has no {MANIFEST}: it was never finished") from None
    except OSError as error:
        raise _unreadable(path, error) from error
    return parse_manifest(data, str(path), directory)


def parse_manifest(data: bytes, path: str, directory: Path) -> Checkpoint:
    """The checkpoint that a manifest describes.

    Args:
        data: the manifest.
        path: where it was read, for messages.
        directory: where the checkpoint lies or will lie; named like its step.

    Raises:
        CheckpointError: it is damaged, of another version, or of another step.
    """
    try:
        document = json.loads(data)
        if not isinstance(document, dict):
            raise ValueError("expected an object")
        if document.get("format", _FORMAT) != _FORMAT:
            raise CheckpointError(
                f"{path} has format {document['format']!r} and not {_FORMAT}: "
                "it was written by another version of tardygrad"
            )
        if document.pop("sha256", None) != _checksum(document):
            raise ValueError("its checksum is wrong")
        step, manifest, shards = _parts(document)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if step != int(directory.name):
        raise CheckpointError(f"{path} is of step {step}: the directory was renamed")
    return Checkpoint(step, directory, manifest, shards)


def _parts(document: dict[str, Any]) -> tuple[int, dict[str, Any], tuple[ShardFile, ...]]:
    step, manifest, files = (document.get(key) for key in ("step", "manifest", "shards"))
    if not (isinstance(step, int) and isinstance(manifest, dict) and isinstance(files, list)):
        raise ValueError("expected a step, a manifest and shards")
    for number, file in enumerate(files):
        kinds = {k: type(v) for k, v in file.items()} if isinstance(file, dict) else {}
        named = kinds == {"name": str, "bytes": int, "sha256": str} and "/" not in file["name"]
        if not named or not file["name"].startswith(f"{_stem(number)}."):
            raise ValueError(f"the entry of shard {number} is wrong: {file}")
    return step, manifest, tuple(ShardFile(**file) for file in files)


def _is_visible(directory: Path) -> bool:
    try:
        _read_manifest(directory)
    except CheckpointError:
        return False
    return True


def verify_file(path: Path, file: ShardFile) -> None:
    """Read every byte of a file and compare it with what was written.

    Raises:
        CheckpointError: It is missing or differs.
    """
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            # A wrong size is proof enough; no need to read gigabytes for it.
            right_size = size == file.bytes
            digest = hashlib.file_digest(stream, "sha256").hexdigest() if right_size else ""
    except OSError as error:
        raise _unreadable(path, error) from error
    _compare(path, file, size, digest)


def _compare(path: Path, file: ShardFile, size: int, digest: str) -> None:
    if size != file.bytes:
        raise CheckpointError(f"{path} has {size} bytes, and {file.bytes} were written")
    if digest != file.sha256:
        raise CheckpointError(
            f"{path} is damaged: its SHA-256 begins with {digest[:12]}, "
            f"and {file.sha256[:12]} was written"
        )


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    if isinstance(error, FileNotFoundError):
        return CheckpointError(f"{path} is missing")
    return CheckpointError(f"{path} cannot be read: {error.strerror or error}")


def _remove(directory: Path) -> bool:
    if not directory.exists():
        return False
    try:
        (directory / MANIFEST).unlink(missing_ok=True)
        # Else a power cut could bring the manifest back when its shards are gone already.
        sync_directory(directory)
        shutil.rmtree(directory)
    except OSError as error:
        _log.warning("%s", storage_error(error, directory, "delete"))
        return False
    return True
