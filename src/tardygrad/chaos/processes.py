"""The processes of a run, seen from outside, as the system lists them (Linux: ``/proc``).

Workers and servers are grandchildren of the main process and say what they are by their name
(``tg worker-0``). A process is its number *and* its starting time, since numbers are used again.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_PROC = Path("/proc")
_TITLE = "tg "
_DEEP = 4


class Process(NamedTuple):
    """One process: its number, when it started (in the system's count), and its name."""

    pid: int
    started: str
    name: str


def available() -> bool:
    """Whether this system lists its processes in the way that this module reads."""
    return look(os.getpid()) is not None


def look(pid: int) -> Process | None:
    """The process of that number, or None if there is none, or one that is only to be buried."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        text = (_PROC / str(pid) / "stat").read_text()
        opening, closing = text.index("("), text.rindex(")")
        fields = text[closing + 2 :].split()
        if fields[0] not in "ZX":
            return Process(pid, fields[19], text[opening + 1 : closing])
    return None


def below(pid: int) -> list[Process]:
    """The living descendants of a process, parents first."""
    found: list[Process] = []
    layer = [pid]
    for _ in range(_DEEP):
        layer = [child for parent in layer for child in _children(parent)]
        found += [process for process in map(look, layer) if process is not None]
    return found


def _children(pid: int) -> list[int]:
    children: list[int] = []
    with contextlib.suppress(OSError):
        for task in (_PROC / str(pid) / "task").iterdir():
            with contextlib.suppress(OSError):
                children += map(int, (task / "children").read_text().split())
    return children


def members(pid: int) -> dict[str, Process]:
    """The processes of a run by what they are, such as ``worker-0``; ``pid`` is the main one's."""
    return {
        process.name.removeprefix(_TITLE): process
        for process in below(pid)
        if process.name.startswith(_TITLE)
    }


def lives(process: Process) -> bool:
    """Whether it is still there."""
    found = look(process.pid)
    return found is not None and found.started == process.started


def send(process: Process, number: signal.Signals) -> bool:
    """Send a signal to this very process; False if it is gone."""
    if not lives(process):
        return False
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        return False
    return True


def memory_bytes(process: Process) -> int | None:
    """The memory that a process has of its own (anonymous and resident), or None if it is gone."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in (_PROC / str(process.pid) / "status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return None


def marked(entry: str) -> Iterator[Process]:
    """The living processes, whoever their parent is, whose first environment has ``NAME=VALUE``."""
    wanted = entry.encode()
    for directory in _PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (directory / "environ").read_bytes().split(b"\0"):
                process = look(int(directory.name))
                if process is not None:
                    yield process
