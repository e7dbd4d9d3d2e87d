"""A server's log in shared memory: what it has decided outlives it, and its backups follow.

Theory of operation. One file a shard holds a ring of entries and a few words. The server writes an
entry before it handles the event in it, and then moves the *head*: nobody sees half an entry. Each
*place* for a backup has words of its own, each written by one process alone::

    wish     the backup that sits there wants to be filled             (the backup)
    follows  the backup that the server waits for                      (the server)
    cursor   up to where that backup has handled the log               (server, then backup)
    barred   nobody up to this incarnation is waited for any more      (the main process)
    asleep   whether the backup must be rung                           (the backup)

An entry is overwritten only when all who are waited for have handled it; a server that finds no
room waits until they have, or the main process has barred them. ``owner`` is the incarnation that
may write: one that was replaced finds another's there. Incarnations are kept plus one: 0 is nobody.
"""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import msgpack

from tardygrad.engines.mapped import map_file
from tardygrad.engines.shared_memory import fence
from tardygrad.errors import InvariantViolation
from tardygrad.protocol import events as ev

_BYTES = 1 << 20
_WORDS = 64
_HEAD, _OWNER, _PLACES = 0, 1, 8
_WISH, _FOLLOWS, _CURSOR, _BARRED, _ASLEEP = range(5)
_PLACE_WORDS = 6
_LENGTH = struct.Struct("<I")
_ROOM_S = 0.0005

Entry = tuple[float, int, int, int, Any]
"""When the server handled an event, the slot (worker, number) and stamp of a push, the event."""


def encode(now: float, worker: int, slot: int, stamp: int, event: ev.Event) -> bytes:
    """An entry's bytes."""
    data: bytes = msgpack.packb((now, worker, slot, stamp, type(event).__name__, *event))
    return data


def decode(data: bytes) -> Entry:
    """The entry that :func:`encode` wrote, in this run and on this machine."""
    now, worker, slot, stamp, name, *fields = msgpack.unpackb(data, use_list=False)
    return now, worker, slot, stamp, getattr(ev, name)._make(fields)


class ServerLog:
    """The log of one shard.

    Args:
        directory: the runtime directory.
        shard: whose it is.
        replicas: places for backups.
        create: make the file; only the main process does.
    """

    def __init__(self, directory: Path, shard: int, replicas: int, *, create: bool = False) -> None:
        path = directory / f"log-{shard}"
        self._map = map_file(path, 8 * _WORDS + _BYTES, () if create else None)
        self._view = memoryview(self._map).cast("B")
        self._ring = self._view[8 * _WORDS :]
        self._words = memoryview(self._map).cast("B").cast("q")
        self._places = [_PLACES + _PLACE_WORDS * place for place in range(replicas)]
        self._owner = 0

    @property
    def head(self) -> int:
        """The position behind the newest entry; positions only grow."""
        return self._words[_HEAD]

    # --- the server ---------------------------------------------------------------------------

    def own(self, incarnation: int) -> None:
        """From now on this incarnation writes."""
        self._owner = self._words[_OWNER] = incarnation + 1

    def append(self, data: bytes) -> int:
        """Write an entry, waiting for room; returns the position behind it.

        Raises:
            InvariantViolation: another incarnation owns the shard.
        """
        words = self._words
        if words[_OWNER] != self._owner:
            raise InvariantViolation(
                f"incarnation {self._owner - 1} writes to a log that incarnation "
                f"{words[_OWNER] - 1} owns"
            )
        at = words[_HEAD]
        end = at + _LENGTH.size + len(data)
        while end - self.reached() > _BYTES:
            time.sleep(_ROOM_S)
        self._put(at, _LENGTH.pack(len(data)))
        self._put(at + _LENGTH.size, data)
        fence()
        words[_HEAD] = end
        return end

    def _put(self, at: int, data: bytes) -> None:
        at %= _BYTES
        first = min(len(data), _BYTES - at)
        self._ring[at : at + first] = data[:first]
        if first < len(data):
            self._ring[: len(data) - first] = data[first:]

    def reached(self) -> int:
        """Up to where all who are waited for have handled the log; the head if nobody is."""
        words, least = self._words, self._words[_HEAD]
        for at in self._places:
            if words[at + _FOLLOWS] > words[at + _BARRED]:
                least = min(least, words[at + _CURSOR])
        return least

    @property
    def followed(self) -> bool:
        """Whether anybody is waited for."""
        words = self._words
        return any(words[at + _FOLLOWS] > words[at + _BARRED] for at in self._places)

    def wishes(self) -> list[tuple[int, int]]:
        """Who wants to be filled: place and incarnation."""
        words = self._words
        return [
            (place, words[at + _WISH] - 1)
            for place, at in enumerate(self._places)
            if words[at + _WISH] > max(words[at + _FOLLOWS], words[at + _BARRED])
        ]

    def begin(self, place: int, incarnation: int) -> int:
        """Wait for this backup from now on; returns the position from which it follows."""
        at, head = self._places[place], self.head
        self._words[at + _CURSOR] = head
        fence()
        self._words[at + _FOLLOWS] = incarnation + 1
        return head

    def asleep(self) -> list[int]:
        """Places whose backups must be rung."""
        words = self._words
        return [place for place, at in enumerate(self._places) if words[at + _ASLEEP]]

    # --- a backup -----------------------------------------------------------------------------

    def wish(self, place: int, incarnation: int) -> None:
        """Ask to be filled."""
        self._words[self._places[place] + _WISH] = incarnation + 1

    def read(self, at: int) -> tuple[bytes, int] | None:
        """The entry at a position and the position behind it; None at the head."""
        if at >= self._words[_HEAD]:
            return None
        fence()
        (length,) = _LENGTH.unpack(self._get(at, _LENGTH.size))
        return self._get(at + _LENGTH.size, length), at + _LENGTH.size + length

    def _get(self, at: int, count: int) -> bytes:
        at %= _BYTES
        first = bytes(self._ring[at : at + count])
        return first + bytes(self._ring[: count - len(first)])

    def handled(self, place: int, until: int) -> None:
        """The backup has handled the log up to there."""
        fence()
        self._words[self._places[place] + _CURSOR] = until

    def set_asleep(self, place: int, asleep: bool) -> None:
        """The backup sleeps, or does no longer."""
        self._words[self._places[place] + _ASLEEP] = int(asleep)

    # --- the main process ---------------------------------------------------------------------

    def bar(self, place: int, incarnation: int) -> None:
        """Nobody waits for this backup any more, nor for an earlier one in its place."""
        at = self._places[place] + _BARRED
        self._words[at] = max(self._words[at], incarnation + 1)
