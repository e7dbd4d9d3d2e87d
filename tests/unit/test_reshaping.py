"""Shards split and joined: nothing of an element is lost, and what does not join is told."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tardygrad.data.fragments import FragmentPlan
from tardygrad.engines.base import Snapshot
from tardygrad.errors import CheckpointError
from tardygrad.layout import KeyRange, Layout, partition
from tardygrad.protocol.ledger import Ledger
from tardygrad.reshaping import joined

PLAN = FragmentPlan(samples=40, batch_size=4, fragment_batches=2, seed=0)
SIZE = 160
LAYOUT = Layout.of([("w", (SIZE,), "float32")])


def books(*, booked: int = 3, dropped: int = 0, fence: int = 5) -> dict[str, Any]:
    """The ledger of a shard that has booked the first fragments of an epoch."""
    ledger = Ledger(PLAN)
    for fragment in range(booked):
        stop = PLAN.batches(fragment)
        samples = PLAN.samples_in(fragment, 0, stop)
        applied = fragment >= dropped
        ledger.book(0, fragment, stop, samples, fence, applied=applied)
    return ledger.state()


def snapshot(key_range: KeyRange, version: int = 7, **changes: Any) -> Snapshot:
    elements = torch.arange(key_range.start, key_range.stop, dtype=torch.float32)
    tensors = {
        "parameters": elements.clone(),
        "rule.exp_avg": -elements,
        "rule.row.3": elements * 2,
        "rule.past": torch.stack([elements + n for n in range(3)]),
        "rule.step": torch.tensor(float(version)),
    }
    if key_range.start == 0:
        tensors["buffers.0"] = torch.ones(4)
    state = {"version": version, "rule": "adam", "ledger": books(), **changes}
    return Snapshot(12, tensors, state)


def shape(cuts: list[int]) -> list[KeyRange]:
    borders = [0, *sorted({16 * cut for cut in cuts}), SIZE]
    return [KeyRange(a, b) for a, b in itertools.pairwise(borders)]


SHAPES = st.lists(st.integers(1, SIZE // 16 - 1), max_size=5).map(shape)


@given(before=SHAPES, after=SHAPES)
def test_there_and_back_is_the_same(before: list[KeyRange], after: list[KeyRange]) -> None:
    old = [snapshot(r) for r in before]
    there = joined(old, before, after, PLAN)
    assert there.anew == ""
    for key_range, (tensors, state) in zip(after, there.snapshots, strict=True):
        wanted = snapshot(key_range)
        assert tensors.keys() == wanted.tensors.keys()
        assert all(torch.equal(tensors[name], wanted.tensors[name]) for name in tensors)
        assert state == wanted.state
    between = [Snapshot(12, *made) for made in there.snapshots]
    back = joined(between, after, before, PLAN)
    for one, (tensors, state) in zip(old, back.snapshots, strict=True):
        assert all(torch.equal(tensors[name], one.tensors[name]) for name in one.tensors)
        assert state == one.state


TWO, ONE, FOUR = (list(partition(LAYOUT, servers)) for servers in (2, 1, 4))


def test_numbers_are_those_of_the_newest_version() -> None:
    old = [snapshot(TWO[0], 7), snapshot(TWO[1], 9)]
    [(tensors, state)] = joined(old, TWO, ONE, PLAN).snapshots
    assert state["version"] == 9
    assert tensors["rule.step"] == 9.0


def test_of_past_versions_the_newest_that_all_have() -> None:
    old = [snapshot(r) for r in TWO]
    old[1].tensors["rule.past"] = old[1].tensors["rule.past"][1:]
    [(tensors, _)] = joined(old, TWO, ONE, PLAN).snapshots
    assert tensors["rule.past"].shape == (2, SIZE)
    assert torch.equal(tensors["rule.past"][-1], torch.arange(SIZE) + 2.0)


def test_what_does_not_join_begins_anew_on_all_shards() -> None:
    old = [snapshot(r) for r in TWO]
    old[1].tensors["rule.row.4"] = torch.zeros(TWO[1].size)
    made = joined(old, TWO, ONE, PLAN)
    assert made.anew == "of shards 0 and 1 only one has rule.row.4"
    [(tensors, state)] = made.snapshots
    assert sorted(tensors) == ["buffers.0", "parameters"] and state["rule"] == ""
    del old[1].tensors["rule.row.4"]
    for shard in (0, 1):
        old[shard].tensors["rule.ages"] = torch.tensor([[3, shard]])
    assert joined(old, TWO, ONE, PLAN).anew == "rule.ages is not the same on shards 0 and 1"
    # Where each new shard lies in one old one, each keeps what it has.
    made = joined(old, TWO, FOUR, PLAN)
    assert made.anew == ""
    assert [int(t["rule.ages"][0, 1]) for t, _ in made.snapshots] == [0, 0, 1, 1]


def test_only_equal_books_are_joined() -> None:
    old = [snapshot(TWO[0]), snapshot(TWO[1], ledger=books(booked=2))]
    with pytest.raises(CheckpointError, match=r"shards 0 and 1 have not booked .*servers=2"):
        joined(old, TWO, ONE, PLAN)
    made = joined(old, TWO, FOUR, PLAN)
    assert [len(s["ledger"]["entries"]) for _, s in made.snapshots] == [3, 3, 2, 2]


def test_joined_books_have_the_highest_fences_and_whatever_was_dropped() -> None:
    one, other = books(dropped=1, fence=5), books(dropped=2, fence=9)
    other["entries"].append([0, 4, 0, 11])  # fenced, and nothing of it booked
    old = [snapshot(TWO[0], ledger=one), snapshot(TWO[1], ledger=other)]
    [(_, state)] = joined(old, TWO, ONE, PLAN).snapshots
    ledger = Ledger.from_state(PLAN, state["ledger"])
    assert [ledger.fence(0, fragment) for fragment in range(5)] == [9, 9, 9, 0, 11]
    assert ledger.consumed == one["consumed"]
    assert state["ledger"]["dropped"] == [(0, 16)] and state["ledger"]["applied"] == [(0, 8)]


def open_round(gathered: int, **changes: Any) -> dict[str, Any]:
    state = {"gathered": gathered, "gatherers": 1, "samples": 8, "weight": 8.0, "consumed": 16}
    return {**state, "of": "x", **changes}


def test_open_rounds_are_joined_if_they_are_the_same() -> None:
    old = [snapshot(r, round=open_round(2)) for r in TWO]
    for one, key_range in zip(old, TWO, strict=True):
        one.tensors["round.mean"] = torch.arange(key_range.start, key_range.stop)
        one.tensors["round.weight"] = torch.tensor(8.0, dtype=torch.float64)
    [(tensors, state)] = joined(old, TWO, ONE, PLAN).snapshots
    assert torch.equal(tensors["round.mean"], torch.arange(SIZE))
    assert state["round"] == open_round(2)
    old[1].state["round"] = open_round(1)
    with pytest.raises(CheckpointError, match="have not booked the same"):
        joined(old, TWO, ONE, PLAN)
    old[1].state["round"] = open_round(2)
    old[1].tensors["rule.more"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match="a round is open"):
        joined(old, TWO, ONE, PLAN)


def test_rounds_that_are_closed_may_have_begun_at_different_times() -> None:
    old = [snapshot(r, round=open_round(0, consumed=n)) for n, r in enumerate(TWO)]
    assert len(joined(old, TWO, ONE, PLAN).snapshots) == 1
