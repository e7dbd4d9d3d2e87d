"""What workers write down beside the shards' traces, for those who repeat the run."""

from __future__ import annotations

import os
from pathlib import Path

from tardygrad.errors import StorageError
from tardygrad.protocol.meetings import Met
from tardygrad.protocol.residuals import Residual
from tardygrad.storage.traces import entry_line


class EntryLog:
    """Appends to one of the run's files of entries, one system call each; workers share the file.

    Raises:
        StorageError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._file = os.open(path, flags, 0o644)
            # Whatever a power cut left of a line ends here.
            os.write(self._file, b"\n")
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> StorageError:
        return StorageError(
            f"cannot write {self._path}: {error.strerror}; without it the run could not be "
            "replayed, so it stops (free some space, then resume it)"
        )

    def write(self, entry: Residual | Met) -> None:
        """Append an entry; it survives this process once the call returns.

        Raises:
            StorageError: the disk is full or the file cannot be written.
        """
        data = entry_line(entry)
        try:
            if os.write(self._file, data) != len(data):
                raise OSError(28, "No space left on device")
        except OSError as error:
            raise self._failure(error) from error
