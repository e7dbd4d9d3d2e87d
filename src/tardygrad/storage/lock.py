"""One driver for a run directory: a lock that ends with its process, however that dies.

The kernel holds it (``flock``), so nothing stale can be left behind and nobody has to guess whether
a process id in a file is still alive.  The file's text only serves the message to others.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from pathlib import Path

from tardygrad.errors import RunDirectoryError
from tardygrad.storage.atomic import short, storage_error

LOCK = "lock"


class DirectoryLock:
    """Taken when built, held until ``release`` or the end of the process.

    Raises:
        RunDirectoryError: Another process (or another part of this one) holds it.
        StorageError: The lock file cannot be written, or the file system knows no locks.
    """

    def __init__(self, directory: Path) -> None:
        path = directory / LOCK
        descriptor = _open_locked(path)
        while not _is_same_file(descriptor, path):
            # Its holder gave up and deleted it just before we got it; that one guards nothing.
            os.close(descriptor)
            descriptor = _open_locked(path)
        self._descriptor: int | None = descriptor
        # Only for the message to others, so a full disk is no reason to fail here.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)

    def release(self) -> None:
        """Let others have it.  May be called again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _open_locked(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise storage_error(error, path) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise RunDirectoryError(
            f"{short(path.parent)} is being driven by {holder or 'another process'}; "
            "wait until it ends or stop it, or choose another directory with --out"
        ) from None
    except OSError as error:
        os.close(descriptor)
        raise storage_error(error, path, "lock") from error
    return descriptor


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
