"""Copies of a run's checkpoints elsewhere: made while it trains, fetched when it goes on.

What goes wrong there stops no training: it is tried again and told in events.log. Two moments ask
for the other place: the beginning of a run, when nothing is lost yet and a mistake in the URL is
best told, and a resume that finds no checkpoint here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from tardygrad.config import RunConfig
from tardygrad.engines.stores import DirectoryStore
from tardygrad.errors import StorageError, TardygradError
from tardygrad.storage.remote import RemoteCheckpoints, fetch_newer
from tardygrad.storage.run_directory import RunDirectory
from tardygrad.storage.uploads import Uploader

__all__ = ["check", "claim", "fetch", "kept"]


def _remote(config: RunConfig, run: str) -> RemoteCheckpoints | None:
    url = config.checkpoint.url
    return None if url is None else RemoteCheckpoints(url, run)


def check(config: RunConfig) -> None:
    """See that fsspec can use the URL; nothing is asked of the place yet.

    Raises:
        ConfigError: it cannot.
    """
    _remote(config, "")


def claim(config: RunConfig, directory: RunDirectory) -> None:
    """See that copies of a new run can be written.

    Raises:
        StorageError: nothing can be written there.
    """
    remote = _remote(config, directory.record.run)
    if remote is None:
        return
    try:
        remote.claim(config.name)
    except TardygradError:
        directory.finish("failed")
        raise


def fetch(
    config: RunConfig, directory: RunDirectory, store: DirectoryStore
) -> list[tuple[str, str]]:
    """Make the newest copy a local checkpoint, if none here is as new; returns what is to be told.

    Raises:
        ConfigError: fsspec cannot use the URL.
        CheckpointError: the newest checkpoint here is of another model.
        StorageError: no checkpoint here is whole, and the copies cannot be reached.
    """
    remote = _remote(config, directory.record.run)
    decisions: list[tuple[str, str]] = []
    if remote is not None:
        try:
            fetch_newer(remote, store.files, store.check_run, lambda *told: decisions.append(told))
        except StorageError as error:
            if store.whole() is None:
                raise
            decisions.append(("the copies of checkpoints are not looked at", str(error)))
    return decisions


@contextlib.contextmanager
def kept(
    config: RunConfig,
    directory: RunDirectory,
    store: DirectoryStore,
    tell: Callable[[str, str], None],
) -> Iterator[None]:
    """Copy each checkpoint that becomes valid meanwhile; wait for the last one at the end."""
    remote = _remote(config, directory.record.run)
    if remote is None:
        yield
        return
    uploader = Uploader(remote, config.checkpoint.keep, tell)
    newest = store.whole()
    if newest is not None:
        uploader.offer(newest)
    store.committed = uploader.offer
    yield
    reason = uploader.finish(config.failure.stop_s)
    if reason:
        tell("the newest checkpoint is not copied", reason)
