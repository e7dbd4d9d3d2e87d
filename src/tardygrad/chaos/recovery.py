"""How long until what a fault disturbed went on: one clock, the records of the run itself.

Theory of operation. Each fault opens *questions*, and a record or an event of the run answers them:

====================  =========================================================================
question              answered by
====================  =========================================================================
``others``            on every shard a booked update of another worker (at once, if all is well)
``replacement``       a booked update of the worker's slot in a session that came after
``shard``             a booked update on the shard whose server was killed
``leases``            a booked update under a lease that was granted after
``checkpoint``        a checkpoint that became visible after
====================  =========================================================================

Seconds count from the fault, or from its end where it has one and the question is about what comes
after it (``replacement`` of a stopped worker, ``checkpoint``). A question that the end of the run
leaves open is *open*; that is a finding only if there was time to answer it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tardygrad.protocol import trace
from tardygrad.protocol.trace import Record

QUESTIONS = {
    "kill": ("others", "replacement"),
    "stop": ("others", "replacement"),
    "slow": ("others",),
    "server": ("shard",),
    "backup": ("others",),
    "scheduler": ("leases",),
    "disk": ("checkpoint",),
}
_AFTER_ITS_END = {("stop", "replacement"), ("disk", "checkpoint")}


@dataclass
class Fault:
    """What was done: ``whom`` by name (``worker-0``), ``at_s`` to ``until_s`` in the run's time."""

    number: int
    kind: str
    whom: str
    at_s: float
    until_s: float

    @property
    def id(self) -> int:
        """The number in its name; -1 where it has none."""
        number = self.whom.rpartition("-")[2]
        return int(number) if number.isdigit() else -1


class Recovery(NamedTuple):
    """A question answered."""

    fault: int
    kind: str
    whom: str
    question: str
    seconds: float


@dataclass
class _Open:
    fault: Fault
    question: str
    session: int
    fence: int
    lacking: set[int] = field(default_factory=set)


class Recoveries:
    """Asks, and finds the answers in what the run writes."""

    def __init__(self, shards: int) -> None:
        self._shards = shards
        self._sessions: dict[int, int] = {}
        self._fence = 0
        self._open: list[_Open] = []
        self.found: list[Recovery] = []

    def began(self, fault: Fault) -> None:
        """A fault has happened; every record before it has been told."""
        session = self._sessions.get(fault.id, 0)
        for question in QUESTIONS[fault.kind]:
            lacking = set(range(self._shards)) if question == "others" else set()
            self._open.append(_Open(fault, question, session, self._fence, lacking))

    def record(self, shard: int, record: Record, at_s: float) -> None:
        """A shard's trace got a record."""
        if record.kind not in trace.BOOKED:
            return
        answered = [o for o in self._open if self._is_answer(o, shard, record, at_s)]
        self._answer(answered, at_s)
        worker = record.worker
        self._sessions[worker] = max(self._sessions.get(worker, 0), record.session)
        self._fence = max(self._fence, record.fence)

    def event(self, event: Mapping[str, Any]) -> None:
        """The run has told something."""
        if event.get("event") == "checkpoint":
            at_s = float(event["time_s"])
            wanted = [o for o in self._open if o.question == "checkpoint"]
            self._answer([o for o in wanted if at_s > o.fault.until_s], at_s)

    def _is_answer(self, asked: _Open, shard: int, record: Record, at_s: float) -> bool:
        fault = asked.fault
        if asked.question == "others":
            if record.worker != fault.id or fault.kind == "backup":
                asked.lacking.discard(shard)
            return not asked.lacking
        if asked.question == "replacement":
            back = fault.kind == "stop" and at_s > fault.until_s
            return record.worker == fault.id and (back or record.session > asked.session)
        if asked.question == "shard":
            return shard == fault.id
        return asked.question == "leases" and record.fence > asked.fence

    def _answer(self, answered: Sequence[_Open], at_s: float) -> None:
        for asked in answered:
            self._open.remove(asked)
            fault = asked.fault
            ends = (fault.kind, asked.question) in _AFTER_ITS_END
            since = min(fault.until_s, at_s) if ends else fault.at_s
            self.found.append(
                Recovery(fault.number, fault.kind, fault.whom, asked.question, at_s - since)
            )

    def open(self, before_s: float = math.inf) -> Iterator[tuple[Fault, str]]:
        """Questions without an answer, of faults that were over before a moment."""
        for asked in self._open:
            if asked.fault.until_s < before_s:
                yield asked.fault, asked.question


def quantile(values: Sequence[float], part: float) -> float:
    """The smallest value that at least ``part`` of them do not exceed (nearest rank).

    >>> quantile([3.0, 1.0, 2.0], 0.5)
    2.0
    """
    ordered = sorted(values)
    return ordered[max(math.ceil(part * len(ordered)), 1) - 1]


def table(found: Iterable[Recovery]) -> list[dict[str, Any]]:
    """For each kind and question how often it was answered, and p50, p99 and maximum in seconds."""
    seconds: dict[tuple[str, str], list[float]] = {}
    for recovery in found:
        seconds.setdefault((recovery.kind, recovery.question), []).append(recovery.seconds)
    return [
        {
            "kind": kind,
            "question": question,
            "count": len(values),
            "p50_s": quantile(values, 0.5),
            "p99_s": quantile(values, 0.99),
            "max_s": max(values),
        }
        for (kind, question), values in sorted(seconds.items())
    ]
