"""The trace: what each shard did, in order, one record an update.

Each server appends a record *before* the update takes effect, so whatever another process can have
seen is on record. From the records alone one can prove that each sample counted once
(``invariants.Auditor``) and compute the whole run again, bit for bit (``tardygrad.replaying``). A
record carries the versions that the worker read on *all* shards: a step is replayable as long as
one shard's record of it survives.

Records have a fixed size for a given number of shards, and each ends with a checksum: a torn tail
is recognised and cut, a flipped bit is named.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from tardygrad.errors import LedgerError

MAGIC = b"tardytr1"

APPLIED = 1
DUPLICATE = 2
DROPPED = 3
REFUSED = 4
RESTORED = 5
SNAPSHOT = 6
GATHERED = 7
COMMITTED = 8
INCLUDED = 9
PROMOTED = 10

KIND_NAMES = {
    APPLIED: "applied",
    DUPLICATE: "duplicate",
    DROPPED: "dropped",
    REFUSED: "refused",
    RESTORED: "restored",
    SNAPSHOT: "snapshot",
    GATHERED: "gathered",
    COMMITTED: "committed",
    INCLUDED: "included",
    PROMOTED: "promoted",
}


BOOKED = (APPLIED, GATHERED, INCLUDED, DROPPED)
"""The kinds that book samples in the ledger."""


class Record(NamedTuple):
    """One line of a shard's history.

    ``version`` is the shard's version after the record. For SNAPSHOT and RESTORED, ``seq`` is the
    snapshot's step (0: the run's beginning), and ``incarnation`` the one that wrote the record.
    GATHERED books an update in the open round, with ``scale`` as the staleness policy's factor on
    its weight; COMMITTED applies the mean of a round of ``seq`` updates, its rate times ``scale``.
    INCLUDED books an update that its group has averaged with that of the next GATHERED, and with
    those INCLUDED directly before it. From PROMOTED on, ``incarnation`` owns the shard; it was a
    backup, has everything that stands before, and goes on from there.
    """

    kind: int
    incarnation: int
    version: int
    worker: int = 0
    session: int = 0
    seq: int = 0
    fence: int = 0
    epoch: int = 0
    fragment: int = 0
    first: int = 0
    stop: int = 0
    samples: int = 0
    clock: int = 0
    staleness: int = 0
    scale: float = 1.0
    reads: tuple[tuple[int, int], ...] = ()


_HEAD = struct.Struct("<BIQIIQQIIIIIQQd")
_READ = struct.Struct("<IQ")
_CRC = struct.Struct("<I")
_FILE = struct.Struct("<8sII")


def record_size(shards: int) -> int:
    """Bytes of one record in a run of ``shards`` shards."""
    return _HEAD.size + shards * _READ.size + _CRC.size


def file_header(shard: int, shards: int) -> bytes:
    """What a trace file begins with."""
    return _FILE.pack(MAGIC, shard, shards)


class Encoder:
    """Records to bytes, for one number of shards."""

    def __init__(self, shards: int) -> None:
        self._shards = shards
        self._struct = struct.Struct("<BIQIIQQIIIIIQQd" + "IQ" * shards)
        self._empty = (0, 0) * shards

    def encode(self, record: Record) -> bytes:
        """The record's bytes, checksum included."""
        reads: tuple[int, ...] = self._empty
        if record.reads:
            reads = tuple(n for read in record.reads for n in read)
        body = self._struct.pack(*record[:15], *reads)
        return body + _CRC.pack(zlib.crc32(body))


def decode_file(data: bytes, name: str) -> tuple[int, int, list[Record], int]:
    """Read a whole trace file: ``(shard, shards, records, valid_bytes)``.

    A torn tail (less than a record, or a last record with a wrong checksum) is left out, and
    ``valid_bytes`` says where it begins.

    Raises:
        LedgerError: the file is no trace, or a record before the last one is damaged.
    """
    if len(data) < _FILE.size or data[: len(MAGIC)] != MAGIC:
        raise LedgerError(
            f"{name} is not a trace file of this version (it does not begin with "
            f"{MAGIC.decode()}); restore it from a copy of the run directory"
        )
    _, shard, shards = _FILE.unpack_from(data)
    records: list[Record] = []
    valid = _FILE.size
    size = record_size(shards)
    for offset in range(_FILE.size, len(data) - size + 1, size):
        record = _decode(data, offset, shards)
        if record is None:
            if offset + 2 * size <= len(data):
                raise LedgerError(
                    f"{name}: the record at byte {offset} is damaged (wrong checksum) and others "
                    "follow it; restore the file from a copy of the run directory"
                )
            break
        records.append(record)
        valid = offset + size
    return shard, shards, records, valid


def _decode(data: bytes, offset: int, shards: int) -> Record | None:
    end = offset + _HEAD.size + shards * _READ.size
    if zlib.crc32(data[offset:end]) != _CRC.unpack_from(data, end)[0]:
        return None
    head = _HEAD.unpack_from(data, offset)
    reads = tuple(_READ.iter_unpack(data[offset + _HEAD.size : end]))
    return Record._make((*head, reads))


def surviving(records: list[Record]) -> list[Record]:
    """The records that book samples and that no later restoration rolled back.

    A snapshot holds what stood in the trace before its own record, so a restoration to ``step``
    goes on from the newest SNAPSHOT of that step; step 0 is the run's beginning. Snapshots of a
    history that was rolled back stay valid: a checkpoint may become visible only after a shard has
    gone back to the one before it.
    """
    # The shard's lives: each has the records that it added, and begins with so many of an earlier.
    lives: list[list[Record]] = [[]]
    begins: list[tuple[int, int]] = [(0, 0)]
    snapshots = {0: (0, 0)}
    for record in records:
        if record.kind == SNAPSHOT:
            snapshots[record.seq] = (len(lives) - 1, len(lives[-1]))
        elif record.kind == RESTORED:
            if record.seq not in snapshots:
                raise LedgerError(
                    f"the trace restores snapshot {record.seq}, which it never recorded; "
                    "the trace is incomplete"
                )
            begins.append(snapshots[record.seq])
            lives.append([])
        elif record.kind in BOOKED:
            lives[-1].append(record)
    life, length = len(lives) - 1, len(lives[-1])
    kept = [lives[life][:length]]
    while life > 0:
        life, length = begins[life]
        kept.append(lives[life][:length])
    return [record for part in reversed(kept) for record in part]
