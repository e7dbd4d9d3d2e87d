"""What a group makes of its updates: in a ring of processes, in one process, and by hand."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tardygrad.engines import sums
from tardygrad.engines.gloo import Rehearsal, Ring, require
from tardygrad.errors import UsageError
from tardygrad.protocol.events import Group

SIZE = 207


def updates(ranks: int) -> tuple[list[torch.Tensor], list[int]]:
    generator = torch.Generator().manual_seed(ranks)
    samples = [8] * (ranks - 1) + [3]
    return [torch.randn(SIZE, generator=generator) for _ in range(ranks)], samples


def test_the_mean_is_weighted_by_samples() -> None:
    found = sums.mean([torch.tensor([1.0, 0.0]), torch.tensor([4.0, 8.0])], [1, 3])
    assert found.tolist() == [3.25, 6.0]


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_a_rehearsal_is_what_every_rank_came_to(ranks: int, tmp_path: Path) -> None:
    terms, samples = updates(ranks)
    rings = [Ring(tmp_path, Group(1, rank, ranks), SIZE, 30.0) for rank in range(ranks)]
    assert all(ring.complete() for ring in rings)
    with ThreadPoolExecutor(ranks) as threads:
        assert list(threads.map(Ring.connect, rings)) == [""] * ranks
        found = [term.clone() for term in terms]
        assert list(threads.map(Ring.average, rings, found, samples)) == [""] * ranks
    rehearsal = Rehearsal(ranks, SIZE)
    for _ in range(2):
        expected = rehearsal.mean(terms, samples)
        assert all(torch.equal(one, expected) for one in found)
    by_hand = sums.mean(terms, samples)
    assert torch.allclose(expected, by_hand, atol=1e-6)
    if ranks == 2:
        assert torch.equal(expected, by_hand)


def test_who_closes_its_connections_frees_those_that_wait(tmp_path: Path) -> None:
    rings = [Ring(tmp_path, Group(1, rank, 2), SIZE, 30.0) for rank in range(2)]
    (one, _), samples = updates(2)
    before = one.clone()
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(Ring.connect, rings))
        waiting = threads.submit(rings[0].average, one, samples[0])
        del rings[1]
        assert "peer" in waiting.result(timeout=60.0)
    assert torch.equal(one, before)


def test_without_gloo_another_method_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require("all_reduce")
    monkeypatch.setattr(torch.distributed, "is_gloo_available", lambda: False)
    with pytest.raises(UsageError, match="take sync_sgd"):
        require("all_reduce")


def test_a_ring_is_complete_when_all_are_there(tmp_path: Path) -> None:
    ring = Ring(tmp_path, Group(1, 0, 2), SIZE, 30.0)
    assert not ring.complete()
    Ring(tmp_path, Group(1, 1, 2), SIZE, 30.0)
    assert ring.complete()


def test_who_dies_before_it_connects_is_waited_for_a_short_time(tmp_path: Path) -> None:
    ring = Ring(tmp_path, Group(1, 0, 2), SIZE, 0.1)
    Ring(tmp_path, Group(1, 1, 2), SIZE, 0.1)
    assert ring.complete() and ring.connect()


def test_a_group_that_has_connected_removes_the_folders_before_it(tmp_path: Path) -> None:
    for generation in (1, 2):
        rings = [Ring(tmp_path, Group(generation, rank, 2), SIZE, 30.0) for rank in range(2)]
        with ThreadPoolExecutor(2) as threads:
            assert list(threads.map(Ring.connect, rings)) == [""] * 2
    assert [folder.name for folder in tmp_path.iterdir()] == ["group-2"]
