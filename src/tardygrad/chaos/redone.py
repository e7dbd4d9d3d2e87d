"""Work that was done again: which fragment's batches, and why; from the traces alone.

Theory of operation. A *computation* is one push, named by its worker, session and number; each
shard's trace says what became of it there. A batch that more than one computation covers was
computed again, and what became of the one before says why. What a worker had computed and not
published when it died leaves no record anywhere, so it is not counted: for each death that is at
most what the worker had in hand.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tardygrad.protocol import trace
from tardygrad.protocol.trace import Record

_SEEN = (*trace.BOOKED, trace.DUPLICATE, trace.REFUSED)


class Redone(NamedTuple):
    """Batches ``[first, stop)`` of a fragment, computed ``times`` more than once, and why."""

    epoch: int
    fragment: int
    first: int
    stop: int
    times: int
    why: str


class Computation(NamedTuple):
    """One push, in the order of the leases that it was computed under."""

    fence: int
    session: int
    seq: int
    worker: int


@dataclass
class _Fates:
    """What became of a computation on each shard."""

    booked: set[int] = field(default_factory=set)
    rolled_back: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    duplicate: set[int] = field(default_factory=set)


def redone(traces: Sequence[Sequence[Record]]) -> tuple[int, list[Redone]]:
    """How many batches were computed at all, counted as often as they were, and those done again.

    Args:
        traces: each shard's records, oldest first.

    Returns:
        The number of batches that any shard saw computed, and the items in the order of their
        place.
    """
    fates: dict[Computation, _Fates] = defaultdict(_Fates)
    covering: dict[tuple[int, int, int], set[Computation]] = defaultdict(set)
    for shard, records in enumerate(traces):
        surviving = {id(record) for record in trace.surviving(list(records))}
        for record in records:
            if record.kind not in _SEEN:
                continue
            named = Computation(record.fence, record.session, record.seq, record.worker)
            _note(fates[named], shard, record, survives=id(record) in surviving)
            for batch in range(record.first, record.stop):
                covering[record.epoch, record.fragment, batch].add(named)
    reasons: dict[tuple[int, int, str], Counter[int]] = defaultdict(Counter)
    for (epoch, fragment, batch), found in covering.items():
        for before in sorted(found)[:-1]:
            why = _why(before.worker, fates[before], len(traces))
            reasons[epoch, fragment, why][batch] += 1
    computed = sum(map(len, covering.values()))
    return computed, sorted(
        item for place, counts in reasons.items() for item in _runs(place, counts)
    )


def _note(fate: _Fates, shard: int, record: Record, *, survives: bool) -> None:
    if record.kind == trace.REFUSED:
        fate.refused.add(shard)
    elif record.kind == trace.DUPLICATE:
        fate.duplicate.add(shard)
    elif survives:
        fate.booked.add(shard)
    else:
        fate.rolled_back.add(shard)


def _why(worker: int, fate: _Fates, shards: int) -> str:
    """Why what became of a computation was not enough."""
    if fate.rolled_back:
        lost = ", ".join(map(str, sorted(fate.rolled_back)))
        return f"shard {lost} went back to a snapshot that lacked it"
    if fate.refused:
        return f"worker {worker}'s lease or session had ended when it came"
    if len(fate.booked | fate.duplicate) < shards:
        return f"worker {worker} was lost before every shard had it"
    return "its fragment was leased again from an earlier batch"


def _runs(place: tuple[int, int, str], counts: Counter[int]) -> list[Redone]:
    """Neighbours that were done again equally often, as one item."""
    epoch, fragment, why = place
    items: list[Redone] = []
    for batch in sorted(counts):
        times = counts[batch]
        if items and items[-1].stop == batch and items[-1].times == times:
            items[-1] = items[-1]._replace(stop=batch + 1)
        else:
            items.append(Redone(epoch, fragment, batch, batch + 1, times, why))
    return items


def by_reason(items: Sequence[Redone]) -> dict[str, int]:
    """Batches done again for each reason, the commonest first."""
    counts: Counter[str] = Counter()
    for item in items:
        counts[item.why] += (item.stop - item.first) * item.times
    return dict(counts.most_common())
