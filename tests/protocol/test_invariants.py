"""The auditor and the account: each broken promise is noticed, and named."""

from __future__ import annotations

from typing import Any

import pytest

from tardygrad.data.fragments import FragmentPlan
from tardygrad.errors import InvariantViolation
from tardygrad.protocol import trace
from tardygrad.protocol.invariants import Auditor, Row, account
from tardygrad.protocol.trace import Record

# Two fragments of two batches; the last batch has 2 samples.
PLAN = FragmentPlan(samples=14, batch_size=4, fragment_batches=2, seed=0)


def record(version: int, fragment: int, first: int, **changes: Any) -> Record:
    made = Record(
        trace.APPLIED, 0, version, worker=1, session=1, seq=version, fence=5, epoch=0,
        fragment=fragment, first=first, stop=first + 1,
        samples=PLAN.samples_in(fragment, first, first + 1), reads=((0, version - 1),),
    )  # fmt: skip
    return made._replace(**changes)


def whole_epoch(epoch: int = 0, version: int = 1) -> list[Record]:
    places = [(0, 0), (0, 1), (1, 0), (1, 1)]
    return [record(version + i, *place, epoch=epoch) for i, place in enumerate(places)]


def audit(*records: Record, limit: int | None = None) -> Auditor:
    auditor = Auditor(PLAN, 1, limit=limit)
    for line in records:
        auditor.feed(0, line)
    return auditor


def test_a_whole_epoch_passes() -> None:
    audit(*whole_epoch()).finished(1)


def test_what_was_refused_or_known_does_not_count() -> None:
    refused = record(0, 0, 0, kind=trace.REFUSED)
    known = record(1, 0, 0, kind=trace.DUPLICATE)
    audit(refused, whole_epoch()[0], known, *whole_epoch()[1:]).finished(1)


def test_a_drop_counts_without_a_version() -> None:
    dropped = record(0, 0, 0, kind=trace.DROPPED)
    rest = [record(v, *p) for v, p in enumerate([(0, 1), (1, 0), (1, 1)], 1)]
    audit(dropped, *rest).finished(1)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"version": 3}, "version 2 is next"),
        ({"reads": ((1, 1),)}, "computed from another life"),
        ({"reads": ((0, 0),)}, "its staleness is 1"),
        ({"reads": ((0, 2),)}, "its staleness is -1"),
        ({"first": 0}, "batch 1 of the fragment is next"),
        ({"fragment": 1, "first": 1, "stop": 2}, "batch 0 of the fragment is next"),
        ({"stop": 1}, "batch 1 of the fragment is next"),
        ({"samples": 3}, "these are 4 samples"),
        ({"fence": 4}, "fence 5 was seen before"),
        ({"incarnation": 1}, "the shard is at incarnation 0"),
        ({"kind": trace.DROPPED}, "a drop moved the version"),
        ({"kind": trace.RESTORED, "incarnation": 0}, "incarnation 0 was there before"),
        ({"kind": trace.RESTORED, "incarnation": 1, "seq": 4}, "that snapshot was never taken"),
        ({"kind": trace.RESTORED, "incarnation": 1, "seq": 0}, "the snapshot was of v0"),
    ],
)
def test_a_record_that_contradicts_the_history_is_named(changes: dict[str, Any], what: str) -> None:
    second = record(2, 0, 1)
    audit(record(1, 0, 0), second)
    with pytest.raises(InvariantViolation, match=what):
        audit(record(1, 0, 0), second._replace(**changes))


def test_the_cut_off_holds_for_what_is_applied() -> None:
    stale = record(3, 1, 0, reads=((0, 0),), staleness=2)
    lines = [record(1, 0, 0), record(2, 0, 1)]
    audit(*lines, stale, limit=3)
    with pytest.raises(InvariantViolation, match="cut off at 2"):
        audit(*lines, stale, limit=2)


def test_what_is_missing_at_the_end_is_named() -> None:
    with pytest.raises(InvariantViolation, match="epoch 0, fragment 1 stands at batch 1 of 2"):
        audit(*whole_epoch()[:-1]).finished(1)


def restored(step: int, version: int, incarnation: int = 1) -> Record:
    return Record(trace.RESTORED, incarnation, version, seq=step)


def test_a_restoration_goes_back_to_the_snapshot() -> None:
    lines = whole_epoch()
    saved = Record(trace.SNAPSHOT, 0, 2, seq=3)
    again = [r._replace(incarnation=1, reads=((1, r.version - 1),)) for r in lines[2:]]
    audit(*lines[:2], saved, *lines[2:], restored(3, 2), *again).finished(1)
    with pytest.raises(InvariantViolation, match="version 3 is next"):
        audit(*lines[:2], saved, *lines[2:], restored(3, 2), again[1])


def test_a_resumed_run_begins_with_a_snapshot_from_before() -> None:
    auditor = Auditor(PLAN, 1)
    auditor.adopt(0, 9, 2, {(0, 0): 2})
    auditor.feed(0, restored(9, 2, incarnation=1024))
    for version, batch in ((3, 0), (4, 1)):
        line = record(version, 1, batch, incarnation=1024, reads=((1024, version - 1),))
        auditor.feed(0, line)
    auditor.finished(1)


def test_the_account_counts_every_sample() -> None:
    lines = whole_epoch()
    assert account([lines], PLAN, 1) == [Row(0, 0, 14, 0, 0, 0, True)]
    dropped = [*lines[:3], lines[3]._replace(kind=trace.DROPPED)]
    assert account([dropped], PLAN, 1) == [Row(0, 0, 12, 2, 0, 0, True)]
    assert account([lines[:3]], PLAN, 1) == [Row(0, 0, 12, 0, 2, 0, False)]
    assert account([[*lines, lines[0]]], PLAN, 1) == [Row(0, 0, 14, 0, 0, 4, True)]


def test_the_account_leaves_out_what_was_rolled_back_and_what_never_began() -> None:
    lines = whole_epoch()
    saved = Record(trace.SNAPSHOT, 0, 2, seq=3)
    history = [*lines[:2], saved, *lines[2:], restored(3, 2), *lines[2:]]
    late = whole_epoch(epoch=1, version=5)
    rows = account([history, [*lines, *late[:1]]], PLAN, 3)
    assert [(r.epoch, r.shard, r.applied, r.twice, r.complete) for r in rows] == [
        (0, 0, 14, 0, True),
        (0, 1, 14, 0, True),
        (1, 1, 4, 0, False),
    ]
