"""The file of the scheduler's journal: appended to, cut, replaced.

Nothing is forced to the disk. What is written survives the death of the process that wrote it,
which is all that a journal is for; after the death of the machine a run goes on from a checkpoint.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from tardygrad.storage.atomic import make_directory, storage_error


class JournalFile:
    """A journal on disk; its directory is made if it is missing.

    Args:
        path: the file, which has one writer.

    Raises:
        StorageError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        make_directory(path.parent)
        self._descriptor = self._open(path)

    def _open(self, path: Path) -> int:
        try:
            return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise storage_error(error, path) from error

    def read(self) -> bytes:
        """All of it.

        Raises:
            StorageError: it cannot be read.
        """
        try:
            return self._path.read_bytes()
        except OSError as error:
            raise storage_error(error, self._path, "read") from error

    def cut(self, size: int) -> None:
        """Leave only the first ``size`` bytes.

        Raises:
            StorageError: the device fails.
        """
        try:
            os.ftruncate(self._descriptor, size)
        except OSError as error:
            raise storage_error(error, self._path) from error

    def append(self, data: bytes) -> None:
        """Add ``data``, by one system call where there is room.

        Raises:
            StorageError: the disk is full or fails; the file may end with a part of ``data``.
        """
        self._write(self._descriptor, data)

    def replace(self, data: bytes) -> None:
        """Make ``data`` the whole content: the process may die at any moment and leaves one or the
        other.

        Raises:
            StorageError: the disk is full or fails; the old content is there as it was.
        """
        beside = self._path.with_name(f".{self._path.name}.new")
        descriptor = -1
        try:
            with contextlib.suppress(FileNotFoundError):
                beside.unlink()
            descriptor = self._open(beside)
            self._write(descriptor, data)
            beside.replace(self._path)
        except OSError as error:
            raise storage_error(error, self._path) from error
        os.close(self._descriptor)
        self._descriptor = descriptor

    def _write(self, descriptor: int, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        except OSError as error:
            raise storage_error(error, self._path) from error
