"""The traces of a run, read from its directory: what the proof and the replay start from."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

from tardygrad.errors import LedgerError
from tardygrad.protocol import trace
from tardygrad.protocol.trace import Record
from tardygrad.storage.atomic import short, storage_error

__all__ = ["read_traces", "whole_until"]

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


def _name(shard: int) -> str:
    return f"shard-{shard:03d}.trace"
