"""The scheduler's machine and its journal, in whatever process.

Each entry is written before the machine handles it. Every so many entries the machine's state
becomes the journal's new base, so the journal does not grow without bound, and whoever takes it up
handles little more than so many entries again. A base says nothing of the effects that led to it,
so it is written only when those were carried out; the entries since then follow it.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import msgpack

from tardygrad.engines import wire
from tardygrad.engines.base import Job
from tardygrad.protocol import effects as ef
from tardygrad.protocol import journal
from tardygrad.protocol.membership import READY

_FORMAT = 1


class JournalPlace(Protocol):
    """Where a journal's bytes are kept."""

    def read(self) -> bytes:
        """All of them."""
        ...

    def cut(self, size: int) -> None:
        """Leave only the first ``size`` bytes."""
        ...

    def append(self, data: bytes) -> None:
        """Add some at the end."""
        ...

    def replace(self, data: bytes) -> None:
        """Begin anew with ``data``, or leave everything as it is."""
        ...


class Answer(NamedTuple):
    """What the machine asks for in answer to an entry."""

    number: int
    event: Any
    effects: list[ef.Effect]


class SchedulerHost:
    """The machine as its journal has it.

    ``machine`` is the scheduler; ``number`` the newest entry that it has handled; ``base`` the one
    that the journal's base has; ``cut`` how many bytes of the journal were torn or damaged.

    Args:
        job: the run. A journal of an earlier stretch of it is none.
        place: where the journal is.
        base_every: after so many entries there is a new base.
        start_s: replaces the configuration's.

    Raises:
        StorageError: the journal cannot be read or written.
    """

    def __init__(
        self, job: Job, place: JournalPlace, base_every: int, start_s: float | None = None
    ) -> None:
        self._place, self._base_every = place, base_every
        self._job = f"{job.run} {job.lineage}"
        self.machine = job.scheduler(start_s)
        self.number = self.base = self.cut = 0
        # A base that waits until its effects are carried out, and the records after it.
        self._next: tuple[int, bytes] | None = None
        self._after = b""

    def take_up(self, done: int) -> list[Answer]:
        """Read the journal and handle its entries again; what is torn or damaged is cut off.

        Args:
            done: the newest entry whose effects were carried out.

        Returns:
            The answers after that.

        Raises:
            StorageError: the journal cannot be read or written.
        """
        data = self._place.read()
        records = journal.scan(data)
        end = self._take_base(next(records, (b"", 0)))
        if not end:
            self.cut = len(data)
            self._write_base(0, b"")
            return []
        answers = []
        for payload, after in records:
            entry = wire.decode_entry(payload)
            if entry is None or entry.number != self.number + 1:
                break
            answers.append(self._handle(entry))
            end = after
        if end < len(data):
            self.cut = len(data) - end
            self._place.cut(end)
        return [answer for answer in answers if answer.number > done]

    def handle(self, data: bytes) -> tuple[list[Answer], int]:
        """Write down the whole records at the beginning of ``data``, and handle their entries.

        Returns:
            The answers, and where the records end.

        Raises:
            StorageError: the journal cannot be written.
        """
        records = list(journal.scan(data))
        if not records:
            return [], 0
        end = records[-1][1]
        self._place.append(data[:end])
        self._after += data[:end]
        entries = [entry for payload, _ in records if (entry := wire.decode_entry(payload))]
        answers = [self._handle(entry) for entry in entries]
        self._look_at_base(max((entry.done for entry in entries), default=0))
        return answers, end

    def _handle(self, entry: wire.Entry) -> Answer:
        self.number = entry.number
        return Answer(entry.number, entry.event, self.machine.handle(entry.event, entry.now))

    # --- bases --------------------------------------------------------------------------------

    def _look_at_base(self, done: int) -> None:
        if self._next is None:
            if self.number - self.base >= self._base_every:
                self._next = (self.number, journal.freeze(self.machine))
            self._after = b""
        elif done >= self._next[0]:
            self._write_base(*self._next)
            self._next = None

    def _write_base(self, number: int, state: bytes) -> None:
        base = msgpack.packb((_FORMAT, self._job, number, state))
        self._place.replace(journal.record(base) + self._after)
        self.base = number

    def _take_base(self, first: tuple[bytes, int]) -> int:
        """Where the base ends in the journal; 0 if there is none of this run."""
        try:
            version, job, number, state = msgpack.unpackb(first[0])
            if (version, job) != (_FORMAT, self._job):
                return 0
            self.machine = journal.thaw(self.machine.settings, state)
        except (ValueError, TypeError, msgpack.UnpackException):
            return 0
        self.number = self.base = number
        return first[1]

    @property
    def waiting(self) -> list[int]:
        """The workers that are there and have nothing to do."""
        machine = self.machine
        return [
            entry.worker
            for entry in machine.workers
            if entry.state == READY and not machine.book.holds_lease(entry.worker)
        ]
