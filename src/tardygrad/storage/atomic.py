"""Files that are either whole or absent, whatever is killed, unplugged or full.

A reader must never meet half a file, so a file is written beside its place and renamed into it.  A
rename is atomic but not durable, and neither is a write: the data are synced before the rename
(else the new name could show an empty file after a power cut) and the directory after it (else the
old file could come back).  Everything an operating system may answer becomes one ``StorageError``
with the path, the cause and what to do; nothing of a failed write stays behind.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from tardygrad.errors import StorageError

PathLike: TypeAlias = str | os.PathLike[str]

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")

_CREATE = "create the directory"
_OTHER_PLACE = "choose a directory elsewhere with --out"
_CAUSES = {
    errno.ENOSPC: ("the disk is full", f"free some space, or {_OTHER_PLACE}"),
    errno.EDQUOT: ("your disk quota is used up", f"delete some files, or {_OTHER_PLACE}"),
    errno.EACCES: ("permission denied", f"make its directory writable, or {_OTHER_PLACE}"),
    errno.EPERM: ("operation not permitted", f"make its directory writable, or {_OTHER_PLACE}"),
    errno.EROFS: ("the file system is read-only", _OTHER_PLACE),
    errno.EFBIG: ("the file would exceed the size limit", "raise the limit (ulimit -f)"),
    errno.ENOENT: ("its directory does not exist", "was it deleted or unmounted meanwhile?"),
    errno.ENOTDIR: ("a part of the path is a file, not a directory", _OTHER_PLACE),
    errno.EEXIST: ("a file of that name is in the way", _OTHER_PLACE),
    errno.EISDIR: ("a directory of that name is in the way", _OTHER_PLACE),
    errno.EIO: ("the device reports an error", f"check the disk, or {_OTHER_PLACE}"),
    errno.EMFILE: ("too many open files", "raise the limit (ulimit -n)"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one with --out"),
}


def storage_error(error: OSError, path: PathLike, action: str = "write") -> StorageError:
    """What the operating system said about ``path``, as one line a person can act upon."""
    code = error.errno or 0
    cause, remedy = _CAUSES.get(code, (error.strerror or str(error), _OTHER_PLACE))
    if code == errno.ENOENT and action == "read":
        cause, remedy = "it does not exist", "check the path"
    elif code == errno.ENOENT and action == _CREATE:
        # What was missing above it has just been made: only file systems of the kernel's do that.
        cause, remedy = "no directory can be made there", _OTHER_PLACE
    elif code in (errno.EACCES, errno.EPERM) and action == "read":
        remedy = "make it readable for this user"
    elif code == errno.ENOSPC:
        cause += _free_space(Path(path))
    return StorageError(f"cannot {action} {os.fspath(path)}: {cause}; {remedy}")


@contextlib.contextmanager
def replace(path: PathLike) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``path`` when the block ends, whole and durable.

    If the block or the writing fails, ``path`` is as it was and nothing else is left.  Readers see
    the old content or the new one at any time.  Safe in several threads and processes at once; the
    last one to finish wins.

    Raises:
        StorageError: The file cannot be written (disk full, no permission, ...).
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise storage_error(error, target) from error
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        sync_directory(target.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and _is_about(error, (temporary, target.parent)):
            raise storage_error(error, target) from error
        raise


def write_bytes(path: PathLike, data: bytes | bytearray | memoryview) -> None:
    """Write ``data`` as the whole content of ``path``, atomically and durably.

    Raises:
        StorageError: The file cannot be written (disk full, no permission, ...).
    """
    with replace(path) as file:
        file.write(data)


def write_json(path: PathLike, document: Any) -> None:
    """Write ``document`` as indented JSON text, atomically and durably.

    Raises:
        StorageError: The file cannot be written (disk full, no permission, ...).
        TypeError: ``document`` holds something that JSON cannot express.
    """
    write_bytes(path, f"{json.dumps(document, indent=2)}\n".encode())


def make_directory(path: PathLike) -> None:
    """Create ``path`` and what is missing above it, durably; nothing happens if it exists.

    Raises:
        StorageError: It cannot be created, or a file is in the way.
    """
    directory = Path(path)
    missing = [place for place in (directory, *directory.parents) if not os.path.lexists(place)]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for place in reversed(missing):
            sync_directory(place.parent)
    except OSError as error:
        raise storage_error(error, directory, _CREATE) from error


def sync_directory(directory: PathLike) -> None:
    """Make the names in ``directory`` durable: files created, renamed and deleted in it.

    Raises:
        OSError: The directory cannot be opened or synced.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems have no such call; they promise order of names by themselves.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def remove_leftovers(directory: PathLike) -> None:
    """Delete what killed writers left in ``directory``.  Only for who is its only writer."""
    with contextlib.suppress(OSError):
        for entry in Path(directory).iterdir():
            if is_temporary(entry):
                entry.unlink()


def is_temporary(path: PathLike) -> bool:
    """Whether ``path`` is named like a file that is still being written."""
    return _TEMPORARY.fullmatch(Path(path).name) is not None


def short(path: Path) -> str:
    """``path`` as a person would type it here: relative if it lies below the current directory."""
    with contextlib.suppress(ValueError, OSError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def _is_about(error: OSError, paths: tuple[Path, ...]) -> bool:
    """Not so for an error of the caller's own block about some other file."""
    return error.filename is None or Path(os.fsdecode(error.filename)) in paths


def _free_space(path: Path) -> str:
    for place in path.parents:
        with contextlib.suppress(OSError):
            return f" ({shutil.disk_usage(place).free / 1e6:.1f} MB free in {place})"
    return ""
