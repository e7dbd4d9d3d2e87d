"""Snapshots in a run directory, and the trace that a server writes."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tardygrad.engines.shard_host import TraceFile
from tardygrad.engines.stores import DirectoryStore
from tardygrad.errors import CheckpointError, LedgerError, StorageError
from tardygrad.layout import Layout, partition
from tardygrad.protocol import trace
from tardygrad.protocol.trace import Record
from tardygrad.storage.traces import read_traces

SHARDS = 2
MODEL = Layout.of([("w", (32,), "float32")])
OTHER = Layout.of([("w", (33,), "float32")])


def store_of(
    place: Path, model: Layout = MODEL, *, run: str = "a", shards: int = SHARDS, keep: int = 3
) -> DirectoryStore:
    return DirectoryStore(place, model, partition(model, shards), run=run, keep=keep)


@contextlib.contextmanager
def no_file_beyond(size_bytes: int) -> Iterator[None]:
    """As if the disk were full: no file of this process may grow beyond that."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# --- checkpoints ------------------------------------------------------------------------------


def checkpoint(store: DirectoryStore, step: int, value: float) -> None:
    files = tuple(
        store.write(step, shard, {"parameters": torch.full((8,), value)}, {"version": step})
        for shard in range(SHARDS)
    )
    store.commit(step, files, {"samples": [step, step]})


def test_the_newest_whole_checkpoint_counts(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    assert store.newest(0) is None
    assert store.next_step() == 1
    checkpoint(store, 1, 1.0)
    checkpoint(store, 2, 2.0)
    store.write(3, 0, {"parameters": torch.zeros(8)}, {})  # its run died before the other shard
    found = store_of(tmp_path).newest(1)
    assert found is not None
    assert (found.step, found.state) == (2, {"version": 2})
    assert torch.equal(found.tensors["parameters"], torch.full((8,), 2.0))
    assert store.next_step() == 4


def test_a_damaged_checkpoint_is_passed_over_and_told(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    checkpoint(store, 1, 1.0)
    checkpoint(store, 2, 2.0)
    shard = next((tmp_path / "checkpoints" / f"{2:012d}").glob("shard-001*"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    found = store.newest(1)
    assert found is not None and found.step == 1
    assert len(store.skipped()) == 1
    # The other shard's file is whole: its server goes on from there, and the main process knows.
    other = store.newest(0)
    assert other is not None and other.step == 2
    assert store.states() == [{"version": 2}, {"version": 1}]
    assert len(store.skipped()) == 1


def test_another_runs_checkpoint_is_passed_over_and_told(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    checkpoint(store, 1, 1.0)
    checkpoint(store_of(tmp_path, run="b"), 2, 2.0)
    found = store.newest(0)
    assert found is not None and found.step == 1
    [reason] = store.skipped()
    assert f"{2:012d} is of another run (b, this is a)" in reason
    whole = store.whole()
    assert whole is not None and whole.step == 1


def test_a_server_passes_over_what_is_cut_otherwise(tmp_path: Path) -> None:
    checkpoint(store_of(tmp_path), 1, 1.0)
    other = store_of(tmp_path, shards=1)
    with pytest.raises(CheckpointError, match=r"shard 0 cannot be restored: .*into 2 other shards"):
        other.newest(0)
    whole = other.whole()
    assert whole is not None and not other.has_shape(whole)
    assert other.states() == [{"version": 1}] * 2


def damages(place: Path) -> list[tuple[str, Callable[[], object]]]:
    """Ways to damage shard 0 of the newest checkpoint, and what is said of it."""
    shard, manifest = place / "shard-000.safetensors", place / "manifest.json"

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    return [
        ("shard-000.safetensors has", lambda: shard.write_bytes(shard.read_bytes()[:-1])),
        ("shard-000.safetensors is damaged", lambda: flip(shard)),
        ("shard-000.safetensors is missing", shard.unlink),
        ("manifest.json is damaged", lambda: flip(manifest)),
        ("never finished", manifest.unlink),
    ]


@pytest.mark.parametrize("way", range(5))
def test_a_server_takes_the_one_before_and_none_at_all_is_one_line(
    tmp_path: Path, way: int
) -> None:
    store = store_of(tmp_path)
    for step in (1, 2):
        checkpoint(store, step, float(step))
    said, damage = damages(store.files.directory(2))[way]
    damage()
    found = store.newest(0)
    assert found is not None and found.step == 1
    [reason] = store.skipped()
    assert said in reason
    if said != "never finished":
        damages(store.files.directory(1))[way][1]()
        with pytest.raises(CheckpointError, match="shard 0 cannot be restored") as caught:
            store.newest(0)
        assert str(caught.value).count(said) == 2
        assert "\n" not in str(caught.value)


def test_another_model_is_refused(tmp_path: Path) -> None:
    checkpoint(store_of(tmp_path), 1, 1.0)
    with pytest.raises(CheckpointError, match="of a model with other parameters"):
        store_of(tmp_path, OTHER).newest(0)
    with pytest.raises(CheckpointError, match="of a model with other parameters"):
        store_of(tmp_path, OTHER).states()
    assert store_of(tmp_path / "none", OTHER).states() == []


def test_a_server_that_cannot_write_leaves_the_others_files_alone(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    checkpoint(store, 1, 1.0)
    store.write(2, 0, {"parameters": torch.zeros(8)}, {})
    with no_file_beyond(64), pytest.raises(StorageError):
        store.write(2, 1, {"parameters": torch.zeros(1000)}, {})
    place = tmp_path / "checkpoints" / f"{2:012d}"
    assert [p.name for p in place.iterdir()] == ["shard-000.safetensors"]
    store.discard(2)
    assert not place.exists()
    store.discard(1)  # visible: it may be the only one that a resume can use
    assert store.newest(0) is not None


def test_only_so_many_are_kept(tmp_path: Path) -> None:
    store = store_of(tmp_path, keep=2)
    for step in range(1, 6):
        checkpoint(store, step, float(step))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        f"{4:012d}",
        f"{5:012d}",
    ]


def test_a_full_disk_leaves_no_half_checkpoint(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    checkpoint(store, 1, 1.0)
    with no_file_beyond(64), pytest.raises(StorageError, match="cannot write"):
        store.write(2, 0, {"parameters": torch.zeros(1000)}, {})
    files = [store.write(2, s, {"parameters": torch.zeros(8)}, {}) for s in range(SHARDS)]
    with no_file_beyond(16), pytest.raises(StorageError):
        store.commit(2, tuple(files), {"samples": [2, 2]})
    found = store.newest(0)
    assert found is not None and found.step == 1


def test_a_commit_without_its_files_is_refused(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    with pytest.raises(StorageError):
        store.commit(1, (("shard-000.safetensors", 10, "0" * 64),), {"samples": [1]})
    assert store.newest(0) is None


# --- the trace --------------------------------------------------------------------------------


def record(version: int) -> Record:
    reads = ((0, version - 1), (0, version - 1))
    return Record(trace.APPLIED, 0, version, epoch=1, stop=1, samples=64, reads=reads)


def records(path: Path) -> list[Record]:
    return trace.decode_file(path.read_bytes(), path.name)[2]


def write(path: Path, *versions: int) -> None:
    file = TraceFile(path, 1, SHARDS)
    for version in versions:
        file.write(record(version))
    file.sync()
    file.close()


def test_a_trace_goes_on_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "shard-001.trace"
    write(path, 1, 2)
    write(path, 3)
    assert records(path) == [record(1), record(2), record(3)]
    assert trace.decode_file(path.read_bytes(), path.name)[:2] == (1, SHARDS)


@pytest.mark.parametrize("torn", [1, trace.record_size(SHARDS) - 1])
def test_a_torn_record_is_cut(tmp_path: Path, torn: int) -> None:
    path = tmp_path / "shard-001.trace"
    write(path, 1, 2)
    path.write_bytes(path.read_bytes()[:-torn])
    write(path, 3)
    assert records(path) == [record(1), record(3)]


@pytest.mark.parametrize("lost", [1, 2, 40])
@pytest.mark.parametrize("torn", [0, 5])
def test_records_that_never_reached_the_disk_are_cut(tmp_path: Path, lost: int, torn: int) -> None:
    path = tmp_path / "shard-000.trace"
    file = TraceFile(path, 0, 1)
    file.write(record(1)._replace(reads=((0, 0),)))
    file.close()
    path.write_bytes(path.read_bytes() + bytes(lost * trace.record_size(1) + torn))
    first = read_traces(tmp_path)
    assert [r.version for r in first[0]] == [1]
    file = TraceFile(path, 0, 1)
    file.write(record(2)._replace(reads=((0, 1),)))
    file.close()
    assert [r.version for r in read_traces(tmp_path)[0]] == [1, 2]


def test_nothing_before_a_good_record_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "shard-001.trace"
    write(path, 1, 2, 3)
    size, data = trace.record_size(SHARDS), bytearray(path.read_bytes())
    data[-2 * size : -size] = bytes(size)
    path.write_bytes(data)
    TraceFile(path, 1, SHARDS).close()
    assert path.read_bytes() == data
    with pytest.raises(LedgerError, match="others follow it"):
        records(path)


@pytest.mark.parametrize("size", [0, 1, len(trace.file_header(1, SHARDS)) - 1])
def test_a_torn_head_is_written_again(tmp_path: Path, size: int) -> None:
    path = tmp_path / "shard-001.trace"
    path.write_bytes(trace.file_header(1, SHARDS)[:size])
    write(path, 1)
    assert records(path) == [record(1)]


def test_a_full_disk_stops_the_trace_with_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "shard-001.trace"
    write(path, 1)
    file = TraceFile(path, 1, SHARDS)
    told = pytest.raises(StorageError, match=r"cannot write the trace .*shard-001")
    with no_file_beyond(path.stat().st_size + 5), told:
        file.write(record(2))
    file.close()
    write(path, 3)
    assert records(path) == [record(1), record(3)]


def test_an_impossible_place_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write the trace"):
        TraceFile(tmp_path / "nowhere" / "shard-001.trace", 1, SHARDS)


@pytest.mark.parametrize(("shard", "shards"), [(0, SHARDS), (1, SHARDS + 1)])
def test_a_trace_of_other_shards_is_left_alone(tmp_path: Path, shard: int, shards: int) -> None:
    path = tmp_path / "shard-001.trace"
    TraceFile(path, shard, shards).close()
    before = path.read_bytes()
    with pytest.raises(StorageError, match=r"is not that of shard 1 of 2, .* resume with"):
        TraceFile(path, 1, SHARDS)
    assert path.read_bytes() == before
