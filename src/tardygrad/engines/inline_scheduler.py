"""The simulator's scheduler, and its supervisor: deaths by plan, a journal in memory.

Theory of operation. As in a real run, what comes while the scheduler is away waits at the
supervisor, and the one that comes back takes up the journal. Fate decides what a death leaves: the
event at hand may have been written down although nothing came of it any more, and the end of the
journal may be torn, also of what was carried out long ago.

A scheduler that came back must be the one that died: the two states are compared, which no real run
could do. Where no plan kills it, nothing is written down.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np

from tardygrad.engines import wire
from tardygrad.engines.base import Job
from tardygrad.engines.scheduler_host import Answer, SchedulerHost
from tardygrad.errors import InvariantViolation
from tardygrad.protocol import events as ev
from tardygrad.protocol import journal
from tardygrad.simulation_settings import Fault

_BASES = (3, 20, 200)


class MemoryJournal:
    """A journal's bytes."""

    def __init__(self) -> None:
        self.data = b""

    def read(self) -> bytes:
        """All of them."""
        return self.data

    def cut(self, size: int) -> None:
        """Leave only the first ``size`` bytes."""
        self.data = self.data[:size]

    def append(self, data: bytes) -> None:
        """Add some at the end."""
        self.data += data

    def replace(self, data: bytes) -> None:
        """Begin anew with ``data``."""
        self.data = data


class SimulatedScheduler:
    """The scheduler as the simulator's world sees it.

    Args:
        job: the run.
        start_s: replaces the configuration's.
        deaths: the faults that kill it; none: nothing needs to be written down.
    """

    def __init__(self, job: Job, start_s: float | None, deaths: Sequence[Fault]) -> None:
        self._job, self._start_s = job, start_s
        self._rng = np.random.Generator(np.random.PCG64([job.config.seed, 6]))
        self._base_every = _BASES[int(self._rng.integers(len(_BASES)))]
        self._place = MemoryJournal()
        self._entries = journal.Entries()
        self._journaled = bool(deaths)
        self._host = self._made()
        if self._journaled:
            self._host.take_up(0)
        self._lost: SchedulerHost | None = None
        self.up = True

    def _made(self) -> SchedulerHost:
        return SchedulerHost(self._job, self._place, self._base_every, self._start_s)

    @property
    def machine(self) -> Any:
        """The machine, or that of the one that is away."""
        return self._host.machine

    def tell(self, event: ev.Event, now: float) -> list[Answer]:
        """Something has reached the supervisor; what is to be carried out."""
        if not self._journaled:
            return [Answer(0, event, self.machine.handle(event, now))]
        data = self._kept(event, now)
        return self._taken(self._host.handle(data)[0]) if self.up else []

    def _kept(self, event: ev.Event, now: float) -> bytes:
        entries = self._entries
        entry = wire.Entry(entries.number + 1, entries.done, now, event)
        data = journal.record(wire.encode_entry(entry))
        entries.keep(data)
        return data

    def _taken(self, answers: Sequence[Answer]) -> list[Answer]:
        """The answers that were not carried out before, with effects as they come by the wire."""
        self._entries.forget(self._host.base)
        taken = []
        for answer in answers:
            if self._entries.takes(answer.number):
                sent = msgpack.packb(wire.plain_effects(answer.effects))
                effects = wire.made_effects(msgpack.unpackb(sent, use_list=False))
                taken.append(answer._replace(effects=effects))
        return taken

    def dies(self, now: float) -> None:
        """The scheduler's process is killed, perhaps with a tick at hand."""
        self.up = False
        if self._rng.random() < 0.5:
            self._host.handle(self._kept(ev.Tick(), now))
        self._lost = self._host
        records = list(journal.scan(self._place.data))
        if self._rng.random() < 0.5 and len(records) > 1:
            # Never the base, which takes the place of another at once.
            last = int(self._rng.integers(max(len(records) - 20, 0), len(records) - 1))
            torn = int(self._rng.integers(records[last][1], records[last + 1][1]))
            self._place.cut(torn)

    def returns(self) -> list[Answer]:
        """Another scheduler takes up the journal; what is to be carried out."""
        lost, entries = self._lost, self._entries
        assert lost is not None
        self._host = host = self._made()
        answers = host.take_up(entries.done)
        missing = entries.since(host.number)
        if missing is None:
            raise InvariantViolation(f"nobody has the events after number {host.number} any more")
        for data in missing:
            if host.number == lost.number:
                self._compare(lost)
            answers += host.handle(data)[0]
        if host.number == lost.number:
            self._compare(lost)
        self.up, self._lost = True, None
        return self._taken(answers)

    def _compare(self, lost: SchedulerHost) -> None:
        if journal.state_of(self._host.machine) != journal.state_of(lost.machine):
            raise InvariantViolation(
                f"the scheduler came back other than it was after event {lost.number}"
            )
