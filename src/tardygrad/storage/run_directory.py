"""The directory of a run: where everything lies, whose it is, and who drives it.

::

    run.json        run id, when it was created, incarnation, fingerprint of the layout, outcome
    config.yaml     the resolved configuration, from which the run can be repeated
    job.pkl         objects that were given by value from Python, if any
    metrics.jsonl   one event a line: the only truth about what happened
    metrics.mat     curves.png  ...and what is derived from it
    checkpoints/    <step>/shard-000.safetensors ..., manifest.json
    trace/          what was applied in which order, for replay
    trace-before/   <step>/ the traces of the shards that there were before checkpoint <step>
    fixed.safetensors   what of the model's state is neither trained nor averaged
    logs/           the output of worker and server processes
    scheduler/      journal: what the scheduler was told, for another one that takes its place
    events.log      decisions and their reasons, for people
    lock            held by the process that drives the run

``run.json`` is written last when a directory is created: a directory that has it is a run.  The
lock is the kernel's (``flock``), so it ends with its process however that dies, and a second main
process cannot drive the same run.  Reading needs no lock.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from tardygrad.errors import RunDirectoryError, StorageError, nearest
from tardygrad.protocol.effects import Outcome
from tardygrad.storage.atomic import (
    PathLike,
    is_temporary,
    make_directory,
    remove_leftovers,
    short,
    storage_error,
    write_bytes,
    write_json,
)
from tardygrad.storage.lock import LOCK, DirectoryLock

_FORMAT = 1
_RECORD = "run.json"
_FOLDERS = ("checkpoints", "trace", "logs")
_BAD_PLACES = {
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT),
    *(errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL),
}


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What ``run.json`` says.

    ``run`` is 32 hex digits, made up once and carried by every message of the run.  ``incarnation``
    counts restarts: 0 at first.  ``layout`` is the fingerprint of the model's layout once known.
    ``outcome`` is None as long as the run has not ended, or if its main process was killed.
    """

    run: str
    created: str
    incarnation: int = 0
    layout: str | None = None
    outcome: Outcome | None = None
    format: int = _FORMAT


class RunDirectory:
    """One run on disk.  Made by ``create`` or ``open``; a context manager that releases the lock.

    ``path`` is absolute, so that it stays right when the working directory changes; ``str`` gives
    the shorter form for people.
    """

    def __init__(self, path: Path, record: RunRecord, lock: DirectoryLock | None) -> None:
        self.path = path
        self._record = record
        self._lock = lock

    @classmethod
    def create(
        cls,
        path: PathLike | None,
        config_document: str | Mapping[str, Any],
        *,
        name: str = "run",
        now: datetime | None = None,
    ) -> Self:
        """Start a run in ``path``, which must be new or empty, and hold its lock.

        Args:
            path: The directory; None takes a free ``runs/NAME-YYYYmmdd-HHMMSS`` here.
            config_document: What becomes ``config.yaml``: YAML text, or a mapping to write as such.
            name: The NAME of a path that was not given.
            now: The time of creation; None takes the clock's.

        Raises:
            RunDirectoryError: The directory holds a run or other files, another process took it, or
                nothing can be made there.
            StorageError: The disk is full or fails.
        """
        moment = datetime.now().astimezone() if now is None else now
        with _places_refused():
            directory = _absolute(_claim_default(name, moment) if path is None else path)
            _check_free(directory)
            existed = path is not None and directory.exists()
            make_directory(directory)
            lock = DirectoryLock(directory)
        try:
            # Again, now that nobody else can: another process may have had it in between.
            _check_free(directory)
            _fill(directory, config_document, RunRecord(uuid.uuid4().hex, _text(moment)), existed)
            return cls(directory, _read_record(directory), lock)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def open(cls, path: PathLike, *, lock: bool = False) -> Self:
        """An existing run: for looking at it, or with ``lock`` for driving it on.

        Raises:
            RunDirectoryError: There is no run, or (with ``lock``) another process drives it.
            StorageError: (with ``lock``) It cannot be written.
        """
        directory = _absolute(path)
        record = _read_record(directory)
        if not lock:
            return cls(directory, record, None)
        held = DirectoryLock(directory)
        try:
            remove_leftovers(directory)
            # Read again: who held the lock until now may have counted an incarnation.
            return cls(directory, _read_record(directory), held)
        except BaseException:
            held.release()
            raise

    def close(self) -> None:
        """Release the lock, if held.  May be called again."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return short(self.path)

    def __repr__(self) -> str:
        return f"RunDirectory({str(self.path)!r})"

    @property
    def record(self) -> RunRecord:
        """What ``run.json`` says."""
        return self._record

    @property
    def config_yaml(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def metrics_jsonl(self) -> Path:
        """The events of the run, one a line."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The checkpoints; see ``CheckpointStore``, which takes the run directory."""
        return self.path / "checkpoints"

    @property
    def trace(self) -> Path:
        """What was applied in which order."""
        return self.path / "trace"

    @property
    def fixed_state(self) -> Path:
        """What of the model's state dict no shard holds."""
        return self.path / "fixed.safetensors"

    @property
    def logs(self) -> Path:
        """The output of worker and server processes."""
        return self.path / "logs"

    @property
    def events_log(self) -> Path:
        """Decisions and their reasons."""
        return self.path / "events.log"

    @property
    def job_pkl(self) -> Path:
        """Objects that were given by value."""
        return self.path / "job.pkl"

    @property
    def run_json(self) -> Path:
        """The record of the run."""
        return self.path / _RECORD

    def next_incarnation(self) -> int:
        """Count a restart, and return the number of the incarnation that now begins.

        Raises:
            StorageError: The record cannot be written.
        """
        self._update(incarnation=self._record.incarnation + 1, outcome=None)
        return self._record.incarnation

    def check_layout(self, fingerprint: str) -> None:
        """Note the layout of the model at the first time, and insist on it from then on.

        Raises:
            RunDirectoryError: The run was started with a model of another layout.
            StorageError: The record cannot be written.
        """
        if self._record.layout is None:
            self._update(layout=fingerprint)
        elif self._record.layout != fingerprint:
            raise RunDirectoryError(
                f"{self} was started with another model: its parameters have the fingerprint "
                f"{self._record.layout[:12]}, those given now {fingerprint[:12]}; "
                "resume with the same model, or start a new run"
            )

    def finish(self, outcome: Outcome) -> None:
        """Note how the run ended.

        Raises:
            StorageError: The record cannot be written.
        """
        self._update(outcome=outcome)

    def read_config(self) -> str:
        """The text of ``config.yaml``.

        Raises:
            RunDirectoryError: It is missing or unreadable.
        """
        try:
            return self.config_yaml.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RunDirectoryError(f"{self.config_yaml} cannot be read: {_why(error)}") from error

    def write_job(self, data: bytes) -> None:
        """Keep the pickled objects that were given by value, so that the run can be resumed.

        Raises:
            StorageError: They cannot be written.
        """
        write_bytes(self.job_pkl, data)

    def read_job(self) -> bytes | None:
        """What ``write_job`` kept, or None if nothing was given by value.

        Raises:
            RunDirectoryError: It is unreadable.
        """
        try:
            return self.job_pkl.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunDirectoryError(f"{self.job_pkl} cannot be read: {_why(error)}") from error

    def _update(self, **changes: Any) -> None:
        if self._lock is None:
            raise RuntimeError(
                f"{self} was opened for reading: open it with lock=True to change it"
            )
        record = replace(self._record, **changes)
        write_json(self.run_json, asdict(record))
        self._record = record


@contextlib.contextmanager
def _places_refused() -> Iterator[None]:
    """A place that never takes a run is the caller's mistake; a disk that is full is not."""
    try:
        yield
    except StorageError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in _BAD_PLACES:
            raise RunDirectoryError(str(error)) from cause
        raise


def _absolute(path: PathLike) -> Path:
    place = Path(path)
    with contextlib.suppress(RuntimeError):  # no such user: then it is a name like any other
        place = place.expanduser()
    try:
        return place.absolute()
    except FileNotFoundError:
        raise RunDirectoryError(
            f"{place} cannot be found: the current directory was deleted; change to another one"
        ) from None


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")


def _claim_default(name: str, moment: datetime) -> Path:
    """Make the directory, so that of two runs begun in the same second each gets its own."""
    plain = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"
    base = Path("runs") / f"{plain}-{moment:%Y%m%d-%H%M%S}"
    make_directory(base.parent)
    for number in itertools.count(1):
        path = base if number == 1 else base.with_name(f"{base.name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise storage_error(error, path, "create the directory") from error
        return path
    raise AssertionError("unreachable: the numbers do not end")


def _check_free(directory: Path) -> None:
    """Refuse what holds a run or anything else; a lock or a half-written file is nothing."""
    try:
        names = sorted(
            entry.name
            for entry in directory.iterdir()
            if entry.name != LOCK and not is_temporary(entry)
        )
    except FileNotFoundError:
        return
    except NotADirectoryError:
        problem = "is a file" if directory.exists() else "cannot be: a part of the path is a file"
        raise RunDirectoryError(
            f"{short(directory)} {problem}; choose a directory with --out"
        ) from None
    except OSError as error:
        raise storage_error(error, directory, "read") from error
    if _RECORD in names:
        raise RunDirectoryError(
            f"{short(directory)} holds a run already{_story(directory)}; go on with it by "
            f"--resume {short(directory)}, or choose another directory with --out"
        )
    if names:
        listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise RunDirectoryError(
            f"{short(directory)} is not empty: it holds {listed}; "
            "choose a new or an empty directory with --out"
        )


def _story(directory: Path) -> str:
    try:
        record = _read_record(directory)
    except RunDirectoryError:
        return ""
    return f" (started {record.created}, {record.outcome or 'not ended'})"


def _fill(
    directory: Path, config_document: str | Mapping[str, Any], record: RunRecord, existed: bool
) -> None:
    """All that a new run needs, or nothing: the directory is empty and locked by us."""
    if not isinstance(config_document, str):
        config_document = yaml.safe_dump(dict(config_document), sort_keys=False)
    try:
        for folder in _FOLDERS:
            make_directory(directory / folder)
        write_bytes(directory / "config.yaml", config_document.encode())
        write_json(directory / _RECORD, asdict(record))
    except BaseException:
        for folder in _FOLDERS:
            shutil.rmtree(directory / folder, ignore_errors=True)
        for name in ("config.yaml", _RECORD, LOCK):
            with contextlib.suppress(OSError):
                (directory / name).unlink()
        if not existed:
            with contextlib.suppress(OSError):
                directory.rmdir()
        raise


def _read_record(directory: Path) -> RunRecord:
    path = directory / _RECORD
    try:
        document = json.loads(path.read_bytes())
        if document["format"] != _FORMAT:
            raise RunDirectoryError(
                f"{path} has format {document['format']!r} and not {_FORMAT}: "
                "it was written by another version of tardygrad"
            )
        return RunRecord(**document)
    except (FileNotFoundError, NotADirectoryError):
        raise RunDirectoryError(_no_run(directory)) from None
    except OSError as error:
        raise RunDirectoryError(f"{path} cannot be read: {_why(error)}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise RunDirectoryError(
            f"{path} is damaged ({_why(error)}); the run cannot be resumed, but its "
            "metrics.jsonl and checkpoints are files of their own"
        ) from error


def _no_run(directory: Path) -> str:
    if directory.is_dir():
        return f"{short(directory)} holds no run: it has no {_RECORD}{_suggestion(directory)}"
    kind = "is a file" if directory.exists() else "does not exist"
    return f"{short(directory)} {kind}: expected the directory of a run{_suggestion(directory)}"


def _suggestion(directory: Path) -> str:
    """The run whose name is nearest, or else how many runs lie inside."""
    for place in (directory.parent, directory):
        with contextlib.suppress(OSError):
            runs = [entry.name for entry in place.iterdir() if (entry / _RECORD).is_file()]
            match = nearest(directory.name, runs) if place != directory else max(runs, default=None)
            if match is not None:
                return f" (did you mean {short(place / match)}?)"
    return ""


def _why(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
