"""Push and pull through the store: 25 million float32 over shared memory, two servers.

Ours is the data path that training uses: the arena, its slots, stamps and sequence locks, and the
server rule that applies each update. The peer copies as many bytes in a plain loop.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

from tardygrad.engines.runtime_directory import base
from tardygrad.engines.shared_memory import Answer, Arena, arena_of
from tardygrad.layout import KeyRange, Layout, partition
from tardygrad.methods.async_sgd import AsyncSGD
from tardygrad.protocol import events as ev

SIZE = 25_000_000
SHARDS = 2
_STOP = 1 << 40


def _serve(directory: Path, layout: Layout, ranges: tuple[KeyRange, ...], shard: int) -> None:
    torch.set_num_threads(1)
    arena = arena_of(directory, layout, ranges, 1, 1)
    where = ranges[shard].slice
    rule = AsyncSGD().server_rule(arena.copies[0][where])
    updates = [arena.update(0, slot)[where] for slot in range(arena.geometry.slots)]
    seen = [0] * len(updates)
    version = 0
    arena.publish_clock(shard, 1)
    while True:
        for slot, update in enumerate(updates):
            stamp = arena.stamp(0, slot)
            if stamp == seen[slot]:
                continue
            if stamp >= _STOP:
                os._exit(0)
            seen[slot] = stamp
            version += 1
            copy = arena.begin_write(shard)
            rule.apply(update, 1.0, 0)
            arena.end_write(shard, copy, 0, version)
            arena.answer(0, slot, shard, Answer(stamp, ev.APPLIED, 0, ""))
        time.sleep(0.0001)


def _await(arena: Arena, slot: int, stamp: int) -> None:
    while any(arena.answered(0, slot, s) < stamp for s in range(SHARDS)):
        time.sleep(0.0001)


def ours(seconds: float) -> float:
    """Bytes moved both ways per second."""
    layout = Layout.of([("vector", (SIZE,), "float32")])
    ranges = partition(layout, SHARDS)
    with tempfile.TemporaryDirectory(dir=base()) as name:
        directory = Path(name)
        arena = arena_of(directory, layout, ranges, 1, 1, create=True)
        children = []
        for shard in range(SHARDS):
            pid = os.fork()
            if pid == 0:
                try:
                    _serve(directory, layout, ranges, shard)
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(1)  # the parent's directory is not the child's to remove
            children.append(pid)
        gradient, pulled = torch.full((SIZE,), 1e-6), torch.zeros(SIZE)
        slots = [arena.update(0, i) for i in range(arena.geometry.slots)]
        parts = [[(pulled[r.slice], [c[r.slice] for c in arena.copies])] for r in ranges]
        while any(arena.clock(s) == 0 for s in range(SHARDS)):
            time.sleep(0.001)
        stamp, moved, started = 0, 0, 0.0
        while not started or time.monotonic() - started < seconds:
            stamp += 1
            slot = stamp % len(slots)
            _await(arena, slot, stamp - len(slots))
            slots[slot][:SIZE].copy_(gradient)
            arena.publish(slot, stamp, _push(stamp))
            for shard in range(SHARDS):
                assert arena.read(shard, parts[shard], 0, 10.0) is not None
            if stamp == 4:
                started, moved = time.monotonic(), 0
            moved += 8 * SIZE
        speed = (moved - 8 * SIZE) / (time.monotonic() - started)
        for slot in range(len(slots)):
            arena.publish(slot, _STOP, _push(_STOP))
        for pid in children:
            os.waitpid(pid, 0)
        return speed


def _push(stamp: int) -> ev.Push:
    return ev.Push(1, 0, 1, stamp, 1, 0, 0, 0, 1, 1, 0, ((0, 0),) * SHARDS)


def peer(seconds: float) -> float:
    """Bytes per second of a plain loop that copies a vector there and back."""
    a, b, c = torch.full((SIZE,), 1.0), torch.zeros(SIZE), torch.zeros(SIZE)
    for _ in range(3):
        b.copy_(a)
        c.copy_(b)
    moved, started = 0, time.monotonic()
    while time.monotonic() - started < seconds:
        b.copy_(a)
        c.copy_(b)
        moved += 8 * SIZE
    return moved / (time.monotonic() - started)


def main() -> None:
    """Print one JSON object."""
    torch.set_num_threads(1)
    side = {"ours": ours, "peer": peer}[sys.argv[1]]
    print(json.dumps({"value": side(float(sys.argv[2]))}))


if __name__ == "__main__":
    main()
