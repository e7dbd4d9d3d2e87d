"""Averaged buffers: whose count, and that a snapshot keeps that too."""

from __future__ import annotations

import torch

from tardygrad.engines.shard_host import BufferTable


def test_the_mean_is_over_the_newest_of_each() -> None:
    table = BufferTable(torch.zeros(2))
    assert torch.equal(table.mean(), torch.zeros(2))
    table.put(3, torch.tensor([1.0, 2.0]))
    assert torch.equal(table.mean(), torch.tensor([1.0, 2.0]))
    table.put(0, torch.tensor([5.0, 5.0]))
    table.put(3, torch.tensor([3.0, 3.0]))
    assert torch.equal(table.mean(), torch.tensor([4.0, 4.0]))


def test_workers_that_are_gone_are_forgotten_and_slow_ones_are_not() -> None:
    table, again = BufferTable(torch.zeros(1)), BufferTable(torch.zeros(1))
    table.put(1, torch.tensor([100.0]))
    for number in range(2 * BufferTable.GONE_AFTER):
        assert float(table.mean()) != 1.0
        if number == BufferTable.GONE_AFTER:
            again.load_state(table.state())
        table.put(0, torch.tensor([1.0]))
        if number >= BufferTable.GONE_AFTER:
            again.put(0, torch.tensor([1.0]))
        assert number < BufferTable.GONE_AFTER or torch.equal(table.mean(), again.mean())
    table.put(0, torch.tensor([1.0]))
    again.put(0, torch.tensor([1.0]))
    assert float(table.mean()) == float(again.mean()) == 1.0
