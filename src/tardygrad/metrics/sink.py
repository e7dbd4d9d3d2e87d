"""``metrics.jsonl``: one JSON object a line, the only truth about a run; all views derive from it.

Theory of operation.  The file is opened ``O_APPEND`` and every event is one ``write`` of one whole
line without a buffer in this process.  So once ``write`` returns, the event survives the death of
the process (a ``kill -9`` included), and a reader sees whole lines but, at worst, for the last one.
``sync`` is separate: only a crash of the machine needs it, and waiting for the device twice a
second would stall the scheduler, which shares the process.

A line is torn when the machine, the disk or the quota ended in its middle.  Opening the file to
append (a resume) cuts a torn last line; ``read`` passes over it.  Damage further up is no
accident of writing and is an error that names the line.

JSON has no NaN and no infinity.  They are written as the strings ``"NaN"``, ``"Infinity"`` and
``"-Infinity"`` (as protocol buffers do), so any JSON reader can read the file and a diverged loss
can be told from a missing one; ``read`` gives the numbers back (so a text that is exactly one of
the three reads as a number).
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any, Self

from tardygrad.errors import RunDirectoryError, StorageError

FILE_NAME = "metrics.jsonl"
"""The name of the file in a run directory."""

_BLOCK_BYTES = 1 << 16
_NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_REMEDIES = {
    errno.ENOSPC: "free some space, or choose another directory with --out",
    errno.EDQUOT: "your quota is used up: free some space, or choose another directory with --out",
    errno.EROFS: "the file system is read-only: choose another directory with --out",
    errno.EACCES: "no permission: choose a directory you may write to with --out",
    errno.EPERM: "not permitted: choose a directory you may write to with --out",
    errno.ENOENT: "the directory is not there (or no longer): create it, or choose another",
}


def storage_error(doing: str, path: Path, error: OSError) -> StorageError:
    """The one way in which this package reports a failed file operation.

    Args:
        doing: What was tried, as in "cannot append to".
        path: The file it was tried on.
        error: What the operating system answered.
    """
    cause = error.strerror or str(error)
    remedy = _REMEDIES.get(error.errno or 0, "check the device and the path")
    return StorageError(f"cannot {doing} {path}: {cause} ({remedy})")


def replace_file(path: Path, content: bytes) -> None:
    """Write ``content`` so that ``path`` holds either the old file or the whole new one.

    Raises:
        StorageError: the file cannot be written; nothing half-written stays behind.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise storage_error("write", path, error) from error


class MetricsLog:
    """Appends events to ``metrics.jsonl``; made anew, or continued after a torn end is cut.

    Not safe for threads by itself; ``Recorder`` holds a lock around it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open the file, creating it if need be.

        Args:
            path: The file itself, not the run directory.

        Raises:
            StorageError: it cannot be opened, repaired or written.
        """
        self.path = Path(path)
        self._fd = -1
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            last = _cut_torn_tail(self._fd)
        except OSError as error:
            self._abandon()
            raise storage_error("append to", self.path, error) from error
        time_s = last.get("time_s", 0.0)
        self.last_time_s = float(time_s) if isinstance(time_s, int | float) else 0.0
        """``time_s`` of the last event in the file; a resumed run's clock goes on from here."""

    def write(self, event: Mapping[str, Any]) -> None:
        """Append one event; when this returns, the operating system has it.

        Args:
            event: Plain values, numpy or torch scalars, paths and enums; ``event`` and
                ``time_s`` (seconds) are expected in it.

        Raises:
            StorageError: disk full, read-only, no permission...; the file then ends as before.
            ValueError: the log is closed.
        """
        if self._fd < 0:
            raise ValueError(f"{self.path} is closed; expected no event after close()")
        line = encode(event) + b"\n"
        try:
            written = os.write(self._fd, line)
            if written < len(line):
                self._finish(line, written)
        except OSError as error:
            raise storage_error("append to", self.path, error) from error
        time_s = event.get("time_s")
        if isinstance(time_s, int | float):
            self.last_time_s = float(time_s)

    def sync(self) -> None:
        """Wait until the device has everything (needed only against a crash of the machine).

        Raises:
            StorageError: the device refuses.
        """
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise storage_error("write", self.path, error) from error

    def close(self) -> None:
        """Sync and close; a second call does nothing."""
        if self._fd < 0:
            return
        try:
            self.sync()
        finally:
            self._abandon()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _finish(self, line: bytes, written: int) -> None:
        """Write the rest of a line that the system took in part, or take the part back."""
        start = os.lseek(self._fd, 0, os.SEEK_END) - written
        try:
            while written < len(line):
                written += os.write(self._fd, line[written:])
        except OSError:
            os.ftruncate(self._fd, start)
            raise

    def _abandon(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Every event of a log in order; also of a run that is going on, or that was cut off.

    Args:
        path: The file itself, not the run directory.

    Raises:
        StorageError: the file cannot be read.
        RunDirectoryError: a line before the last is no JSON object.
    """
    path = Path(path)
    torn: int | None = None
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if torn is not None:
                    raise RunDirectoryError(
                        f"{path}, line {torn}: expected one JSON object a line; the file was "
                        "damaged after it was written: restore it, or delete that line"
                    )
                event = _decode(line)
                if event is None:
                    torn = number
                else:
                    yield event
    except OSError as error:
        raise storage_error("read", path, error) from error


def encode(event: Mapping[str, Any]) -> bytes:
    """An event as one line of strict JSON, without the line's end."""
    try:
        text = json.dumps(event, allow_nan=False, default=_plain, separators=(",", ":"))
    except ValueError:  # not finite: rare, so only then is every value looked at
        text = json.dumps(_finite(event), allow_nan=False, separators=(",", ":"))
    return text.encode("ascii")  # json.dumps escapes everything else


def _plain(value: object) -> object:
    """The JSON counterpart of values that the encoder does not know."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    for convert in ("item", "tolist"):  # numpy and torch scalars; arrays
        with contextlib.suppress(AttributeError, TypeError, ValueError, RuntimeError):
            return getattr(value, convert)()
    raise TypeError(
        f"an event holds {value!r} of type {type(value).__name__}; expected numbers, strings, "
        "lists and mappings"
    )


def _finite(value: object) -> object:
    if isinstance(value, float):
        if math.isnan(value):
            return "NaN"
        return value if math.isfinite(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if value is None or isinstance(value, str | int):
        return value
    return _finite(_plain(value))


def _decode(line: bytes) -> dict[str, Any] | None:
    """The event of one line, or None for a torn or damaged line."""
    if not line.endswith(b"\n"):
        return None
    try:
        event = json.loads(line)
    except ValueError:
        return None
    if not isinstance(event, dict):
        return None
    if any(f'"{name}"'.encode() in line for name in _NUMBERS):
        return {key: _numbers(value) for key, value in event.items()}
    return event


def _numbers(value: Any) -> Any:
    if isinstance(value, str):
        return _NUMBERS.get(value, value)
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return value


def _cut_torn_tail(fd: int) -> dict[str, Any]:
    """Cut the last line if it is torn; return the last whole event (empty if there is none).

    Only the end is looked at, however long the file is, and at most one line is cut: damage
    further up is for ``read`` to report, not for a resume to delete.
    """
    end = os.lseek(fd, 0, os.SEEK_END)
    start, line = _last_line(fd, end)
    event = _decode(line)
    if event is None and end > 0:
        os.ftruncate(fd, start)
        event = _decode(_last_line(fd, start)[1])
    return event or {}


def _last_line(fd: int, end: int) -> tuple[int, bytes]:
    """Where the last line before ``end`` starts, and its bytes."""
    tail = b""
    start = end
    while start > 0:
        step = min(_BLOCK_BYTES, start)
        tail = os.pread(fd, step, start - step) + tail
        start -= step
        newline = tail.rfind(b"\n", 0, len(tail) - 1)  # the one that ends the line before
        if newline >= 0:
            return start + newline + 1, tail[newline + 1 :]
    return 0, tail
