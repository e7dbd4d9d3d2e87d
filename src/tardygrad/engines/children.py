"""What the main process knows of each process that it has started, and how it reads their ends."""

from __future__ import annotations

import contextlib
import signal
from typing import Any

_ENDED_BY_ERROR = 1


class Child:
    """A process of some kind: ``failure`` is what it said went wrong, ``left`` that it goes."""

    __slots__ = ("failure", "incarnation", "kind", "left", "pid")

    def __init__(self, kind: str, incarnation: int, pid: int) -> None:
        self.pid = pid
        self.failure: dict[str, Any] | None = None
        self.left = False
        self.become(kind, incarnation)

    def become(self, kind: str, incarnation: int) -> None:
        """Be known as this from now on."""
        self.kind, self.incarnation = kind, incarnation

    def owes_a_word(self, status: int) -> bool:
        """Whether it must have said why it ended with ``status``, and that is not here yet."""
        if status == _ENDED_BY_ERROR:
            return self.failure is None
        return status == 0 and self.kind == "worker" and not self.left


def describe(status: int) -> str:
    """A child's end in words; ``status`` is its exit code, or minus the signal."""
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-status).name}"
        return f"killed by signal {-status}"
    return f"exited with status {status}"
