"""The data path: where things lie, that no read is torn, pushes and their answers."""

from __future__ import annotations

import itertools
import multiprocessing
import select
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tardygrad.engines import runtime_directory, shared_memory
from tardygrad.engines.bells import Bell, Ringer
from tardygrad.engines.mapped import share, shared
from tardygrad.engines.shared_memory import (
    Answer,
    Arena,
    Geometry,
    arena_of,
)
from tardygrad.errors import StorageError
from tardygrad.layout import Layout, partition
from tardygrad.protocol import events as ev

PATIENCE_S = 60.0
# Forks of this process: they only copy tensors, each on one thread.
processes = multiprocessing.get_context("fork")


def layout(parameters: int, buffers: int = 0) -> Layout:
    named = [("norm", (buffers,), "float32")] if buffers else []
    return Layout.of([("weight", (parameters,), "float32")], named)


def arena(path: Path, *, parameters: int = 64, shards: int = 2, workers: int = 2) -> Arena:
    ranges = partition(layout(parameters), shards)
    return arena_of(
        path, layout(parameters), ranges, workers, 1, create=not (path / "arena").exists()
    )


def push(seq: int, *, worker: int = 0, shards: int = 2) -> ev.Push:
    reads = tuple((1, 100 + s) for s in range(shards))
    return ev.Push(7 << 40, worker, 3, seq, 9, 1, 4, 2, 5, 96, 11, reads)


@given(
    parameters=st.integers(1, 5000),
    buffers=st.integers(0, 200),
    shards=st.integers(1, 5),
    workers=st.integers(1, 6),
    slots=st.integers(1, 4),
)
def test_nothing_overlaps(
    parameters: int, buffers: int, shards: int, workers: int, slots: int
) -> None:
    g = Geometry(layout(parameters, buffers), shards, workers, slots)
    pieces = [(g.header(s), g.header_size) for s in range(shards)]
    pieces += [(g.parameters + c * g.copy_size, 4 * g.layout_size) for c in range(g.copies)]
    pieces += [(g.reader(r), 8 * shards) for r in range(g.readers)]
    for w in range(workers):
        pieces.append((g.worker(w), g.flags_size))
        for s in range(slots):
            pieces.append((g.slot(w, s), 8 + g.descriptor.size))
            pieces += [(g.answer_at(w, s, i), g.answer.size) for i in range(shards)]
            pieces.append((g.update(w, s), 4 * g.layout_size))
    pieces.sort()
    for (at, size), (following, _) in itertools.pairwise(pieces):
        assert at % 64 == 0 and at + size <= following
    assert pieces[-1][0] + pieces[-1][1] <= g.total


def test_small_models_have_a_copy_for_everybody_and_large_ones_a_single_one() -> None:
    assert Geometry(layout(1000), 1, 4, 2).copies == 4 + 1 + 2
    assert Geometry(layout(10_000_000), 1, 4, 2).copies == 1


def test_too_little_memory_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_directory, "disk_base", lambda: tmp_path)
    g = Geometry(Layout.of([("weight", (1 << 46,), "float32")]), 1, 1, 1)
    with pytest.raises(StorageError, match=r"no room for the exchange.*\d+ MiB are needed"):
        Arena(tmp_path / "arena", g, create=True)
    with pytest.raises(StorageError, match="cannot open shared memory"):
        Arena(tmp_path / "nowhere" / "arena", g)


# --- readers and writers ----------------------------------------------------------------------


def _write(path: Path, parameters: int, versions: int) -> None:
    a = arena(path, parameters=parameters, shards=1)
    for version in range(1, versions + 1):
        copy = a.begin_write(0)
        # In two halves, so that a torn read would be seen.
        a.copies[copy][: parameters // 2].fill_(version)
        a.copies[copy][parameters // 2 :].fill_(version)
        a.end_write(0, copy, 5, version)
        time.sleep(0.0001)  # as a server does between two updates


def _read(path: Path, parameters: int, versions: int, reader: int) -> None:
    a = arena(path, parameters=parameters, shards=1)
    target = torch.empty(a.geometry.layout_size)
    newest = reads = 0
    while newest < versions:
        found = a.read(0, [(target, a.copies)], reader, PATIENCE_S)
        assert found is not None, "no read in all that time"
        _check(target[:parameters], found, newest)
        newest = found[1]
        reads += 1
    assert reads > 1


def _pin(path: Path, parameters: int, versions: int, reader: int) -> None:
    a = arena(path, parameters=parameters, shards=1)
    newest = 0
    while newest < versions:
        found = a.pin(0, reader)
        if found is None:
            continue
        copy, read = found
        for _ in range(3):  # it stays as it is for as long as it is held
            _check(a.copies[copy][:parameters], read, newest)
        newest = read[1]


def _check(values: torch.Tensor, read: ev.Read, newest: int) -> None:
    incarnation, version = read
    assert version >= newest, "a read went back"
    least, most = values.aminmax()
    assert least == most == version, f"torn: {least} to {most} at version {version}"
    assert incarnation == (5 if version else 0)


def _run_together(*tasks: tuple[Callable[..., None], tuple[Any, ...]]) -> None:
    start = processes.Barrier(len(tasks))

    def begin(function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        # The threads of a pool that an earlier test started are not there after a fork, and would
        # be waited for.
        torch.set_num_threads(1)
        start.wait(PATIENCE_S)
        function(*arguments)

    children = [processes.Process(target=begin, args=task) for task in tasks]
    for child in children:
        child.start()
    for child in children:
        child.join(PATIENCE_S)
        assert child.exitcode == 0
        child.close()


@pytest.mark.parametrize("copies", ["several", "single"])
def test_no_read_is_torn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copies: str) -> None:
    if copies == "single":
        monkeypatch.setattr(shared_memory, "_COPIES_LIMIT", 0)
    parameters, versions = 40_000, 1000 if copies == "several" else 200
    made = arena(tmp_path, parameters=parameters, shards=1)
    assert (made.geometry.copies == 1) == (copies == "single")
    reader = _read if copies == "single" else _pin
    _run_together(
        (_write, (tmp_path, parameters, versions)),
        (_read, (tmp_path, parameters, versions, 0)),
        (reader, (tmp_path, parameters, versions, 1)),
    )


def test_a_reader_that_died_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "_COPIES_LIMIT", 0)
    a = arena(tmp_path, shards=1)
    a.words[a.geometry.reader(1) // 8] = 1  # it pinned the copy, and was killed
    copy = a.begin_write(0)
    a.end_write(0, copy, 1, 1)
    assert a.read(0, [(torch.empty(64), a.copies)], 0, 1.0) == (1, 1)


def test_a_writer_that_died_is_followed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "_COPIES_LIMIT", 0)
    a = arena(tmp_path, shards=1)
    a.begin_write(0)
    assert a.read(0, [(torch.empty(64), a.copies)], 0, 0.01) is None
    copy = a.begin_write(0)
    a.copies[copy].fill_(2.0)
    a.end_write(0, copy, 2, 7)
    target = torch.empty(64)
    assert a.read(0, [(target, a.copies)], 0, 1.0) == (2, 7)
    assert torch.equal(target, torch.full((64,), 2.0))


def test_shards_are_read_apart(tmp_path: Path) -> None:
    a = arena(tmp_path, shards=2)
    for shard, version in ((0, 3), (1, 8)):
        copy = a.begin_write(shard)
        a.end_write(shard, copy, shard, version)
    assert a.pin(0, 0) is not None and a.pin(1, 0) is not None
    assert [a.read(s, [], 1, 1.0) for s in (0, 1)] == [(0, 3), (1, 8)]


# --- pushes -----------------------------------------------------------------------------------


def test_a_push_and_its_answers(tmp_path: Path) -> None:
    mine, theirs = arena(tmp_path), arena(tmp_path)
    assert mine.stamp(0, 1) == 0
    mine.update(0, 1).fill_(1.5)
    mine.publish(1, 12, push(4))
    assert (theirs.stamp(0, 1), theirs.stamp(0, 0), theirs.stamp(1, 1)) == (12, 0, 0)
    assert theirs.descriptor(0, 1, 12) == (push(4), 0)
    assert torch.equal(theirs.update(0, 1), torch.full((64,), 1.5))
    answer = Answer(12, ev.REFUSED, 6, "überholt " * 40)
    theirs.answer(0, 1, 1, answer)
    assert [mine.answered(0, 1, s) for s in (0, 1)] == [0, 12]
    found = mine.read_answer(0, 1, 1)
    assert found[:3] == answer[:3]
    assert answer.reason.startswith(found.reason.rstrip("\ufffd")) and len(found.reason) > 60


def test_a_descriptor_that_is_being_rewritten_is_not_read(tmp_path: Path) -> None:
    a = arena(tmp_path)
    a.publish(0, 5, push(1))
    assert a.descriptor(0, 0, 6) is None
    a.publish(0, 6, push(2), 3)
    assert a.descriptor(0, 0, 5) is None
    assert a.descriptor(0, 0, 6) == (push(2), 3)


@pytest.mark.parametrize("outcome", [ev.APPLIED, ev.DUPLICATE, ev.DROPPED, ev.AGAIN, ev.GAP])
def test_every_outcome_travels(tmp_path: Path, outcome: str) -> None:
    a = arena(tmp_path)
    a.answer(1, 0, 0, Answer(3, outcome, 2, ""))
    assert a.read_answer(1, 0, 0) == Answer(3, outcome, 2, "")


def test_flags_and_clocks(tmp_path: Path) -> None:
    mine, theirs = arena(tmp_path), arena(tmp_path)
    mine.set_sleeping(1, True)
    mine.set_worker_sleeping(0, True)
    mine.publish_clock(1, 41)
    assert [theirs.sleeps(s) for s in (0, 1)] == [False, True]
    assert [theirs.worker_sleeps(w) for w in (0, 1)] == [True, False]
    assert [theirs.clock(s) for s in (0, 1)] == [0, 41]


def test_bells(tmp_path: Path) -> None:
    bell, ringer = Bell(tmp_path, "server-0"), Ringer(tmp_path)
    ringer.ring("nobody")
    for _ in range(3000):  # more than the system keeps: a ring never waits
        ringer.ring("server-0")
    assert select.select([bell.fileno()], [], [], 0)[0]
    bell.hush()
    assert not select.select([bell.fileno()], [], [], 0)[0]
    again = Bell(tmp_path, "server-0")  # of a successor
    ringer.ring("server-0")
    assert select.select([again.fileno()], [], [], 0)[0]
    for end in (bell, again, ringer):
        end.close()


# --- data -------------------------------------------------------------------------------------


def test_tensors_of_all_kinds_are_shared(tmp_path: Path) -> None:
    tensors = (
        torch.arange(12, dtype=torch.int64).reshape(3, 4),
        torch.randn(5, 2, dtype=torch.float64).t(),
        torch.randn(7).to(torch.bfloat16),
        torch.tensor([True, False, True]),
        torch.tensor(3.5),
        torch.empty(0, 4),
        torch.randint(0, 255, (9, 1), dtype=torch.uint8),
    )
    found = shared(tmp_path / "data", share(tmp_path / "data", tensors))
    for given_tensor, tensor in zip(tensors, found, strict=True):
        assert tensor.dtype == given_tensor.dtype and torch.equal(tensor, given_tensor)
    found[0][0, 0] = 99  # private: what one process does to its view is its own affair
    assert shared(tmp_path / "data", share(tmp_path / "more", tensors))[0][0, 0] == 0


def test_waiting_for_a_writer_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "_COPIES_LIMIT", 0)
    a = arena(tmp_path, shards=1)
    a.begin_write(0)
    began = time.monotonic()
    assert a.read(0, [(torch.empty(64), a.copies)], 0, 0.02) is None
    assert time.monotonic() - began >= 0.02
