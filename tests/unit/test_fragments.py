"""Fragments: every sample exactly once an epoch, by arithmetic that all processes share."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tardygrad.data.fragments import FragmentPlan, Permutations

plans = st.builds(
    FragmentPlan,
    samples=st.integers(1, 300),
    batch_size=st.integers(1, 40),
    fragment_batches=st.integers(1, 12),
    seed=st.integers(0, 2**63 - 1),
)


def all_batches(plan: FragmentPlan) -> list[tuple[int, int]]:
    return [(f, b) for f in range(plan.fragments_per_epoch) for b in range(plan.batches(f))]


@given(plans, st.integers(0, 1000))
def test_every_sample_exactly_once_an_epoch(plan: FragmentPlan, epoch: int) -> None:
    permutations = Permutations(plan)
    seen = [permutations.indices(epoch, f, b) for f, b in all_batches(plan)]
    assert len(seen) == plan.batches_per_epoch
    assert all(len(indices) == plan.batch_size for indices in seen[:-1])
    assert 1 <= len(seen[-1]) <= plan.batch_size
    order = np.concatenate(seen)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(plan.samples))


@given(plans, st.integers(0, 5))
def test_counts_and_positions_agree_with_the_batches(plan: FragmentPlan, epoch: int) -> None:
    permutations = Permutations(plan)
    position = epoch * plan.samples
    for fragment in range(plan.fragments_per_epoch):
        first = position
        for batch in range(plan.batches(fragment)):
            assert plan.position(epoch, fragment, batch) == position
            position += len(permutations.indices(epoch, fragment, batch))
            assert plan.samples_in(fragment, 0, batch + 1) == position - first
        assert plan.position(epoch, fragment, plan.batches(fragment)) == position
        assert plan.samples_in(fragment, 0, 0) == 0
    assert position == (epoch + 1) * plan.samples


def test_a_short_last_batch_in_a_short_last_fragment() -> None:
    plan = FragmentPlan(samples=100, batch_size=8, fragment_batches=4, seed=0)
    assert (plan.batches_per_epoch, plan.fragments_per_epoch) == (13, 4)
    assert [plan.batches(fragment) for fragment in range(4)] == [4, 4, 4, 1]
    assert plan.samples_in(2, 1, 4) == 24
    assert plan.samples_in(3, 0, 1) == 4


def test_the_permutation_is_fixed_by_seed_and_epoch_for_all_time() -> None:
    """A run may be resumed by another numpy: these numbers must never change."""
    permutations = Permutations(FragmentPlan(samples=10, batch_size=10, fragment_batches=1, seed=7))
    assert permutations.indices(0, 0, 0).tolist() == [6, 3, 4, 9, 0, 2, 8, 7, 5, 1]
    assert permutations.indices(3, 0, 0).tolist() == [2, 4, 7, 3, 5, 1, 8, 9, 0, 6]


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        plan = FragmentPlan(samples=50, batch_size=50, fragment_batches=1, seed=seed)
        return Permutations(plan).indices(epoch, 0, 0).tolist()

    orders = [order(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len({tuple(o) for o in orders}) == 9


class CountingPermutations(Permutations):
    def __init__(self, plan: FragmentPlan) -> None:
        super().__init__(plan)
        self.made: list[int] = []

    def _make(self, epoch: int) -> np.ndarray:
        self.made.append(epoch)
        return super()._make(epoch)


def test_the_last_two_epochs_used_are_kept() -> None:
    permutations = CountingPermutations(
        FragmentPlan(samples=9, batch_size=3, fragment_batches=1, seed=0)
    )
    for epoch in (0, 0, 1, 0, 1, 0, 2, 0, 2, 1):
        permutations.indices(epoch, 1, 0)
    assert permutations.made == [0, 1, 2, 1]


def test_indices_belong_to_the_caller() -> None:
    permutations = Permutations(FragmentPlan(samples=4, batch_size=4, fragment_batches=1, seed=0))
    permutations.indices(0, 0, 0)[:] = -1
    assert sorted(permutations.indices(0, 0, 0).tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["samples", "batch_size", "fragment_batches"])
def test_counts_below_one_are_refused(name: str) -> None:
    counts = {"samples": 5, "batch_size": 2, "fragment_batches": 1} | {name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        FragmentPlan(**counts, seed=0)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        FragmentPlan(samples=5, batch_size=2, fragment_batches=1, seed=-1)


@pytest.mark.parametrize(
    ("epoch", "fragment", "batch"), [(0, 2, 0), (0, -1, 0), (0, 0, 2), (0, 1, 1), (-1, 0, 0)]
)
def test_work_that_does_not_exist_is_refused(epoch: int, fragment: int, batch: int) -> None:
    plan = FragmentPlan(samples=5, batch_size=2, fragment_batches=2, seed=0)  # batches 2, 1
    with pytest.raises(ValueError, match=f"fragment {fragment}|epoch {epoch}"):
        Permutations(plan).indices(epoch, fragment, batch)


def test_ranges_of_batches_that_do_not_exist_are_refused() -> None:
    plan = FragmentPlan(samples=5, batch_size=2, fragment_batches=2, seed=0)
    for first, stop in ((0, 3), (2, 1), (-1, 1)):
        with pytest.raises(ValueError, match="fragment 0 has batches 0 to 1"):
            plan.samples_in(0, first, stop)
