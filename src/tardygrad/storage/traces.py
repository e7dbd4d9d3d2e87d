"""The traces of a run, read from its directory: what the proof and the replay start from."""

from __future__ import annotations

from pathlib import Path

from tardygrad.errors import LedgerError
from tardygrad.protocol import trace
from tardygrad.protocol.trace import Record
from tardygrad.storage.atomic import short, storage_error

__all__ = ["read_traces"]

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
        shard, shards, found[path.name], _ = trace.decode_file(data, short(path))
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


def _name(shard: int) -> str:
    return f"shard-{shard:03d}.trace"
