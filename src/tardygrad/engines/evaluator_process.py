"""The evaluator's process: measures the newest parameters on the test data, beside the workers.

No worker waits for it; where processors are scarce it takes its share of them.
"""

from __future__ import annotations

import time
from pathlib import Path

import msgpack
import torch

from tardygrad.engines.base import Job
from tardygrad.engines.child import EVALUATION, Link, live, open_source
from tardygrad.engines.shared_memory import arena_of

_READ_PATIENCE_S = 60.0


def main() -> int:
    """Measure whenever asked, until the run ends; returns the exit status."""
    return live("evaluator", 0, 0, _measure)


def _measure(link: Link, job: Job, directory: Path) -> None:
    arena = arena_of(directory, job.layout, job.ranges, job.config.workers, job.method.in_flight)
    adapter = job.build_adapter()
    source = open_source(job, directory, "test")
    flat = torch.empty(job.layout.size)
    size = job.layout.parameters_size
    while True:
        request = msgpack.unpackb(link.socket.recv())
        read_at = time.monotonic()
        for shard, key_range in enumerate(job.ranges):
            where = key_range.slice
            parts = [(flat[where], [c[where] for c in arena.copies])]
            if shard == 0:
                parts.append((flat[size:], [c[size:] for c in arena.copies]))
            arena.read(shard, parts, job.config.workers, _READ_PATIENCE_S)
        adapter.load(flat[:size])
        adapter.load_buffers(flat[size:])
        found = adapter.evaluate(source, job.config.evaluation.batch_size)
        link.send_data(EVALUATION, {**request, "read_at": read_at, "found": found})
