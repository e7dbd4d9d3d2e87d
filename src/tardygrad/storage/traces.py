"""The traces of a run, read from its directory: what the proof and the replay start from.

Theory of operation. The folder ``trace`` has one file for each shard. Where a run goes on with
other shards, its traces are set aside, and new ones begin at the checkpoint that was made for the
new shards (a *cut*)::

    trace/shard-000.trace ...                       the shards that there are now
    trace-before/000000000008/shard-000.trace ...   those before checkpoint 8 was made
                              cut.json              of which checkpoint, and the key ranges

Where there was no checkpoint yet, nothing of the old traces counts, and the cut leads from step 0.

A set of traces moves by one rename. Whoever dies before the new checkpoint is there has changed
nothing: the next resume takes the traces back.

Each *piece* of the vector (the elements between two borders of any shards) has one history: that of
the shard it belonged to, up to each cut, and then of the next one.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from tardygrad.errors import LedgerError
from tardygrad.layout import KeyRange
from tardygrad.protocol import trace
from tardygrad.protocol.meetings import Back, Met, Took
from tardygrad.protocol.residuals import Inherited, Residual, Returned
from tardygrad.protocol.trace import Record
from tardygrad.storage.atomic import (
    make_directory,
    short,
    storage_error,
    sync_directory,
    write_json,
)

__all__ = [
    "MEETINGS", "RESIDUALS", "Cut", "Piece", "cuts", "entry_line", "read_meetings", "read_pieces",
    "read_residuals", "read_traces", "set_aside", "shards_of", "take_back", "whole_until",
]  # fmt: skip

RESIDUALS = "residuals.jsonl"
"""Beside the traces: what happened to workers' residuals, a JSON object a line."""

MEETINGS = "meetings.jsonl"
"""Beside the traces: with whom workers averaged their replicas, a JSON object an exchange."""

_TRACE, _EARLIER, _CUT = "trace", "trace-before", "cut.json"

T = TypeVar("T")

_HEAD_BYTES = len(trace.file_header(0, 1))
_REMEDY = "restore the folder from a copy of the run directory"


def read_traces(directory: Path) -> list[list[Record]]:
    """Every shard's records, oldest first. A torn tail is left out: nothing came of it.

    Args:
        directory: the folder ``trace`` of a run.

    Raises:
        LedgerError: there is no trace, a shard's is missing, or one is damaged.
        StorageError: a file cannot be read.
    """
    found: dict[str, list[Record]] = {}
    shards = 0
    for path in sorted(directory.glob("shard-*.trace")):
        try:
            data = path.read_bytes()
        except OSError as error:
            raise storage_error(error, path, "read") from error
        found[path.name] = []
        if len(data) < _HEAD_BYTES:
            continue  # its server died before the head of the file was written
        _, shards, _, _ = trace.decode_file(data[:_HEAD_BYTES], short(path))
        end = whole_until(io.BytesIO(data), len(data), shards)
        shard, _, found[path.name], _ = trace.decode_file(data[:end], short(path))
        if path.name != _name(shard):
            raise LedgerError(f"{short(path)} holds the trace of shard {shard}; {_REMEDY}")
    if not shards:
        raise LedgerError(
            f"{short(directory)} holds no trace: nothing was trained there yet, or its files were "
            "removed"
        )
    expected = [_name(shard) for shard in range(shards)]
    wrong = sorted(set(expected) ^ set(found))
    if wrong:
        what = "lacks" if wrong[0] in expected else f"is of {shards} shards and should not have"
        raise LedgerError(f"{short(directory)} {what} {', '.join(wrong)}; {_REMEDY}")
    return [found[name] for name in expected]


def shards_of(directory: Path) -> int:
    """Of how many shards the traces in a folder are, by the head of one; 0 if there is none.

    Raises:
        LedgerError: a file is no trace.
        StorageError: a file cannot be read.
    """
    for path in sorted(directory.glob("shard-*.trace")):
        try:
            with path.open("rb") as file:
                head = file.read(_HEAD_BYTES)
        except OSError as error:
            raise storage_error(error, path, "read") from error
        if len(head) == _HEAD_BYTES:
            return trace.decode_file(head, short(path))[1]
    return 0


def whole_until(file: BinaryIO, size: int, shards: int) -> int:
    """Where the last whole record of a trace file of ``size`` bytes ends.

    A server that died while it wrote may have left part of a record, and a machine that lost power
    any number of records of the right size that never reached the disk.
    """
    head, record = trace.file_header(0, shards), trace.record_size(shards)
    end = size - (size - len(head)) % record
    while end > len(head):
        file.seek(end - record)
        if trace.decode_file(head + file.read(record), "")[2]:
            break
        end -= record
    return end


def entry_line(entry: Residual | Met) -> bytes:
    """An entry as a line of the file of residuals, or of meetings."""
    return json.dumps(entry._asdict()).encode() + b"\n"


def read_residuals(directory: Path) -> list[Residual]:
    """All entries about residuals, oldest first; none where no codec kept one.

    Args:
        directory: the folder ``trace`` of a run.

    Raises:
        LedgerError: a line is neither an entry nor torn.
        StorageError: the file cannot be read.
    """

    def entry(fields: dict[str, Any]) -> Residual:
        if "before" in fields:
            return Inherited(**fields)
        return Returned(**{**fields, "shards": tuple(fields["shards"])})

    return _entries(directory / RESIDUALS, entry)


def read_meetings(directory: Path) -> list[Met]:
    """All entries about meetings, oldest first; none where workers did not meet.

    Args:
        directory: the folder ``trace`` of a run.

    Raises:
        LedgerError: a line is neither an entry nor torn.
        StorageError: the file cannot be read.
    """

    def entry(fields: dict[str, Any]) -> Met:
        back, took = fields["back"], fields["took"]
        fields |= {"back": back and Back(*back), "took": took and Took(*took)}
        return Met(**{**fields, "reads": tuple((i, v) for i, v in fields["reads"])})

    return _entries(directory / MEETINGS, entry)


def _entries(path: Path, entry: Callable[[dict[str, Any]], T]) -> list[T]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise storage_error(error, path, "read") from error
    found: list[T] = []
    for number, line in enumerate(lines, 1):
        try:
            fields = json.loads(line) if line.strip() else {}
        except ValueError:
            continue  # its worker was cut off while it wrote, before anything came of it
        try:
            if fields:
                found.append(entry(fields))
        except (TypeError, KeyError, ValueError) as error:
            raise LedgerError(f"{short(path)}, line {number}, is no entry; {_REMEDY}") from error
    return found


def _name(shard: int) -> str:
    return f"shard-{shard:03d}.trace"


@dataclass(frozen=True)
class Cut:
    """A change of shards: checkpoint ``into_step`` was made of ``from_step``, which had others.

    ``before`` are the key ranges of that, ``after`` those of the new one. From step 0 nothing is
    kept: the run began again, and ``before`` is empty.
    """

    from_step: int
    into_step: int
    before: tuple[KeyRange, ...]
    after: tuple[KeyRange, ...]


@dataclass(frozen=True)
class Piece:
    """Elements of the vector that were always in one shard together.

    ``shard`` is the one they are in now; ``records`` are all that concern them, oldest first, with
    what leads from one cut to the next as a restoration and a snapshot.
    """

    shard: int
    records: list[Record]


def set_aside(run: Path, cut: Cut) -> None:
    """Put the traces of the shards that there were beside those to come.

    Raises:
        StorageError: they cannot be moved.
    """
    here, there = run / _TRACE, run / _EARLIER / f"{cut.into_step:012d}"
    ranges = {name: [[r.start, r.stop] for r in getattr(cut, name)] for name in ("before", "after")}
    write_json(here / _CUT, {"from": cut.from_step, "into": cut.into_step, **ranges})
    make_directory(there.parent)
    try:
        here.rename(there)
        sync_directory(there.parent)
    except OSError as error:
        raise storage_error(error, there, "move the traces to") from error
    make_directory(here)


def take_back(run: Path) -> None:
    """Undo the newest cut, of which nothing came: its checkpoint never was, or was lost since.

    Raises:
        StorageError: they cannot be moved.
    """
    here, there = run / _TRACE, max((run / _EARLIER).iterdir())
    try:
        if here.exists():
            here.rmdir()
        there.rename(here)
        (here / _CUT).unlink()
        sync_directory(run)
    except OSError as error:
        raise storage_error(error, here, "move the traces to") from error


def cuts(run: Path) -> list[tuple[Cut, Path]]:
    """Every cut of a run, oldest first, and the folder of the traces before it.

    Raises:
        LedgerError: one is not described, or its description is damaged.
        StorageError: a file cannot be read.
    """
    folders = sorted((run / _EARLIER).iterdir()) if (run / _EARLIER).is_dir() else []
    return [(_read_cut(folder / _CUT), folder) for folder in folders]


def _read_cut(path: Path) -> Cut:
    try:
        data = json.loads(path.read_bytes())
        before, after = (tuple(KeyRange(*r) for r in data[k]) for k in ("before", "after"))
        return Cut(int(data["from"]), int(data["into"]), before, after)
    except OSError as error:
        raise storage_error(error, path, "read") from error
    except (ValueError, TypeError, KeyError) as error:
        raise LedgerError(f"{short(path)} is damaged ({error}); {_REMEDY}") from error


def read_pieces(run: Path) -> list[Piece]:
    """The history of every piece of a run's vector; without cuts, of every shard.

    Raises:
        LedgerError: there is no trace, or one is missing or damaged.
        StorageError: a file cannot be read.
    """
    made = cuts(run)
    # What was there before the run began again does not count.
    began = max((n for n, (cut, _) in enumerate(made, 1) if cut.from_step == 0), default=0)
    first = made[began - 1][0].after if began else ()
    made = made[began:]
    if not made:
        return [Piece(shard, records) for shard, records in enumerate(read_traces(run / _TRACE))]
    shapes = [first or made[0][0].before, *(cut.after for cut, _ in made)]
    folders = [*(folder for _, folder in made), run / _TRACE]
    traces = [_traces_of(*pair) for pair in zip(folders, shapes, strict=True)]
    pieces: dict[tuple[int, ...], Piece] = {}
    for start in sorted({r.start for shape in shapes for r in shape}):
        path = tuple(_home(shape, start) for shape in shapes)
        if path not in pieces:
            records = list(traces[0][path[0]])
            for (cut, _), found, shard in zip(made, traces[1:], path[1:], strict=True):
                # The new shard is what the old one was in that checkpoint.
                records.append(Record(trace.RESTORED, 0, 0, seq=cut.from_step))
                records.append(Record(trace.SNAPSHOT, 0, 0, seq=cut.into_step))
                records += found[shard]
            pieces[path] = Piece(path[-1], records)
    return list(pieces.values())


def _traces_of(folder: Path, shape: Sequence[KeyRange]) -> list[list[Record]]:
    if not any(folder.glob("shard-*.trace")):
        return [[] for _ in shape]  # nothing was trained between two cuts, or since the last
    found = read_traces(folder)
    if len(found) != len(shape):
        raise LedgerError(
            f"{short(folder)} has the traces of {len(found)} shards, and there were {len(shape)}; "
            f"{_REMEDY}"
        )
    return found


def _home(shape: Sequence[KeyRange], element: int) -> int:
    return next(n for n, r in enumerate(shape) if r.start <= element < r.stop)
