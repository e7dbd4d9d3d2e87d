"""What the main process knows of each process that it has started, and how it reads their ends."""

from __future__ import annotations

import contextlib
import signal
from typing import Any

from tardygrad.protocol import events as ev

_ENDED_BY_ERROR = 1


class Child:
    """A process at an address: ``failure`` is what it said went wrong, ``left`` that it goes."""

    __slots__ = ("failure", "identity", "incarnation", "kind", "left", "pid")

    def __init__(self, address: ev.Address, incarnation: int, pid: int) -> None:
        self.kind, self.incarnation, self.pid = address[0], incarnation, pid
        self.identity = f"{address[0]}-{address[1]}.{incarnation}".encode()
        self.failure: dict[str, Any] | None = None
        self.left = False

    def owes_a_word(self, status: int) -> bool:
        """Whether it must have said why it ended with ``status``, and that is not here yet."""
        if status == _ENDED_BY_ERROR:
            return self.failure is None
        return status == 0 and self.kind == "worker" and not self.left


def address_of(identity: bytes) -> tuple[ev.Address, int] | None:
    """The address and incarnation that a socket's identity names; None if it is none."""
    try:
        name, _, incarnation = identity.decode().partition(".")
        kind, _, member = name.partition("-")
        return (kind, int(member)), int(incarnation)
    except ValueError:
        return None


def describe(status: int) -> str:
    """A child's end in words; ``status`` is its exit code, or minus the signal."""
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-status).name}"
        return f"killed by signal {-status}"
    return f"exited with status {status}"
