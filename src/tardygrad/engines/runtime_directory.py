"""Where a run's sockets and shared memory live, and how what dead runs left is found.

One directory a run, in memory where the system has a place for it (``/dev/shm``), which only its
owner may enter. ``owner.json`` names the main process by its number *and* its starting time, since
numbers are used again; a directory whose owner is gone is a leftover, and the next run, or
``tardygrad clean``, removes it. Containers can share the memory and still count their processes
apart, so the owner says in which count its number holds; from another one nobody judges it.

Containers often have little of that memory. What does not fit lies in a second directory like the
first, its *companion* on disk, and a link stands in its place: whoever maps the file need not know.
The system keeps it in memory as long as there is room.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tardygrad.errors import StorageError

_PREFIX = "tardygrad-"
_COMPANION = "disk"
_SPARE_BYTES = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ENLARGE = "(mount -o remount,size=..., or --shm-size for a container)"

_WORDS = {
    "arena": ("the exchange between workers and servers", "use fewer workers or a smaller model"),
    "train": ("the training data", "hand over a dataset that loads its samples when asked for"),
    "test": ("the test data", "hand over a dataset that loads its samples when asked for"),
    "initial": ("the initial parameters", "use a smaller model"),
    "job": ("what was handed over from Python", "name it as 'package.module:function'"),
}


def base() -> Path:
    """The directory that holds all runtime directories."""
    shm = Path("/dev/shm")
    return shm if shm.is_dir() and os.access(shm, os.W_OK) else Path(tempfile.gettempdir())


def disk_base() -> Path:
    """The directory that holds their companions on disk."""
    return Path(tempfile.gettempdir())


def free_bytes(place: Path) -> int:
    """The room that is left where ``place`` lies."""
    room = os.statvfs(place)
    return room.f_bavail * room.f_frsize


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
    return _make(base())


def _make(place: Path) -> Path:
    directory = place / f"{_PREFIX}{os.getuid()}-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        directory.mkdir(mode=0o700)
        owner = {
            "pid": os.getpid(),
            "started": _start_time(os.getpid()),
            "space": _process_space(),
        }
        (directory / "owner.json").write_text(json.dumps(owner))
    except OSError as error:
        remove(directory)
        raise StorageError(
            f"cannot make a directory for shared memory and sockets in {place}: {error.strerror}"
        ) from error
    return directory


def remove(directory: Path) -> None:
    """Remove a runtime directory and its companion; mappings stay usable for whoever has them."""
    companion = None
    with contextlib.suppress(OSError):
        companion = (directory / _COMPANION).readlink()
    shutil.rmtree(directory, ignore_errors=True)
    if companion is not None:
        shutil.rmtree(companion, ignore_errors=True)


# --- room -------------------------------------------------------------------------------------


Piece = tuple[int, int]
"""Where a piece of a file begins, and its size, in bytes."""


def reserve(path: Path, size: int, pieces: Sequence[Piece] = ()) -> int:
    """Make a file of a runtime directory, on disk if memory has no room for it.

    All that is used is reserved now: memory that runs out later would end processes without a word.

    Args:
        path: where the file is found, be it a link to the companion.
        size: its size in bytes.
        pieces: what of it is used (everything, if empty); the rest can be reserved later.

    Returns:
        An open descriptor.

    Raises:
        StorageError: there is no room on disk either.
    """
    pieces = pieces or ((0, size),)
    used = sum(count for _, count in pieces)
    try:
        if free_bytes(path.parent) >= used + _SPARE_BYTES:
            with contextlib.suppress(_NoRoom):
                return _allocate(path, size, pieces)
        companion = _companion(path.parent)
        try:
            descriptor = _allocate(companion / path.name, size, pieces)
        except _NoRoom as error:
            raise StorageError(_too_large(path, used, companion)) from error
        path.symlink_to(companion / path.name)
    except OSError as error:
        raise StorageError(f"cannot make shared memory {path}: {error.strerror}") from error
    return descriptor


class _NoRoom(Exception):
    """The file system is full."""


def reserve_more(path: Path, pieces: Sequence[Piece]) -> None:
    """Reserve more of a file that :func:`reserve` made; what is reserved already stays as it is.

    Raises:
        StorageError: there is no room where the file lies.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            for start, count in pieces:
                os.posix_fallocate(descriptor, start, count)
        finally:
            os.close(descriptor)
    except OSError as error:
        what, remedy = _WORDS.get(path.name, (path.name, "use less of it"))
        where = path.resolve().parents[1]
        raise StorageError(
            f"no room for more of {what}: {error.strerror}; {_mebibytes(free_bytes(where))} are "
            f"free in {where}; {remedy}"
        ) from error


def _allocate(path: Path, size: int, pieces: Sequence[Piece]) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, size)
        for start, count in pieces:
            os.posix_fallocate(descriptor, start, count)
    except OSError as error:
        os.close(descriptor)
        path.unlink()
        if error.errno in _FULL:
            raise _NoRoom from error
        raise
    return descriptor


def _companion(directory: Path) -> Path:
    link = directory / _COMPANION
    if not link.is_symlink():
        link.symlink_to(_make(disk_base()))
    return link.readlink()


def _too_large(path: Path, size: int, companion: Path) -> str:
    what, remedy = _WORDS.get(path.name, (path.name, "use less of it"))
    memory, disk = path.parent.parent, companion.parent
    return (
        f"no room for {what}: {_mebibytes(size)} are needed, {_mebibytes(free_bytes(memory))} are "
        f"free in {memory} and {_mebibytes(free_bytes(disk))} in {disk}; enlarge the first "
        f"{_ENLARGE}, name a folder on a disk with more room in TMPDIR, or {remedy}"
    )


def decisions(directory: Path) -> list[tuple[str, str]]:
    """What lies on disk for want of memory, and why, as pairs for the log of decisions."""
    found = []
    for path in sorted(directory.iterdir()):
        if path.is_symlink() and path.name != _COMPANION:
            what, _ = _WORDS.get(path.name, (path.name, ""))
            needed, free = path.stat().st_size, free_bytes(directory)
            reason = (
                f"{_mebibytes(needed)} are needed, {_mebibytes(free)} are free in "
                f"{directory.parent}; if the disk slows the run down, enlarge that {_ENLARGE}"
            )
            found.append((f"{what} lies on disk, at {path.readlink()}", reason))
    return found


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size < 10 * 2**20 else f"{size / 2**20:.0f} MiB"


# --- leftovers --------------------------------------------------------------------------------


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


def living() -> list[Path]:
    """The runtime directories of this user's runs that go on here."""
    found = sorted(base().glob(f"{_PREFIX}{os.getuid()}-*"))
    return [directory for directory in found if _is_ours(directory) and not _is_leftover(directory)]


def clean(*, dry_run: bool = False) -> list[str]:
    """Remove what dead runs of this user left behind; returns the directories' paths."""
    removed = []
    for place in dict.fromkeys((base(), disk_base())):
        for directory in sorted(place.glob(f"{_PREFIX}{os.getuid()}-*")):
            if _is_ours(directory) and _is_leftover(directory):
                if not dry_run:
                    remove(directory)
                removed.append(str(directory))
    return removed


def _is_ours(directory: Path) -> bool:
    """Whether it is a directory of this user's: anybody may make one of that name there."""
    with contextlib.suppress(OSError):
        found = directory.lstat()
        return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return False
