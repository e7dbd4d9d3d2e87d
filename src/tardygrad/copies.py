"""Copies of a run's checkpoints elsewhere: made while it trains, fetched when it goes on.

What goes wrong there stops no training: it is tried again and told in events.log. Two moments ask
for the other place: the beginning of a run, when nothing is lost yet and a mistake in the URL is
best told, and a resume that finds no checkpoint here.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from tardygrad.config import RunConfig
from tardygrad.engines.stores import DirectoryStore
from tardygrad.errors import CheckpointError, LedgerError, StorageError, TardygradError
from tardygrad.protocol.trace import SNAPSHOT
from tardygrad.storage.atomic import make_directory
from tardygrad.storage.checkpoints import Checkpoint
from tardygrad.storage.remote import RemoteCheckpoints, fetch_newer
from tardygrad.storage.run_directory import RunDirectory
from tardygrad.storage.traces import read_pieces
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

    A copy whose making the run's traces do not record is passed over.

    Raises:
        ConfigError: fsspec cannot use the URL.
        CheckpointError: the newest checkpoint here is of another model.
        StorageError: no checkpoint here is whole, and the copies cannot be reached.
    """
    remote = _remote(config, directory.record.run)
    decisions: list[tuple[str, str]] = []

    def accept(checkpoint: Checkpoint) -> None:
        try:
            _check_recorded(directory, checkpoint.step)
        except CheckpointError:
            # Its number is taken: a checkpoint to come would pass for it, or it for that.
            make_directory(checkpoint.path)
            raise

    if remote is not None:
        try:
            fetch_newer(
                remote, store.files, store.check_run, lambda *told: decisions.append(told), accept
            )
        except StorageError as error:
            if store.whole() is None:
                raise
            decisions.append(("the copies of checkpoints are not looked at", str(error)))
    return decisions


def _check_recorded(directory: RunDirectory, step: int) -> None:
    # Else the run would be trained to its end, and its books would not come out even.
    try:
        pieces = read_pieces(directory.path)
    except LedgerError as error:
        raise CheckpointError(f"checkpoint {step}: its making is not on record: {error}") from error
    for piece in pieces:
        if not any(record.kind == SNAPSHOT and record.seq == step for record in piece.records):
            raise CheckpointError(
                f"the trace of shard {piece.shard} does not record that checkpoint {step} was "
                "made: the run directory is older than that copy, or a copy of the directory "
                "trained on elsewhere; to go on from it, restore the folder trace made with it"
            )


@contextlib.contextmanager
def kept(
    config: RunConfig,
    directory: RunDirectory,
    store: DirectoryStore,
    tell: Callable[[str, str], None],
) -> Iterator[None]:
    """Copy each checkpoint that becomes valid meanwhile; wait for the last one at the end.

    Whatever error ends the training, its last checkpoint is copied; SIGTERM or Ctrl-C ends the
    wait.
    """
    remote = _remote(config, directory.record.run)
    if remote is None:
        yield
        return
    uploader = Uploader(remote, config.checkpoint.keep, tell)
    newest = store.whole()
    if newest is not None:
        uploader.offer(newest)
    store.committed = uploader.offer

    def wait() -> None:
        with _signals() as hurried:
            reason = uploader.finish(config.failure.stop_s, hurried)
        if reason:
            tell("the newest checkpoint is not copied", reason)

    try:
        yield
    except Exception:
        wait()
        raise
    wait()  # a KeyboardInterrupt is not waited for


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM or Ctrl-C came meanwhile."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {n: signal.signal(n, lambda number, frame: came.append(number)) for n in numbers}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
