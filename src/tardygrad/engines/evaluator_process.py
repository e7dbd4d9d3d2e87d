"""The evaluator's process: measures the newest parameters on the test data, beside the workers.

No worker waits for it; where processors are scarce it takes its share of them. It says when it has
nothing to do, and is asked for one measurement at a time.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch

from tardygrad.engines.base import Job
from tardygrad.engines.child import Link, live, open_source
from tardygrad.engines.gate import EVALUATION, IDLE
from tardygrad.engines.shared_memory import Arena, arena_of

_READ_PATIENCE_S = 60.0


def main(incarnation: int) -> int:
    """Measure whenever asked, until the run ends; returns the exit status."""
    return live("evaluator", 0, incarnation, _measure)


def _measure(link: Link, job: Job, directory: Path) -> None:
    arena = arena_of(
        directory, job.layout, job.ranges, job.config.workers, job.method.outstanding,
        workers_max=job.config.workers_max, push_bytes=job.push_format.nbytes,
    )  # fmt: skip
    adapter = job.build_adapter()
    source = open_source(job, directory, "test")
    flat = torch.empty(job.layout.size)
    size = job.layout.parameters_size
    link.send_data(IDLE, {})
    while True:
        request = link.receive_data()
        answer = {**request, "read_at": time.monotonic(), "found": None}
        consumed = read_newest(arena, job, flat, _READ_PATIENCE_S)
        if consumed is not None:
            adapter.load(flat[:size])
            adapter.load_buffers(flat[size:])
            # Every shard has booked the epoch that ended, even where it dropped the last of it.
            answer["samples"] = max(request["samples"], consumed)
            answer["found"] = adapter.evaluate(source, job.config.evaluation.batch_size)
        link.send_data(EVALUATION, answer)


def read_newest(arena: Arena, job: Job, flat: torch.Tensor, patience_s: float) -> int | None:
    """Copy the newest parameters and buffers into ``flat``, float32 ``[layout.size]``.

    Returns:
        The samples that every shard had booked when it was read, or None if one of them could not
        be read untorn for ``patience_s`` seconds.
    """
    size = job.layout.parameters_size
    consumed = []
    for shard, key_range in enumerate(job.ranges):
        where = key_range.slice
        line = torch.empty(arena.LINE_WORDS, dtype=torch.int64)
        parts = [
            (flat[where], [copy[where] for copy in arena.copies]),
            (line, arena.lines(shard)),
        ]
        if shard == 0:
            parts.append((flat[size:], [copy[size:] for copy in arena.copies]))
        if arena.read(shard, parts, arena.geometry.workers, patience_s) is None:
            return None
        consumed.append(int(line[arena.CONSUMED]))
    return min(consumed)
