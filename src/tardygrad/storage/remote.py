"""Copies of a run's checkpoints at any URL that fsspec understands: S3, a share, another disk.

::

    URL/<run id>/run.json                            says that the place can be written
                 000000000012/shard-000.safetensors
                              manifest.json          written last

Theory of operation. A checkpoint is written on the local disk first, where a server that died finds
it, and copied from there when it is whole, file by file, what workers left too, the manifest last:
what is visible there is complete too, and what was torn is found by its checksums. A copy that is
fetched becomes a local checkpoint like any other, so nothing else needs to know of other places.

Credentials are none of ours: fsspec and the libraries below it take them from the environment.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tardygrad.errors import CheckpointError, ConfigError, StorageError
from tardygrad.storage.atomic import make_directory, sync_directory, write_bytes
from tardygrad.storage.checkpoints import (
    MANIFEST,
    Check,
    Checkpoint,
    CheckpointStore,
    ShardFile,
    is_step,
    parse_manifest,
    verify_file,
)

__all__ = ["RemoteCheckpoints", "fetch_newer"]

_WITHOUT_FOLDERS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "memory"}
_PACKAGES = {"s3": "pip install 'tardygrad[s3]'", "s3a": "pip install 'tardygrad[s3]'"}


class RemoteCheckpoints:
    """One run's checkpoints at a URL. Any method may raise StorageError: the place is elsewhere.

    Args:
        url: ``protocol://...``; a folder in it is named like the run.
        run: the run's id.

    Raises:
        ConfigError: fsspec does not know the protocol, or the package for it is not installed.
    """

    def __init__(self, url: str, run: str) -> None:
        self.url = f"{url.rstrip('/')}/{run}"
        self._given, self._protocol = url, url.partition("://")[0]
        self._has_folders = self._protocol not in _WITHOUT_FOLDERS
        self.active_at = time.monotonic()
        """When a copy last came further than all attempts at it before."""
        self._step, self._moves, self._furthest = -1, 0, 0
        with contextlib.suppress(StorageError):  # whoever needs the place tries again
            _ = self._place

    @functools.cached_property
    def _place(self) -> tuple[Any, str]:
        """The file system and the folder in it; some connect already for that."""
        import fsspec

        options = {"auto_mkdir": True} if self._protocol in ("file", "local") else {}
        try:
            fs, root = fsspec.core.url_to_fs(self.url, **options)
        except ImportError as error:
            remedy = _PACKAGES.get(self._protocol, "install what fsspec asks for")
            raise ConfigError(f"checkpoint.url: {self._given}: {error}; {remedy}") from error
        except ValueError as error:
            raise ConfigError(f"checkpoint.url: {self._given}: {error}") from error
        except Exception as error:  # every library below fsspec has its own
            raise StorageError(f"cannot reach {self.url}: {_in_one_line(error)}") from error
        return fs, root

    @property
    def _fs(self) -> Any:
        return self._place[0]

    @property
    def _root(self) -> str:
        return self._place[1]

    def _moved(self) -> None:
        # What an earlier attempt copied already is no news: else a full share would seem alive.
        self._moves += 1
        if self._moves > self._furthest:
            self._furthest, self.active_at = self._moves, time.monotonic()

    @contextlib.contextmanager
    def _reaching(self, action: str, path: str = "") -> Iterator[None]:
        try:
            yield
        except (StorageError, CheckpointError):
            raise
        except Exception as error:  # every library below fsspec has its own
            place = f"{self.url}/{path}".rstrip("/")
            raise StorageError(f"cannot {action} {place}: {_in_one_line(error)}") from error

    def claim(self, name: str) -> None:
        """Write a small file that names the run, to see that the place can be written."""
        self._put_bytes("run.json", json.dumps({"name": name}).encode())

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, oldest first; their shards are not looked at."""
        with self._reaching("list"):
            return [step for step in self._folders() if self._fs.exists(self._manifest(step))]

    def _folders(self) -> list[int]:
        self._fs.invalidate_cache()  # others write there, and so did we
        try:
            entries = self._fs.ls(self._root, detail=False)
        except FileNotFoundError:
            return []
        names = [entry.rstrip("/").rpartition("/")[2] for entry in entries]
        return sorted(int(name) for name in names if is_step(name))

    def _path(self, step: int, name: str = "") -> str:
        return f"{self._root}/{step:012d}/{name}".rstrip("/")

    def _manifest(self, step: int) -> str:
        return self._path(step, MANIFEST)

    def _put_bytes(self, name: str, data: bytes) -> None:
        with self._reaching("write", name):
            path = f"{self._root}/{name}"
            if self._has_folders:
                self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._fs.pipe_file(path, data)
        self._moved()

    def upload(self, checkpoint: Checkpoint) -> None:
        """Copy a local checkpoint; one that is there already is left alone.

        Raises:
            FileNotFoundError: it has been deleted here meanwhile.
        """
        from fsspec.callbacks import Callback

        remote = self

        class Moving(Callback):  # type: ignore[misc]  # fsspec has no annotations
            def relative_update(self, inc: int = 1) -> None:
                remote._moved()

        if checkpoint.step != self._step:
            self._step, self._furthest = checkpoint.step, 0
        self._moves = 0
        with self._reaching("read", MANIFEST):
            if self._fs.exists(self._manifest(checkpoint.step)):
                return
        data = (checkpoint.path / MANIFEST).read_bytes()
        for file in (*checkpoint.shards, *checkpoint.left):
            local = checkpoint.path / file.name
            if file in checkpoint.left and not local.exists():
                continue  # the model goes on without it
            local.stat()  # told apart from what the other side says
            with self._reaching("write", f"{checkpoint.step:012d}/{file.name}"):
                target = self._path(checkpoint.step, file.name)
                if self._has_folders:
                    self._fs.makedirs(self._path(checkpoint.step), exist_ok=True)
                self._fs.put_file(str(local), target, callback=Moving())
            self._moved()
        self._put_bytes(f"{checkpoint.step:012d}/{MANIFEST}", data)

    def prune(self, keep: int) -> None:
        """Delete all but the newest ``keep``, and what was never finished before them."""
        visible = self.steps()
        if not visible:
            return
        oldest_kept, newest = visible[-keep:][0], visible[-1]
        with self._reaching("delete from"):
            for step in self._folders():
                if step < oldest_kept or (step < newest and step not in visible):
                    if step in visible:
                        self._fs.rm_file(self._manifest(step))
                    self._fs.rm(self._path(step), recursive=True)

    def fetch(self, step: int, store: CheckpointStore, check: Check | None = None) -> Checkpoint:
        """Make a copy a local checkpoint, whatever there was of that step.

        Raises:
            CheckpointError: it is incomplete or damaged, or ``check`` refuses it.
        """
        target = store.directory(step)
        where = f"{self.url}/{target.name}"
        with self._reaching("read", f"{target.name}/{MANIFEST}"):
            data = self._fs.cat_file(self._manifest(step))
        checkpoint = parse_manifest(data, f"{where}/{MANIFEST}", target)
        if check is not None:
            check(checkpoint)
        partial = target.with_name(f"fetched-{target.name}")
        shutil.rmtree(partial, ignore_errors=True)
        make_directory(partial)
        try:
            self._fetch_files(checkpoint, partial, where)
            write_bytes(partial / MANIFEST, data)
            store.discard(step)
            partial.rename(target)
            sync_directory(target.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return checkpoint

    def _fetch_files(self, checkpoint: Checkpoint, partial: Path, where: str) -> None:
        for file in (*checkpoint.shards, *checkpoint.left):
            if "/" in file.name or file.name.startswith("."):
                raise CheckpointError(f"{where} names a file {file.name!r}, which no shard has")
            try:
                self._fetch_file(checkpoint.step, file, partial / file.name, where)
            except CheckpointError:
                if file in checkpoint.shards:
                    raise
                # The model is whole without it; whoever would go on with it is told.
                (partial / file.name).unlink(missing_ok=True)

    def _fetch_file(self, step: int, file: ShardFile, local: Path, where: str) -> None:
        try:
            with self._reaching("read", f"{step:012d}/{file.name}"):
                self._fs.get_file(self._path(step, file.name), str(local))
            verify_file(local, file)
        except (StorageError, CheckpointError) as error:
            lost = isinstance(error.__cause__, FileNotFoundError)
            reason = f"{file.name} is missing" if lost else str(error)
            if lost or isinstance(error, CheckpointError):
                raise CheckpointError(f"{where}: {reason}") from error
            raise
        descriptor = os.open(local, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def fetch_newer(
    remote: RemoteCheckpoints,
    store: CheckpointStore,
    check: Check | None = None,
    told: Callable[[str, str], None] = lambda decision, reason: None,
    accept: Check | None = None,
) -> None:
    """Fetch the newest copy that is whole, if it is newer than every whole local checkpoint.

    Args:
        remote: where the copies are.
        store: the local checkpoints.
        check: raises CheckpointError at what is to be passed over.
        told: is told what was done and passed over.
        accept: like ``check``, and asked about copies alone.

    Raises:
        StorageError: the other place cannot be reached, or the local one not be written.
    """
    for left in store.path.glob("fetched-*"):  # whoever fetched it was killed
        shutil.rmtree(left, ignore_errors=True)

    def fits(checkpoint: Checkpoint) -> None:
        for asked in (check, accept):
            if asked is not None:
                asked(checkpoint)

    local = store.newest_valid(check)
    for step in reversed(remote.steps()):
        if local is not None and step <= local.step:
            return
        try:
            remote.fetch(step, store, fits)
        except CheckpointError as error:
            told("a copy of a checkpoint is passed over", str(error))
            continue
        told(f"checkpoint {step} is fetched", f"from {remote.url}")
        return


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
