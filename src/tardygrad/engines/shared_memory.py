"""The data path on one host: shards, push slots and answers in one piece of shared memory.

Theory of operation. One file in the runtime directory is mapped by every process::

    shard headers | copies of: parameters, then averaged buffers | readers' pins |
    for each worker: flag, slots, answers

There is a place for every worker that there can be, but memory only for those that there are: what
nobody has touched takes none, and is reserved when a worker joins. The first shard's header says
how many places are in use.

*Pull*: the reader pins the newest copy, checks that copy's sequence number (even: nobody writes
it), copies out, and checks the number again (a sequence lock: no read is torn). A writer makes the
number of a copy that nobody has pinned odd, writes, makes it even, and says that this is the
newest. With one copy more than readers and writer can hold, nobody ever waits. Large models have a
single copy, which is changed in place: there a writer waits for the readers, who hold it for a
memory copy, and readers for the writer; one that died holds nobody up for long.

*Push*: a worker computes straight into a slot (with a codec, it encodes into it), writes the slot's
descriptor, and last its *stamp*, a number that only grows. Servers look for stamps that they have
not seen, and answer by writing the same stamp behind their outcome. A slot is used again only when
every server has answered.

*Bells* wake a process that sleeps; a sleeper says so in a flag, so that nobody rings in vain. All
waiting has a time limit: a lost ring costs milliseconds, never a run.

The order of writes is what makes this correct. x86 keeps the order of stores; ``fence`` adds the
barriers that other processors need.
"""

from __future__ import annotations

import os
import platform
import struct
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from tardygrad.engines.mapped import map_file
from tardygrad.engines.runtime_directory import Piece, reserve_more
from tardygrad.layout import KeyRange, Layout
from tardygrad.protocol import events as ev

_LINE = 64
_NEWEST, _CLOCK, _SLEEPING, _IN_USE = range(4)
_SEQUENCE, _INCARNATION, _VERSION, _CONSUMED = range(4)
_COPIES_LIMIT = 32 << 20
_READER_PATIENCE_S = 0.25
_SPIN = 50

_OUTCOMES = (ev.APPLIED, ev.DUPLICATE, ev.DROPPED, ev.AGAIN, ev.REFUSED, ev.GAP)
_CODES = {name: code for code, name in enumerate(_OUTCOMES)}
_REASON_BYTES = 88

_lock = threading.Lock()
# There an atomic exchange is a whole barrier. Elsewhere what was before may slip in behind the
# taking of a lock, and what comes after in before its release, but nothing passes two.
_ONE_LOCK_IS_ENOUGH = platform.machine() in ("x86_64", "AMD64")


def fence() -> None:
    """A memory barrier: what was written before is seen before what is written after."""
    with _lock:
        pass
    if not _ONE_LOCK_IS_ENOUGH:
        with _lock:
            pass


class Answer(NamedTuple):
    """A server's answer to the stamp of a slot."""

    stamp: int
    outcome: str
    next: int
    reason: str


def _round_up(size: int) -> int:
    return -(-size // _LINE) * _LINE


class Geometry:
    """Where everything lies, computed alike by every process.

    There are places for ``workers_max`` workers; whether there are several copies of a shard is
    decided by the ``workers`` that begin.
    """

    def __init__(
        self, layout: Layout, shards: int, workers: int, slots: int, push: int = 0,
        workers_max: int = 0,
    ) -> None:  # fmt: skip
        self.layout_size = layout.size
        self.shards, self.slots = shards, slots
        self.workers_first, self.workers = workers, max(workers, workers_max)
        self.descriptor = struct.Struct(f"<Q{13}Q{2 * shards}Q")
        self.answer = struct.Struct(f"<QQQB{_REASON_BYTES - 1}p")
        # The evaluator reads too: it is the last reader.
        self.readers = self.workers + 1
        self.copy_size = _round_up(4 * layout.size)
        fits = self.copy_size * (workers + 3) <= _COPIES_LIMIT
        self.copies = self.readers + 2 if fits else 1
        self.header_size = _LINE * (1 + self.copies)
        self.parameters = shards * self.header_size
        self.reader_size = _round_up(8 * shards)
        self.readers_at = self.parameters + self.copies * self.copy_size
        self.workers_at = self.readers_at + self.readers * self.reader_size
        self.flags_size = _LINE
        self.descriptor_size = _round_up(8 + self.descriptor.size)
        self.answer_size = _round_up(self.answer.size)
        self.push_bytes = push or 4 * layout.size
        self.update_size = _round_up(self.push_bytes)
        self.slot_size = self.descriptor_size + shards * self.answer_size + self.update_size
        self.worker_size = self.flags_size + slots * self.slot_size
        self.total = self.workers_at + self.workers * self.worker_size

    def pieces(self, workers: int) -> list[Piece]:
        """What is used by so many workers: where each piece begins, and its size."""
        # Of several copies, all readers and the writer hold one each, and one is the newest.
        copies = min(self.copies, workers + 3)
        return [
            (0, self.parameters + copies * self.copy_size),
            (self.readers_at, self.readers * self.reader_size + workers * self.worker_size),
        ]

    def header(self, shard: int) -> int:
        """Offset of a shard's header: a line for the shard, then one for each copy."""
        return shard * self.header_size

    def reader(self, reader: int) -> int:
        """Offset of a reader's pins, one word a shard: the pinned copy plus one, or 0."""
        return self.readers_at + reader * self.reader_size

    def worker(self, worker: int) -> int:
        """Offset of a worker's area: its flags come first."""
        return self.workers_at + worker * self.worker_size

    def slot(self, worker: int, slot: int) -> int:
        """Offset of a slot: stamp and descriptor, answers, the push's bytes."""
        return self.worker(worker) + self.flags_size + slot * self.slot_size

    def answer_at(self, worker: int, slot: int, shard: int) -> int:
        """Offset of a server's answer to a slot."""
        return self.slot(worker, slot) + self.descriptor_size + shard * self.answer_size

    def update(self, worker: int, slot: int) -> int:
        """Offset of the bytes of a slot's push."""
        return self.slot(worker, slot) + self.slot_size - self.update_size


class Arena:
    """The mapped memory, with typed access to its parts."""

    FILE = "arena"
    LINE_WORDS = _LINE // 8
    CONSUMED = _CONSUMED
    """Where in a copy's line its server says how many samples were booked."""

    def __init__(self, path: Path, geometry: Geometry, *, create: bool = False) -> None:
        self.geometry = geometry
        self._path = path
        pieces = geometry.pieces(geometry.workers_first) if create else None
        self._map = map_file(path, geometry.total, pieces)
        self._words = np.frombuffer(self._map, dtype=np.int64)
        self._view = memoryview(self._map).cast("B")
        # Single words are read and written through this: one machine word, one access.
        self.words = memoryview(self._map).cast("B").cast("q")
        g = geometry
        shards, workers = range(g.shards), range(g.workers)
        # Where words lie, looked up in each step: multiplying it out again would take longer.
        self._headers = [g.header(s) // 8 for s in shards]
        self._lines = [
            [(g.header(s) + _LINE * (1 + c)) // 8 for c in range(g.copies)] for s in shards
        ]
        self._pins = [[g.reader(r) // 8 + s for r in range(g.readers)] for s in shards]
        self._pins_in_use = 0
        self._scanned = self._pins
        self._flags = [g.worker(w) // 8 for w in workers]
        self._slots = [[g.slot(w, i) for i in range(g.slots)] for w in workers]
        self._answers = [
            [[g.answer_at(w, i, s) for s in shards] for i in range(g.slots)] for w in workers
        ]
        starts = [g.parameters + i * g.copy_size for i in range(g.copies)]
        self.copies = [self._raw(at, 4 * g.layout_size).view(torch.float32) for at in starts]
        if create:
            self.words[self._headers[0] + _IN_USE] = geometry.workers_first

    @property
    def in_use(self) -> int:
        """How many workers' places are in use; this only grows."""
        return self.words[self._headers[0] + _IN_USE]

    def make_room(self, workers: int) -> None:
        """Reserve the places of so many workers, and tell everybody. For the main process alone.

        Raises:
            StorageError: there is no room.
        """
        workers = min(workers, self.geometry.workers)
        if workers > self.in_use:
            reserve_more(self._path, self.geometry.pieces(workers))
            self.words[self._headers[0] + _IN_USE] = workers

    def _raw(self, offset: int, count: int) -> torch.Tensor:
        # numpy keeps the mapping alive for as long as the tensor lives.
        return torch.from_numpy(np.frombuffer(self._map, np.uint8, count, offset))

    def update(self, worker: int, slot: int) -> torch.Tensor:
        """A slot's update where no codec is used: float32 ``[layout.size]``."""
        return self.push(worker, slot).view(torch.float32)

    def push(self, worker: int, slot: int) -> torch.Tensor:
        """The bytes of a slot's push: uint8 ``[push_bytes]``."""
        return self._raw(self.geometry.update(worker, slot), self.geometry.push_bytes)

    def header(self, shard: int) -> int:
        """Index of the first word of a shard's header."""
        return self._headers[shard]

    def lines(self, shard: int) -> list[torch.Tensor]:
        """What is said of each copy of a shard: int64 ``[LINE_WORDS]``; read like its numbers."""
        words, size = self._words, self.LINE_WORDS
        return [torch.from_numpy(words[at : at + size]) for at in self._lines[shard]]

    # --- pulls --------------------------------------------------------------------------------

    def clock(self, shard: int) -> int:
        """The slowest member's clock that the shard's server has published."""
        return self.words[self._headers[shard] + _CLOCK]

    def publish_clock(self, shard: int, clock: int) -> None:
        """Publish the slowest member's clock."""
        self.words[self._headers[shard] + _CLOCK] = clock

    def sleeps(self, shard: int) -> bool:
        """Whether the shard's server sleeps."""
        return self.words[self._headers[shard] + _SLEEPING] != 0

    def set_sleeping(self, shard: int, sleeping: bool) -> None:
        """Say that this server sleeps, or does no longer."""
        self.words[self._headers[shard] + _SLEEPING] = int(sleeping)

    def worker_sleeps(self, worker: int) -> bool:
        """Whether the worker sleeps."""
        return self.words[self._flags[worker]] != 0

    def set_worker_sleeping(self, worker: int, sleeping: bool) -> None:
        """Say that this worker sleeps, or does no longer."""
        self.words[self._flags[worker]] = int(sleeping)

    def pin(self, shard: int, reader: int) -> tuple[int, ev.Read] | None:
        """Hold the newest of several copies as it is, until the reader's next pin or read.

        Returns:
            The copy's number and its (incarnation, version), or None if it cannot be had now.
        """
        words = self.words
        head = self._headers[shard]
        pin = self._pins[shard][reader]
        for _ in range(_SPIN):
            copy = words[head + _NEWEST]
            at = self._lines[shard][copy]
            words[pin] = copy + 1
            fence()
            if not words[at + _SEQUENCE] & 1:
                return copy, (words[at + _INCARNATION], words[at + _VERSION])
            words[pin] = 0
            os.sched_yield()
        return None

    def read(
        self,
        shard: int,
        parts: list[tuple[torch.Tensor, list[torch.Tensor]]],
        reader: int,
        patience_s: float,
    ) -> ev.Read | None:
        """Copy parts of a shard, untorn.

        Args:
            shard: whose parameters (or buffers) are read.
            parts: ``(target, sources)``: the same part of each copy, of the target's shape.
            reader: the worker that reads; ``geometry.workers`` stands for the evaluator.
            patience_s: seconds to try.

        Returns:
            The (incarnation, version) that was copied, or None if a writer was always at it.
        """
        words = self.words
        head = self._headers[shard]
        pin = self._pins[shard][reader]
        deadline = 0.0
        tries = 0
        while True:
            copy = words[head + _NEWEST]
            at = self._lines[shard][copy]
            words[pin] = copy + 1
            fence()
            before = words[at + _SEQUENCE]
            if not before & 1:
                read = words[at + _INCARNATION], words[at + _VERSION]
                for target, sources in parts:
                    target.copy_(sources[copy])
                fence()
                if words[at + _SEQUENCE] == before:
                    words[pin] = 0
                    return read
            words[pin] = 0
            tries += 1
            if tries < _SPIN:
                os.sched_yield()
                continue
            now = time.monotonic()
            deadline = deadline or now + patience_s
            if now > deadline:
                return None
            time.sleep(0.0002)

    def _pinned(self, shard: int, copy: int) -> int | None:
        """Index of a pin on the copy, or None."""
        words, held = self.words, copy + 1
        if words[self._headers[0] + _IN_USE] != self._pins_in_use:
            self._pins_in_use = workers = self.in_use
            self._scanned = [[*pins[:workers], pins[-1]] for pins in self._pins]
        for pin in self._scanned[shard]:
            if words[pin] == held:
                return pin
        return None

    def begin_write(self, shard: int) -> int:
        """Take a copy to write: one that nobody reads. Its sequence number becomes odd."""
        words = self.words
        if self.geometry.copies == 1:
            at = self._lines[shard][0]
            words[at + _SEQUENCE] |= 1
            fence()
            self._await_readers(shard)
            return 0
        newest = words[self._headers[shard] + _NEWEST]
        while True:
            for copy in range(self.geometry.copies):
                if copy == newest:
                    continue
                at = self._lines[shard][copy]
                before = words[at + _SEQUENCE]
                words[at + _SEQUENCE] = before | 1
                fence()
                if self._pinned(shard, copy) is None:
                    return copy
                # Nothing was written: whoever has pinned it may go on.
                words[at + _SEQUENCE] = before

    def _await_readers(self, shard: int) -> None:
        deadline = 0.0
        while (pin := self._pinned(shard, 0)) is not None:
            # A reader copies for microseconds; one that is still there after that has died or was
            # frozen, and its read will not pass the check.
            now = time.monotonic()
            deadline = deadline or now + _READER_PATIENCE_S
            if now > deadline:
                self.words[pin] = 0
            os.sched_yield()

    def end_write(
        self, shard: int, copy: int, incarnation: int, version: int, consumed: int = 0
    ) -> None:
        """Publish the copy as the newest, as ``version``; its sequence number becomes even.

        ``consumed`` samples were booked by then.
        """
        words, at = self.words, self._lines[shard][copy]
        words[at + _INCARNATION] = incarnation
        words[at + _VERSION] = version
        words[at + _CONSUMED] = consumed
        fence()
        words[at + _SEQUENCE] = (words[at + _SEQUENCE] | 1) + 1
        words[self._headers[shard] + _NEWEST] = copy

    def version(self, shard: int) -> ev.Read:
        """The newest (incarnation, version), perhaps no longer so when the caller looks at it."""
        at = self._lines[shard][self.words[self._headers[shard] + _NEWEST]]
        return self.words[at + _INCARNATION], self.words[at + _VERSION]

    def newest(self, shard: int) -> torch.Tensor:
        """The newest copy, for a shard that nobody writes any more."""
        return self.copies[self.words[self._headers[shard] + _NEWEST]]

    # --- pushes -------------------------------------------------------------------------------

    def stamp(self, worker: int, slot: int) -> int:
        """The stamp of the slot's newest publication; 0 before the first."""
        return self.words[self._slots[worker][slot] // 8]

    def publish(self, slot: int, stamp: int, push: ev.Push, shard: int = 0) -> None:
        """Write a push's descriptor, then its stamp: from then on servers see it.

        ``shard`` is one of those that it is for: where they are exchanged in turns, not all.
        """
        at = self._slots[push.worker][slot]
        reads = [n for read in push.reads for n in read]
        self.geometry.descriptor.pack_into(
            self._view, at + 8, push.lineage, *push[2:11], *push[12:], stamp, shard, *reads
        )
        fence()
        self.words[at // 8] = stamp

    def descriptor(self, worker: int, slot: int, stamp: int) -> tuple[ev.Push, int] | None:
        """What was published under ``stamp``, or None if it is being rewritten."""
        at = self._slots[worker][slot]
        values = self.geometry.descriptor.unpack_from(self._view, at + 8)
        fence()
        if values[12] != stamp or self.words[at // 8] != stamp:
            return None
        reads = tuple(zip(values[14::2], values[15::2], strict=True))
        push = ev.Push._make((values[0], worker, *values[1:10], reads, *values[10:12]))
        return push, values[13]

    def answer(self, worker: int, slot: int, shard: int, answer: Answer) -> None:
        """Answer a stamp; the stamp is written last."""
        at = self._answers[worker][slot][shard]
        reason = answer.reason.encode()[: _REASON_BYTES - 2]
        self.geometry.answer.pack_into(
            self._view, at, self.words[at // 8], answer.stamp, answer.next,
            _CODES[answer.outcome], reason,
        )  # fmt: skip
        fence()
        self.words[at // 8] = answer.stamp

    def answered(self, worker: int, slot: int, shard: int) -> int:
        """The newest stamp of the slot that the shard has answered."""
        return self.words[self._answers[worker][slot][shard] // 8]

    def read_answer(self, worker: int, slot: int, shard: int) -> Answer:
        """The shard's newest answer to the slot."""
        at = self._answers[worker][slot][shard]
        fence()
        _, stamp, standing, code, reason = self.geometry.answer.unpack_from(self._view, at)
        text = reason.decode(errors="replace") if reason else ""
        return Answer(stamp, _OUTCOMES[code], standing, text)


def arena_of(
    directory: Path, layout: Layout, ranges: tuple[KeyRange, ...], workers: int, in_flight: int,
    *, workers_max: int = 0, push_bytes: int = 0, create: bool = False,
) -> Arena:  # fmt: skip
    """The run's arena; one slot more than pushes may be in flight, to compute into."""
    geometry = Geometry(layout, len(ranges), workers, in_flight + 1, push_bytes, workers_max)
    return Arena(directory / Arena.FILE, geometry, create=create)
