"""Copies of checkpoints beside the training: nobody waits for ever, and what fails is told."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import fsspec
import pytest
from copied_runs import PATIENCE_S, data, log, model, stopped, until, write
from fsspec.implementations.local import LocalFileSystem

import tardygrad
from tardygrad import copies
from tardygrad.engines.inline import InlineEngine
from tardygrad.errors import StorageError, TrainingFailed
from tardygrad.metrics.sink import read
from tardygrad.storage.checkpoints import Checkpoint, CheckpointStore
from tardygrad.storage.remote import RemoteCheckpoints, fetch_newer
from tardygrad.storage.uploads import Uploader

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_what_fails_is_tried_again_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path / "run")
    remote = RemoteCheckpoints(f"file://{tmp_path / 'share'}", "a")
    told: list[str] = []
    broken = True
    put = LocalFileSystem.put_file

    def put_file(self: Any, *arguments: Any, **options: Any) -> Any:
        if broken and len(told) < 3:
            raise ConnectionError("the cable is out")
        return put(self, *arguments, **options)

    monkeypatch.setattr(LocalFileSystem, "put_file", put_file)
    uploader = Uploader(remote, 2, lambda what, why: told.append(f"{what}: {why}"), retry_s=(0, 0))
    uploader.offer(write(store, 1))
    assert uploader.finish(PATIENCE_S) == ""
    assert len(told) == 4
    assert told[0].startswith("checkpoint 1 is not copied yet: cannot write file://")
    assert told[0].endswith("shard-000.safetensors: the cable is out")
    assert told[3].startswith("checkpoint 1 is copied: to ")
    assert remote.steps() == [1]


def test_nobody_waits_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path / "run")
    remote = RemoteCheckpoints(f"file://{tmp_path / 'share'}", "a")

    def put_file(*arguments: Any, **options: Any) -> Any:
        raise ConnectionError("the cable is out")

    monkeypatch.setattr(LocalFileSystem, "put_file", put_file)
    uploader = Uploader(remote, 2, lambda what, why: None, retry_s=(0.01, 0.01))
    uploader.offer(write(store, 1))
    assert "the cable is out" in uploader.finish(0.1)
    assert remote.steps() == []


def test_what_is_copied_again_and_again_is_no_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at a full share, which takes the first files of each attempt."""
    store = CheckpointStore(tmp_path / "run")
    remote = RemoteCheckpoints(f"file://{tmp_path / 'share'}", "a")
    put = LocalFileSystem.put_file

    def put_file(self: Any, local: str, target: str, **options: Any) -> Any:
        if "shard-001" in target:
            raise OSError(28, "No space left on device")
        return put(self, local, target, **options)

    monkeypatch.setattr(LocalFileSystem, "put_file", put_file)
    uploader = Uploader(remote, 2, lambda what, why: None, retry_s=(0.01, 0.01))
    uploader.offer(write(store, 1))
    assert "No space left" in uploader.finish(0.2)


def test_any_error_is_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path / "run")
    remote = RemoteCheckpoints(f"file://{tmp_path / 'share'}", "a")
    told: list[str] = []
    upload = RemoteCheckpoints.upload

    def once(self: RemoteCheckpoints, checkpoint: Checkpoint) -> None:
        if not told:
            raise KeyError("unheard of")
        upload(self, checkpoint)

    monkeypatch.setattr(RemoteCheckpoints, "upload", once)
    uploader = Uploader(remote, 2, lambda what, why: told.append(f"{what}: {why}"), retry_s=(0, 0))
    uploader.offer(write(store, 1))
    assert uploader.finish(PATIENCE_S) == ""
    assert told[0] == "checkpoint 1 is not copied yet: KeyError: 'unheard of'"
    assert remote.steps() == [1]


def test_overtaken_checkpoints_are_left_out(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "run")
    remote = RemoteCheckpoints(f"file://{tmp_path / 'share'}", "a")
    told: list[str] = []
    gone = write(store, 1)
    store.discard(1)
    uploader = Uploader(remote, 2, lambda what, why: told.append(f"{what}: {why}"))
    uploader.offer(gone)
    until(lambda: told)
    assert told == ["checkpoint 1 is not copied: it was overtaken by newer ones"]
    uploader.offer(write(store, 2))
    assert uploader.finish(PATIENCE_S) == ""
    assert remote.steps() == [2]


# --- whole runs -------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_for_the_last_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    run = tmp_path / "run"
    ended = threading.Event()

    def upload(self: RemoteCheckpoints, checkpoint: Checkpoint) -> None:
        until(lambda: getattr(signal.getsignal(number), "__module__", "") == copies.__name__)
        assert '"done"' in (run / "run.json").read_text()
        os.kill(os.getpid(), number)
        ended.wait(PATIENCE_S)

    monkeypatch.setattr(RemoteCheckpoints, "upload", upload)
    try:
        result = tardygrad.train(
            model, data(), out=run, quiet=True, engine="inline", epochs=1, batch_size=8,
            checkpoint={"url": f"file://{tmp_path / 'share'}"}, failure={"stop_s": 1000.0},
        )  # fmt: skip
    finally:
        ended.set()
    assert result.outcome == "done"
    assert [*read(run / "metrics.jsonl")][-1]["event"] == "run_end"
    assert "the newest checkpoint is not copied\ta signal came" in log(run)


def test_the_last_checkpoint_of_a_run_that_fails_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, url = tmp_path / "run", f"file://{tmp_path / 'share'}"
    real = InlineEngine.run

    def fail(self: Any, *arguments: Any) -> Any:
        real(self, *arguments)
        raise TrainingFailed("at its end")

    monkeypatch.setattr(InlineEngine, "run", fail)
    with pytest.raises(TrainingFailed, match="at its end"):
        stopped(run, url)
    (run_id,) = {e["run"] for e in read(run / "metrics.jsonl") if e["event"] == "run_start"}
    assert RemoteCheckpoints(url, run_id).steps()[-1] == CheckpointStore(run).steps()[-1]


def test_a_directory_that_is_older_than_its_copies(tmp_path: Path) -> None:
    run, old, url = tmp_path / "run", tmp_path / "old", f"file://{tmp_path / 'share'}"
    stopped(run, url)
    shutil.copytree(run, old)
    assert tardygrad.resume(run, quiet=True).outcome == "done"
    newest = CheckpointStore(run).steps()[-1]
    assert newest > CheckpointStore(old).steps()[-1]
    assert tardygrad.resume(old, quiet=True).outcome == "done"
    assert f"does not record that checkpoint {newest} was made" in log(old)
    # The copies of both have numbers of their own.
    assert CheckpointStore(old).steps()[-1] > newest
    assert tardygrad.audit(old).exact


def test_what_a_killed_fetch_left_is_removed(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "a")
    (store.path / "fetched-000000000001").mkdir(parents=True)
    fetch_newer(RemoteCheckpoints(f"file://{tmp_path / 'share'}", "a"), store)
    assert not list(store.path.iterdir())


def test_a_place_that_is_connected_to_at_once_and_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``ftp`` does; later it answers."""
    remote_url, real = f"file://{tmp_path / 'share'}", fsspec.core.url_to_fs

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise ConnectionRefusedError(111, "Connection refused")

    with monkeypatch.context() as patch:
        patch.setattr("fsspec.core.url_to_fs", refuse)
        remote = RemoteCheckpoints(remote_url, "a")
        with pytest.raises(StorageError, match=r"^cannot reach file://.*Connection refused$"):
            remote.steps()
        run = tmp_path / "run"
        with pytest.raises(StorageError, match="cannot reach"):
            stopped(run, remote_url)
    assert fsspec.core.url_to_fs is real and remote.steps() == []
    stopped(tmp_path / "other", remote_url)
    with monkeypatch.context() as patch:
        patch.setattr("fsspec.core.url_to_fs", refuse)
        result = tardygrad.resume(tmp_path / "other", quiet=True, failure={"stop_s": 0.2})
    assert result.outcome == "done"
    assert "the copies of checkpoints are not looked at" in log(tmp_path / "other")
