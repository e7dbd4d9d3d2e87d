"""What a run may not leave behind: processes, shared memory, sockets, files.

Every process of a run under chaos inherits a mark in its environment and a folder of its own for
temporary files, so that what is left can be told from what others have.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from tardygrad.chaos import processes
from tardygrad.engines import runtime_directory
from tardygrad.storage.atomic import is_temporary
from tardygrad.storage.checkpoints import MANIFEST

MARK = "TARDYGRAD_CHAOS"
"""The environment variable that marks all processes of a run under chaos."""

_SYSV = Path("/proc/sysvipc/shm")
_UNIX = Path("/proc/net/unix")


def leaks(run: Path, main: int, pids: set[int], mark: str, temporary: Path) -> list[str]:
    """Everything that is still there, one line each; none is the only good answer.

    Args:
        run: the run's directory.
        main: the number of its main process, which has ended.
        pids: every process of the run that was ever seen.
        mark: the value of ``MARK`` in their environment.
        temporary: their folder for temporary files.
    """
    found = [f"process {p.pid} ({p.name})" for p in processes.marked(f"{MARK}={mark}")]
    pattern = f"tardygrad-{os.getuid()}-{main}-*"
    places = dict.fromkeys((runtime_directory.base(), runtime_directory.disk_base(), temporary))
    found += [f"runtime directory {path}" for place in places for path in place.glob(pattern)]
    found += [f"temporary file {path}" for path in sorted(temporary.rglob("*")) if path.is_file()]
    found += _memory(pids | {main})
    found += _sockets(main)
    found += [f"half a file {path}" for path in sorted(run.rglob("*")) if _is_half(path)]
    return found


def _memory(pids: set[int]) -> list[str]:
    """Segments of shared memory that a process of the run has made."""
    found = []
    base = runtime_directory.base()
    for path in base.glob("torch_*"):
        numbers = {int(number) for number in re.findall(r"\d+", path.name)}
        if numbers & pids:
            found.append(f"shared memory {path}")
    if _SYSV.exists():
        for line in _SYSV.read_text().splitlines()[1:]:
            fields = line.split()
            if len(fields) > 4 and int(fields[4]) in pids:
                found.append(f"shared memory segment {fields[1]} of process {fields[4]}")
    return found


def _sockets(main: int) -> list[str]:
    if not _UNIX.exists():
        return []
    name = f"tardygrad-{os.getuid()}-{main}-"
    return [f"socket {line.split()[-1]}" for line in _UNIX.read_text().splitlines() if name in line]


def _is_half(path: Path) -> bool:
    """What a writer that was killed left: a file under a passing name, an unfinished checkpoint."""
    if path.is_dir():
        step = path.parent.name == "checkpoints" and path.name.isdigit()
        return step and not (path / MANIFEST).exists()
    return is_temporary(path) or path.name.endswith(".partial")
