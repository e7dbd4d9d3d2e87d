"""What a run writes, read while it is written: its traces and its metrics.

The conductor notes when it saw each record. It looks every few milliseconds, and a record is one
system call, so the moment is right to within one look.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tardygrad.protocol import trace
from tardygrad.protocol.trace import Record


class TraceTail:
    """New records of one shard's trace at each look; what was there at the beginning is not new."""

    def __init__(self, path: Path, shard: int, shards: int) -> None:
        self._path = path
        self._head = trace.file_header(shard, shards)
        self._size = trace.record_size(shards)
        self._offset = len(self._head)

    def new(self) -> list[Record]:
        """Whole records since the last look."""
        try:
            end = self._path.stat().st_size
            if end < self._offset:
                # A server that came back has cut what its predecessor did not finish.
                self._offset = max(end - (end - len(self._head)) % self._size, len(self._head))
            length = (end - self._offset) // self._size * self._size
            if length <= 0:
                return []
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(length)
        except OSError:
            return []
        _, _, records, valid = trace.decode_file(self._head + data, str(self._path))
        self._offset += valid - len(self._head)
        return records

    def skip(self) -> None:
        """Take whatever is there for old."""
        while self.new():
            pass


class MetricsTail:
    """New events of a ``metrics.jsonl`` at each look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new(self) -> list[dict[str, Any]]:
        """Whole lines since the last look."""
        try:
            if self._path.stat().st_size <= self._offset:
                return []
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]
