"""Bells: whoever has nothing to do sleeps on one, and whoever has something for it rings."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

_RINGS_MAX = 64
"""More than the system keeps for a socket, unless its administrator says otherwise."""


class Bell:
    """Wakes a sleeping process of the same run: a datagram socket with a name."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self._path = directory / f"bell-{name}"
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(str(self._path))

    def fileno(self) -> int:
        """For polling: readable after a ring."""
        return self._socket.fileno()

    def hush(self) -> None:
        """Forget all rings so far; whoever rings without end is not listened to without end."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(_RINGS_MAX):
                self._socket.recv(16)

    def close(self) -> None:
        """Nobody can ring any more."""
        self._socket.close()


class Ringer:
    """Rings other processes' bells; one that is not there is not waited for."""

    def __init__(self, directory: Path) -> None:
        self._prefix = str(directory / "bell-")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def ring(self, name: str) -> None:
        """Wake the process, if it is there and asleep."""
        with contextlib.suppress(OSError):
            self._socket.sendto(b"!", self._prefix + name)

    def close(self) -> None:
        """Ring no more."""
        self._socket.close()
