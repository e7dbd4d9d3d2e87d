"""Where a run's sockets and shared memory live, and how what dead runs left is found.

One directory a run, in memory where the system has a place for it (``/dev/shm``), which only its
owner may enter. ``owner.json`` names the main process by its number *and* its starting time, since
numbers are used again; a directory whose owner is gone is a leftover, and the next run, or
``tardygrad clean``, removes it. Containers can share the memory and still count their processes
apart, so the owner says in which count its number holds; from another one nobody judges it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import tempfile
from pathlib import Path

from tardygrad.errors import StorageError

_PREFIX = "tardygrad-"


def base() -> Path:
    """The directory that holds all runtime directories."""
    shm = Path("/dev/shm")
    return shm if shm.is_dir() and os.access(shm, os.W_OK) else Path(tempfile.gettempdir())


def _start_time(pid: int) -> str:
    """When a process began, in the system's own count; empty where that cannot be known."""
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        # A zombie does nothing any more: its parent has just not looked yet.
        return "" if fields[0] in "ZX" else fields[19]
    return ""


def _process_space() -> str:
    """Where process numbers mean the same (a container has a count of its own); empty: unknown."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def create() -> Path:
    """Make a runtime directory for this process, after removing what dead runs left.

    Raises:
        StorageError: there is no room or no right to make one.
    """
    with contextlib.suppress(OSError):
        clean()
    directory = base() / f"{_PREFIX}{os.getuid()}-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        directory.mkdir(mode=0o700)
        owner = {
            "pid": os.getpid(),
            "started": _start_time(os.getpid()),
            "space": _process_space(),
        }
        (directory / "owner.json").write_text(json.dumps(owner))
    except OSError as error:
        raise StorageError(
            f"cannot make a directory for shared memory and sockets in {base()}: {error.strerror}"
        ) from error
    return directory


def remove(directory: Path) -> None:
    """Remove a runtime directory; its mappings stay usable for whoever has them."""
    shutil.rmtree(directory, ignore_errors=True)


def _is_leftover(directory: Path) -> bool:
    try:
        owner = json.loads((directory / "owner.json").read_text())
        pid, started = int(owner["pid"]), str(owner["started"])
        if owner.get("space", "") != _process_space():
            return False
    except FileNotFoundError:
        # Being made right now, or half removed: the name tells the process.
        parts = directory.name.split("-")
        pid, started = int(parts[2]) if len(parts) > 2 and parts[2].isdigit() else 0, ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return True
    if pid <= 0:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return bool(started) and _start_time(pid) != started


def clean(*, dry_run: bool = False) -> list[str]:
    """Remove what dead runs of this user left behind; returns the directories' paths."""
    removed = []
    for directory in sorted(base().glob(f"{_PREFIX}{os.getuid()}-*")):
        if directory.is_dir() and _is_leftover(directory):
            if not dry_run:
                remove(directory)
            removed.append(str(directory))
    return removed
