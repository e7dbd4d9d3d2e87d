"""A checkpoint that is visible is complete and restorable; damage of any kind is noticed."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tardygrad.errors import CheckpointError, StorageError
from tardygrad.storage.checkpoints import MANIFEST, Checkpoint, CheckpointStore, ShardFile

METADATA: dict[str, Any] = {"version": 7, "ledger": {"0": [1, 2]}, "lineage": None, "rate": 1e-4}


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path)


def tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "parameters": torch.randn(50, generator=generator),
        "state.step": torch.tensor(seed),
        "half": torch.randn(3, 2, generator=generator).bfloat16(),
        "none": torch.zeros(0),
    }


def write(store: CheckpointStore, step: int, *, shards: int = 2, seed: int = 0) -> Checkpoint:
    files = [
        store.write_shard(step, shard, tensors(seed + shard), METADATA) for shard in range(shards)
    ]
    return store.commit(step, {"samples": step * 10}, files)


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def test_comes_back_equal(store: CheckpointStore) -> None:
    written = write(store, 3)
    found = CheckpointStore(store.path.parent).newest_valid()
    assert found == written
    assert found is not None and found.manifest == {"samples": 30}
    for shard in range(2):
        values, metadata = store.load_shard(found, shard)
        assert metadata == METADATA == store.load_metadata(found, shard)
        assert values.keys() == tensors(shard).keys()
        for name, expected in tensors(shard).items():
            assert values[name].dtype == expected.dtype and torch.equal(values[name], expected)


def test_layout_on_disk(store: CheckpointStore, tmp_path: Path) -> None:
    write(store, 120)
    assert names(tmp_path / "checkpoints") == ["000000000120"]
    assert names(store.directory(120)) == [
        MANIFEST,
        "shard-000.safetensors",
        "shard-001.safetensors",
    ]


def test_loaded_tensors_belong_to_the_caller(store: CheckpointStore) -> None:
    checkpoint = write(store, 1)
    values, _ = store.load_shard(checkpoint, 0)
    values["parameters"].zero_()
    again, _ = store.load_shard(checkpoint, 0)
    assert torch.equal(again["parameters"], tensors(0)["parameters"])


def test_views_and_gradients_may_be_given(store: CheckpointStore) -> None:
    flat = torch.arange(12.0)
    given_ = {"a": flat[:6], "b": flat[6:].view(2, 3).T, "c": torch.ones(1, requires_grad=True)}
    file = store.write_shard(1, 0, given_, {})
    values, metadata = store.load_shard(store.commit(1, {}, [file]), 0)
    assert metadata == {}
    assert all(torch.equal(values[name], given_[name]) for name in given_)


def test_invisible_until_committed(store: CheckpointStore) -> None:
    write(store, 1)
    file = store.write_shard(2, 0, tensors(0), METADATA)
    newest = store.newest_valid()
    assert newest is not None and newest.step == 1
    assert store.steps() == [1]
    with pytest.raises(CheckpointError, match=r"no manifest.json: it was never finished"):
        store.read(2)
    store.commit(2, {}, [file])
    assert store.steps() == [1, 2]


def test_no_checkpoints_at_all(store: CheckpointStore) -> None:
    assert store.newest_valid() is None
    assert store.steps() == [] and store.skipped == [] and store.prune(1) == []
    assert not store.discard(5)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "victim", "reason"),
    [
        (flip, "shard-001.safetensors", "shard-001.safetensors is damaged"),
        (cut, "shard-000.safetensors", r"shard-000.safetensors has \d+ bytes, and \d+ were"),
        (Path.unlink, "shard-001.safetensors", "shard-001.safetensors is missing"),
        (Path.unlink, MANIFEST, "never finished"),
        (flip, MANIFEST, "manifest.json is damaged"),
        (lambda path: path.write_bytes(b""), MANIFEST, "manifest.json is damaged"),
        (lambda path: path.write_bytes(b"[" * 9999), MANIFEST, "manifest.json is damaged"),
        (lambda path: path.write_bytes(b"[]"), MANIFEST, "expected an object"),
        (lambda path: path.write_bytes(b'{"format": 99}'), MANIFEST, "another version of tardy"),
    ],
)
def test_damage_is_passed_over_and_told(
    store: CheckpointStore, damage: Any, victim: str, reason: str
) -> None:
    write(store, 1)
    newest = write(store, 2)
    damage(newest.path / victim)
    found = store.newest_valid()
    assert found is not None and found.step == 1
    [(path, why)] = store.skipped
    assert path == newest.path
    with pytest.raises(CheckpointError, match=reason):
        raise CheckpointError(why)
    write(store, 3)
    assert store.newest_valid() is not None and store.skipped == []


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_flipped_bit_goes_unnoticed(tmp_path: Path, data: st.DataObject) -> None:
    store = CheckpointStore(tmp_path)
    if not store.steps():
        write(store, 1)
    before = store.read(1)
    victim = before.path / data.draw(st.sampled_from(names(before.path)))
    original = victim.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(original) - 1))
    damaged = bytearray(original)
    damaged[bit // 8] ^= 1 << bit % 8
    victim.write_bytes(damaged)
    try:
        # One white space for another in the manifest is no damage.
        assert store.newest_valid() in (None, before if victim.name == MANIFEST else None)
    finally:
        victim.write_bytes(original)
    assert store.newest_valid() == before


def test_a_shard_damaged_after_it_was_chosen(store: CheckpointStore) -> None:
    checkpoint = write(store, 1)
    flip(checkpoint.path / "shard-001.safetensors")
    store.load_shard(checkpoint, 0)
    with pytest.raises(CheckpointError, match=r"shard-001\.safetensors is damaged"):
        store.load_shard(checkpoint, 1)
    (checkpoint.path / "shard-000.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"shard-000\.safetensors is missing"):
        store.load_metadata(checkpoint, 0)


def test_one_shard_is_found_whatever_became_of_the_others(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.newest_shard(0) is None
    write(store, 1)
    newest = write(store, 2, seed=10)
    flip(newest.path / "shard-001.safetensors")
    read: list[str] = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.name) or read_bytes(path))
    found = store.newest_shard(0)
    assert found is not None and found.checkpoint == newest and found.metadata == METADATA
    assert torch.equal(found.tensors["parameters"], tensors(10)["parameters"])
    # Once, and nobody else's.
    assert read == [MANIFEST, "shard-000.safetensors"] and store.skipped == []
    other = store.newest_shard(1)
    assert other is not None and other.checkpoint.step == 1
    assert [path for path, _ in store.skipped] == [newest.path]
    with pytest.raises(CheckpointError, match="it holds 2"):
        store.newest_shard(2)


def test_metadata_is_read_without_the_rest(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = store.write_shard(1, 0, {"a": torch.zeros(1 << 18)}, METADATA)
    checkpoint = store.commit(1, {}, [file])

    def refuse(*_: Any) -> None:
        raise AssertionError("the whole file was read")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    monkeypatch.setattr("hashlib.file_digest", refuse)
    assert store.load_metadata(checkpoint, 0) == METADATA


@pytest.mark.parametrize("head", [b"\xff" * 8, (1000).to_bytes(8, "little") + b"{", b"\x04"])
def test_a_header_that_is_none(store: CheckpointStore, head: bytes) -> None:
    checkpoint = write(store, 1)
    path = checkpoint.path / "shard-000.safetensors"
    path.write_bytes(head.ljust(path.stat().st_size, b"\0"))
    with pytest.raises(CheckpointError, match="is not a readable shard file"):
        store.load_metadata(checkpoint, 0)


def test_unknown_shard(store: CheckpointStore) -> None:
    checkpoint = write(store, 1)
    for shard in (-1, 2):
        with pytest.raises(CheckpointError, match="it holds 2"):
            store.load_shard(checkpoint, shard)


def test_a_renamed_directory_is_noticed(store: CheckpointStore) -> None:
    write(store, 1).path.rename(store.directory(5))
    assert store.newest_valid() is None
    assert "renamed" in store.skipped[0][1]


def test_a_reformatted_manifest_is_fine_and_an_edited_one_is_not(store: CheckpointStore) -> None:
    checkpoint = write(store, 1)
    path = checkpoint.path / MANIFEST
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document))
    assert store.newest_valid() == checkpoint
    document["manifest"]["samples"] += 1
    path.write_text(json.dumps(document))
    assert store.newest_valid() is None


def test_other_files_are_no_checkpoints(store: CheckpointStore) -> None:
    write(store, 1)
    (store.path / "notes").mkdir()
    (store.path / "12").mkdir()
    (store.path / "README").write_text("mine")
    assert store.newest_valid() is not None and store.skipped == []
    write(store, 2)
    store.prune(1)
    assert names(store.path) == ["000000000002", "12", "README", "notes"]


def test_commit_refuses_what_is_incomplete(store: CheckpointStore) -> None:
    first = store.write_shard(1, 0, tensors(0), {})
    second = store.write_shard(1, 1, tensors(1), {})
    missing = ShardFile("shard-002.safetensors", 10, "0" * 64)
    wrong_size = ShardFile(second.name, second.bytes + 1, second.sha256)
    for files in ([], [second], [second, first], [first, second, missing], [first, wrong_size]):
        with pytest.raises(CheckpointError):
            store.commit(1, {}, files)
    assert store.newest_valid() is None
    store.commit(1, {}, [first, second])


def test_a_step_checkpointed_again_is_never_half_of_each(store: CheckpointStore) -> None:
    before = write(store, 1)
    files = [store.write_shard(1, shard, tensors(100 + shard), {}) for shard in range(2)]
    assert store.newest_valid() == before  # a crash here would lose nothing
    after = store.commit(1, {"again": True}, files)
    assert store.newest_valid() == after != before
    assert len(names(after.path)) == 3
    values, _ = store.load_shard(after, 1)
    assert torch.equal(values["parameters"], tensors(101)["parameters"])


@pytest.mark.parametrize("allowed", range(9))
def test_a_full_disk_shows_no_half_checkpoint(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    """Whatever write it is that fails, the older checkpoint stays the newest."""
    older = write(store, 1)
    sync, left = os.fsync, [allowed]

    def fsync(descriptor: int) -> None:
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= 1
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        try:
            newer: Checkpoint | None = write(store, 2)
        except StorageError as error:
            assert "the disk is full" in str(error)
            newer = None
    if newer is None and (store.directory(2) / MANIFEST).exists():
        # Only the very last sync failed: complete, but perhaps not durable.
        newer = store.read(2)
    assert store.newest_valid() == (newer or older)
    assert not list(store.path.rglob("*.tmp"))
    store.discard(2)
    assert store.steps() == [1]


def test_a_shard_that_is_perhaps_not_durable_does_not_stay(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write_shard(1, 0, tensors(0), {})

    def refuse(directory: Path) -> None:
        raise OSError(errno.EIO, "Input/output error", str(directory))

    monkeypatch.setattr("tardygrad.storage.atomic.sync_directory", refuse)
    with pytest.raises(StorageError, match="the device reports an error"):
        store.write_shard(1, 1, tensors(1), {})
    assert names(store.directory(1)) == ["shard-000.safetensors"]


def test_overwriting_a_half_written_attempt(store: CheckpointStore) -> None:
    store.write_shard(1, 0, tensors(5), {})
    store.write_shard(1, 2, tensors(5), {})
    checkpoint = write(store, 1)
    assert store.newest_valid() == checkpoint
    assert names(checkpoint.path) == [MANIFEST, "shard-000.safetensors", "shard-001.safetensors"]


def test_prune_keeps_the_newest(store: CheckpointStore) -> None:
    for step in (1, 2, 3, 4):
        write(store, step)
    gone = store.prune(2)
    assert gone == [store.directory(1), store.directory(2)]
    assert store.steps() == [3, 4]
    assert store.prune(2) == []
    with pytest.raises(ValueError, match="keep = 0"):
        store.prune(0)


def test_prune_takes_leftovers_but_not_work_in_progress(store: CheckpointStore) -> None:
    store.write_shard(1, 0, tensors(0), {})
    write(store, 2)
    store.write_shard(3, 0, tensors(0), {})
    assert store.prune(5) == [store.directory(1)]
    assert names(store.path) == ["000000000002", "000000000003"]


def test_prune_does_not_count_damaged_manifests(store: CheckpointStore) -> None:
    for step in (1, 2, 3, 4):
        write(store, step)
    flip(store.directory(4) / MANIFEST)
    flip(store.directory(1) / MANIFEST)
    store.prune(2)
    assert store.steps() == [2, 3]
    assert names(store.path) == ["000000000002", "000000000003", "000000000004"]


def test_prune_removes_the_manifest_first(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle, it leaves something invisible that the next prune removes."""
    for step in (1, 2):
        write(store, step)
    with monkeypatch.context() as patch:

        def killed(path: Path) -> None:
            raise KeyboardInterrupt

        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            store.prune(1)
    assert store.steps() == [2]
    assert store.prune(1) == [store.directory(1)]


def test_what_cannot_be_deleted_is_no_reason_to_stop(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        write(store, step)

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("shutil.rmtree", refuse)
    assert store.prune(1) == []
    assert "cannot delete" in caplog.text and "permission denied" in caplog.text


def test_negative_step(store: CheckpointStore) -> None:
    with pytest.raises(ValueError, match="step = -1"):
        store.write_shard(-1, 0, {}, {})


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    actions=st.lists(
        st.tuples(st.sampled_from(["write", "start", "damage", "prune"]), st.integers(1, 3)),
        max_size=12,
    )
)
def test_the_newest_good_one_is_always_found(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, int]]
) -> None:
    """Against a model: a list of the good steps."""
    store = CheckpointStore(tmp_path_factory.mktemp("run"))
    good: list[int] = []
    visible: list[int] = []
    for number, (action, argument) in enumerate(actions):
        if action == "write":
            write(store, number, shards=1)
            good.append(number)
            visible.append(number)
        elif action == "start":
            store.write_shard(number, 0, {"a": torch.zeros(1)}, {})
        elif action == "damage" and good:
            flip(store.directory(good.pop()) / "shard-000.safetensors")
        elif action == "prune" and visible:
            store.prune(argument)
            visible = visible[-argument:]
            good = [step for step in good if step in visible]
        found = store.newest_valid()
        assert (found.step if found else None) == (good[-1] if good else None)
        assert store.steps() == visible
