"""Parts of the real engine in one process: who is started and killed, what is kept and read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tardygrad.engines import processes, server_process
from tardygrad.engines.base import Job
from tardygrad.engines.evaluator_process import read_newest
from tardygrad.engines.processes import Run
from tardygrad.engines.shared_memory import Arena, arena_of
from tardygrad.engines.stores import DirectoryStore
from tardygrad.errors import StorageError
from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev
from tardygrad.testing.simulation import SilentObserver, null_job


class FakeNursery:
    """Nobody is born, and whoever the test names has died."""

    def __init__(self) -> None:
        self.spawned: list[tuple[str, dict[str, Any]]] = []
        self.ended: list[tuple[int, int]] = []

    def spawn(self, role: str, arguments: dict[str, Any], log: str) -> int:
        self.spawned.append((role, arguments))
        return 1_000_000_000 + len(self.spawned)  # above every process number

    def exits(self) -> list[tuple[int, int]]:
        found, self.ended = self.ended, []
        return found


@pytest.fixture
def job(tmp_path: Path) -> Job:
    job = null_job(workers=2, servers=2, epochs=3)
    return dataclasses.replace(job, run_directory=tmp_path / "run")


@pytest.fixture
def arena(job: Job, tmp_path: Path) -> Arena:
    return arena_of(tmp_path, job.layout, job.ranges, 2, job.method.in_flight, create=True)


@pytest.fixture
def run(job: Job, arena: Arena, tmp_path: Path) -> Iterator[Run]:
    assert job.run_directory is not None
    store = DirectoryStore(job.run_directory, job.layout, job.ranges)
    nursery: Any = FakeNursery()
    made = Run(job, SilentObserver(), store, tmp_path, arena, nursery)
    yield made
    made.desk.close()
    made.gate.close()
    made.ringer.close()
    made.writer.shutdown()


def spawned(run: Run) -> list[tuple[str, dict[str, Any]]]:
    nursery: Any = run.nursery
    found: list[tuple[str, dict[str, Any]]] = nursery.spawned
    return found


def test_who_is_killed_before_his_start_is_not_started(run: Run) -> None:
    run._spawn_worker(ef.SpawnWorker(0, 3, 0.01))
    run._spawn_worker(ef.SpawnWorker(1, 5, 0.01))
    run.kill(("worker", 0), 3)
    run.kill(("worker", 1), 4)  # an earlier one: the one that waits is another
    run._start_delayed(float("inf"))
    assert spawned(run) == [("worker", {"worker": 1, "incarnation": 5})]


def test_a_successor_waits_until_its_predecessor_is_gone(run: Run) -> None:
    run._spawn_worker(ef.SpawnWorker(0, 0, 0.0))
    run._spawn_worker(ef.SpawnWorker(0, 1, 0.0))
    run._start_delayed(float("inf"))
    assert len(spawned(run)) == 1
    nursery: Any = run.nursery
    nursery.ended = [(run.members["worker", 0].pid, -9)]
    run._bury()
    run._start_delayed(float("inf"))
    assert [a["incarnation"] for _, a in spawned(run)] == [0, 1]


def test_what_was_written_for_a_given_up_checkpoint_goes(run: Run) -> None:
    tensors = {"parameters": torch.zeros(4)}
    place = run.files.files.directory(1)
    file = run.files.write(1, 0, tensors, {})
    run._handle(ev.SnapshotTaken(0, 0, 1, 5, 640, file))
    assert place.exists()
    run._handle(ev.SnapshotFailed(1, 0, 1, "the disk is full"))
    assert not place.exists()
    # A third would be late with its own.
    run.files.write(1, 0, tensors, {})
    run._handle(ev.SnapshotTaken(0, 0, 1, 5, 640, file))
    assert not place.exists()


class RefusingStore:
    """A disk that refuses this many manifests."""

    def __init__(self, refusals: float) -> None:
        self.left, self.asked = refusals, 0

    def commit(self, step: int, files: Any, state: Any) -> None:
        self.asked += 1
        self.left -= 1
        if self.left >= 0:
            raise StorageError("the disk is full")


@pytest.mark.parametrize(
    ("finished", "refusals", "asked", "lost"),
    [
        (True, 2, 3, ""),
        (True, float("inf"), None, "the disk is full"),
        (False, 2, 1, "the disk is full"),
    ],
)
def test_only_the_last_manifest_is_tried_again(
    run: Run, monkeypatch: pytest.MonkeyPatch, finished: bool, refusals: float,
    asked: int | None, lost: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(processes, "_DISK_AGAIN_S", 0.001)
    failure = run.job.config.failure.model_copy(update={"stop_s": 0.02})
    config = run.job.config.model_copy(update={"failure": failure})
    monkeypatch.setattr(run, "job", dataclasses.replace(run.job, config=config))
    store: Any = RefusingStore(refusals)
    monkeypatch.setattr(run, "store", store)
    run._commit(ef.CommitCheckpoint(1, (), {"versions": [0], "samples": [0]}))
    run.finished = ef.Finished("done", "") if finished else None
    run.writer.shutdown(wait=True)
    run._tell_commits()
    assert run.lost_checkpoint == lost
    assert store.asked == asked if asked else store.asked > 2


def test_the_evaluator_reads_what_it_says_it_read(job: Job, arena: Arena) -> None:
    flat = torch.empty(job.layout.size)
    for version, consumed in ((1, 64), (2, 128)):
        for shard, key_range in enumerate(job.ranges):
            copy = arena.begin_write(shard)
            arena.copies[copy][key_range.slice] = float(version)
            arena.end_write(shard, copy, 0, version, consumed + shard)
    assert read_newest(arena, job, flat, 0.0) == 128
    size = job.layout.parameters_size
    assert torch.equal(flat[:size], torch.full((size,), 2.0))
    # A server that died while it wrote its newest copy.
    at = arena._lines[1][arena.words[arena.header(1)]]
    arena.words[at] |= 1
    assert read_newest(arena, job, flat, 0.0) is None


class Fails:
    """Stands for a trace or a store that fails in a way nobody thought of."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def sync(self) -> None:
        if self.error is not None:
            raise self.error

    def write(self, *_: Any) -> tuple[str, int, str]:
        self.sync()
        return "file", 1, "sum"


@pytest.mark.parametrize("error", [RuntimeError("overlap"), MemoryError(), OSError(5, "I/O")])
def test_whatever_becomes_of_a_snapshot_is_said(error: Exception) -> None:
    effect = ef.SaveSnapshot(3, 7, 640, {})
    good: Any = Fails(None)
    bad: Any = Fails(error)
    for trace_file, store in ((good, bad), (bad, good)):
        tensors: dict[str, torch.Tensor] = {}
        written = server_process.keep_snapshot(effect, 0, tensors, trace_file, store)
        assert written.error.startswith(type(error).__name__)
        assert written[:4] == (3, 7, 640, ("", 0, ""))
    written = server_process.keep_snapshot(effect, 0, {}, good, good)
    assert (written.file, written.error) == (("file", 1, "sum"), "")


def test_a_server_lives_while_it_is_restored(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class FakeLink:
        starting = False

        def beat(self, *_: Any) -> None:
            told.append("beats")

    class Restored:
        def __init__(self, *_: Any) -> None:
            told.append("is restored")

        def run(self) -> None:
            told.append("runs")

    def live(kind: str, member: int, incarnation: int, life: Any) -> int:
        life(FakeLink(), job, tmp_path)
        return 0

    monkeypatch.setattr(server_process, "live", live)
    monkeypatch.setattr(server_process, "ServerProcess", Restored)
    monkeypatch.setattr(server_process, "ask_for_short_slices", lambda: None)
    assert server_process.main(0, 1, 0) == 0
    assert told == ["beats", "is restored", "runs"]
