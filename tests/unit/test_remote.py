"""Copies of checkpoints at a URL: whole or invisible, bounded, fetched when the local ones fail.

Every test runs at a folder, in fsspec's memory, and at S3: there against a real server process that
speaks its protocol, where ``moto`` and ``s3fs`` are installed.
"""

from __future__ import annotations

import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from copied_runs import log, model, stopped, until, write
from fsspec.implementations.local import LocalFileSystem
from safetensors.torch import load_file

import tardygrad
from tardygrad.cli import main
from tardygrad.config import RunConfig
from tardygrad.errors import (
    CheckpointError,
    ConfigError,
    StorageError,
)
from tardygrad.metrics.sink import read
from tardygrad.storage.checkpoints import MANIFEST, Checkpoint, CheckpointStore
from tardygrad.storage.remote import RemoteCheckpoints, fetch_newer
from tardygrad.storage.worker_files import WorkerFiles

pytestmark = pytest.mark.usefixtures("no_pictures")


# --- places -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server process that speaks S3; a URL of a bucket in it."""
    pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    log = tmp_path_factory.mktemp("s3") / "log"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with log.open("w") as output, pytest.MonkeyPatch.context() as patch:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            until(lambda: "http://" in log.read_text())
            address = "http://" + log.read_text().partition("http://")[2].split()[0]
            patch.setenv("AWS_ENDPOINT_URL", address)
            patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            fsspec.filesystem("s3").mkdir("bucket")
            yield "s3://bucket"
        finally:
            process.kill()
            process.wait()


@pytest.fixture(params=["file", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path / 'share'}"
    base = "memory://" if request.param == "memory" else request.getfixturevalue("s3") + "/"
    return f"{base}{secrets.token_hex(4)}"


def listing(url: str) -> list[str]:
    """All files below a URL, by their last two names."""
    fs, root = fsspec.core.url_to_fs(url)
    fs.invalidate_cache()
    found = fs.find(root) if fs.exists(root) else []
    return sorted("/".join(path.split("/")[-2:]) for path in found)


def spoil(url: str, change: Callable[[bytes], bytes] | None) -> None:
    """Change what stands at a URL, or delete it."""
    fs, path = fsspec.core.url_to_fs(url)
    if change is None:
        fs.rm_file(path)
    else:
        fs.pipe_file(path, change(fs.cat_file(path)))


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


# --- copies -----------------------------------------------------------------------------------


def whole(step: int) -> list[str]:
    names = (MANIFEST, "shard-000.safetensors", "shard-001.safetensors")
    return [f"{step:012d}/{name}" for name in names]


def test_a_copy_comes_back_equal(tmp_path: Path, url: str) -> None:
    store, remote = CheckpointStore(tmp_path / "a"), RemoteCheckpoints(url, "a")
    remote.claim("name")
    assert remote.steps() == []
    for step in (1, 2):
        remote.upload(write(store, step))
    remote.upload(store.read(2))  # once more: nothing happens
    assert remote.steps() == [1, 2]
    assert listing(remote.url) == [*whole(1), *whole(2), "a/run.json"]
    other = CheckpointStore(tmp_path / "b")
    told: list[str] = []
    fetch_newer(remote, other, told=lambda what, why: told.append(f"{what} {why}"))
    found = other.newest_valid()
    assert found is not None and (found.step, other.steps()) == (2, [2])
    assert torch.equal(other.load_shard(found, 1)[0]["parameters"], torch.full((9,), 2.0))
    assert told == [f"checkpoint 2 is fetched from {remote.url}"]
    assert [p.name for p in other.path.iterdir()] == [f"{2:012d}"]


@pytest.mark.parametrize("damage", ["", "flipped", "gone"])
def test_what_workers_left_is_copied_too(tmp_path: Path, url: str, damage: str) -> None:
    store, remote = CheckpointStore(tmp_path / "a"), RemoteCheckpoints(url, "a")
    files, left = WorkerFiles(tmp_path / "a"), {"residual": torch.ones(9)}
    files.write(1, 0, left, {"of": "it"})
    shards = [store.write_shard(1, 0, {"parameters": torch.ones(9)}, {})]
    manifest = {"workers": files.copy([[1, 0]], store.directory(1))}
    remote.upload(store.commit(1, manifest, shards))
    [entry] = manifest["workers"]
    assert f"{1:012d}/{entry['name']}" in listing(remote.url)
    if damage:
        spoil(f"{remote.url}/{1:012d}/{entry['name']}", flip if damage == "flipped" else None)
    other = CheckpointStore(tmp_path / "b")
    fetch_newer(remote, other)
    found = other.newest_valid()
    assert found is not None, "the model is whole without it"
    if damage:
        with pytest.raises(CheckpointError, match=entry["name"]):
            WorkerFiles.load(found.path, entry)
    else:
        assert torch.equal(WorkerFiles.load(found.path, entry)[0]["residual"], left["residual"])


def test_another_runs_are_elsewhere(tmp_path: Path, url: str) -> None:
    store = CheckpointStore(tmp_path)
    RemoteCheckpoints(url, "a").upload(write(store, 1))
    assert RemoteCheckpoints(url, "b").steps() == []


def test_only_so_many_are_kept_and_nothing_unfinished(tmp_path: Path, url: str) -> None:
    store, remote = CheckpointStore(tmp_path), RemoteCheckpoints(url, "a")
    for step in range(1, 7):
        remote.upload(write(store, step))
    spoil(f"{remote.url}/{5:012d}/{MANIFEST}", None)
    remote.prune(2)
    assert remote.steps() == [4, 6]
    assert listing(remote.url) == [*whole(4), *whole(6)]
    remote.prune(9)
    assert remote.steps() == [4, 6]


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("shard-001.safetensors", flip, "shard-001.safetensors is damaged"),
        ("shard-001.safetensors", lambda data: data[:-1], "shard-001.safetensors has"),
        ("shard-000.safetensors", None, "shard-000.safetensors is missing"),
        (MANIFEST, flip, "manifest.json is damaged"),
        (MANIFEST, lambda data: data[:-9], "manifest.json is damaged"),
    ],
)
def test_a_damaged_copy_is_passed_over_and_told(
    tmp_path: Path, url: str, name: str, change: Any, said: str
) -> None:
    store, remote = CheckpointStore(tmp_path / "a"), RemoteCheckpoints(url, "a")
    for step in (1, 2):
        remote.upload(write(store, step))
    spoil(f"{remote.url}/{2:012d}/{name}", change)
    other = CheckpointStore(tmp_path / "b")
    told: list[str] = []
    fetch_newer(remote, other, told=lambda what, why: told.append(why))
    assert other.steps() == [1]
    assert said in told[0] and remote.url in told[0]
    assert [p.name for p in other.path.iterdir()] == [f"{1:012d}"]


def test_a_torn_copy_is_invisible(tmp_path: Path, url: str) -> None:
    store, remote = CheckpointStore(tmp_path / "a"), RemoteCheckpoints(url, "a")
    remote.upload(write(store, 1))
    broken = write(store, 2)
    (broken.path / "shard-001.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        remote.upload(broken)
    assert remote.steps() == [1]


def test_what_is_whole_here_and_as_new_stays(tmp_path: Path, url: str) -> None:
    store, remote = CheckpointStore(tmp_path), RemoteCheckpoints(url, "a")
    for step in (1, 2):
        remote.upload(write(store, step))
    newest = store.directory(2) / "shard-000.safetensors"
    kept = newest.read_bytes()
    fetch_newer(remote, store)
    assert newest.read_bytes() == kept
    newest.write_bytes(kept[:-1])
    fetch_newer(remote, store)
    assert newest.read_bytes() == kept
    write(store, 3)
    fetch_newer(remote, store)
    assert store.steps() == [1, 2, 3]


def test_a_refused_copy(tmp_path: Path, url: str) -> None:
    store, remote = CheckpointStore(tmp_path / "a"), RemoteCheckpoints(url, "a")
    remote.upload(write(store, 1, run="a"))
    remote.upload(write(store, 2, run="b"))

    def check(checkpoint: Checkpoint) -> None:
        if checkpoint.manifest["run"] != "a":
            raise CheckpointError("of another run")

    other = CheckpointStore(tmp_path / "b")
    fetch_newer(remote, other, check)
    assert other.steps() == [1]


def test_a_manifest_cannot_write_elsewhere(tmp_path: Path) -> None:
    from dataclasses import replace

    store, remote = CheckpointStore(tmp_path / "a"), RemoteCheckpoints("memory://evil", "a")
    made = write(store, 1)
    (tmp_path / "secret").write_text("x")
    shards = (replace(made.shards[0], name="../../../secret"), made.shards[1])
    with pytest.raises(CheckpointError, match="names a file"):
        remote._fetch_files(replace(made, shards=shards), tmp_path, remote.url)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nonsense://x", "nonsense"),
        ("s3://bucket", r"tardygrad\[s3\]"),
    ],
)
def test_what_cannot_be_a_place(url: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if url.startswith("s3"):

        def missing(*arguments: Any, **options: Any) -> None:
            raise ImportError("Install s3fs to access S3")

        monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(ConfigError, match=said):
        RemoteCheckpoints(url, "a")


def test_a_url_without_protocol_is_refused() -> None:
    document = {
        "model": {"factory": "a:b"},
        "data": {"source": "mnist"},
        "checkpoint": {"url": "bucket/prefix"},
    }
    with pytest.raises(ConfigError, match=r"checkpoint\.url: .*expected a URL such as"):
        RunConfig.model_validate(document)


# --- whole runs -------------------------------------------------------------------------------


def test_a_run_goes_on_from_its_copies(tmp_path: Path, url: str) -> None:
    run = tmp_path / "run"
    assert stopped(run, url).outcome == "preempted"
    (run_id,) = {e["run"] for e in read(run / "metrics.jsonl") if e["event"] == "run_start"}
    remote = RemoteCheckpoints(url, run_id)
    local = CheckpointStore(run).steps()
    assert remote.steps()[-1] == local[-1] and len(remote.steps()) <= 2
    shutil.rmtree(run / "checkpoints")
    made = tardygrad.export(run, tmp_path / "model.safetensors")
    assert made.step == local[-1] and not (run / "checkpoints").exists()
    assert set(load_file(made.path)) == set(model().state_dict())
    result = tardygrad.resume(run, quiet=True, servers=3)
    assert result.outcome == "done"
    assert f"checkpoint {local[-1]} is fetched\tfrom {remote.url}" in log(run)
    assert tardygrad.audit(run).exact
    assert remote.steps()[-1] == CheckpointStore(run).steps()[-1] > local[-1]


def test_a_place_that_cannot_be_written_is_told_before_anything_is_trained(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match="nonsense"):
        stopped(tmp_path / "run", "nonsense://place")
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write file:///.*/file/deeper/"):
        stopped(tmp_path / "run", f"file://{tmp_path / 'file' / 'deeper'}")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    # Once it can be, the run goes on, from its beginning.
    (tmp_path / "file").unlink()
    assert tardygrad.resume(tmp_path / "run", quiet=True).outcome == "done"


def test_a_place_that_fails_later_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run, url = tmp_path / "run", f"file://{tmp_path / 'share'}"

    def put_file(*arguments: Any, **options: Any) -> Any:
        raise ConnectionError("the cable is out")

    with monkeypatch.context() as patch:
        patch.setattr(LocalFileSystem, "put_file", put_file)
        result = stopped(run, url, failure={"stop_s": 0.2})
    assert result.outcome == "preempted"
    assert "is not copied yet" in log(run) and "the cable is out" in log(run)
    assert "the newest checkpoint is not at" in caplog.text
    assert not [p for p in listing(url) if MANIFEST in p]

    def ls(*arguments: Any, **options: Any) -> Any:
        raise PermissionError("the door is shut")

    kept = tmp_path / "kept"
    shutil.copytree(run / "checkpoints", kept)
    shutil.rmtree(run / "checkpoints")
    with monkeypatch.context() as patch:
        patch.setattr(LocalFileSystem, "ls", ls)
        with pytest.raises(StorageError, match=r"cannot list .*: the door is shut"):
            tardygrad.resume(run, quiet=True)
        shutil.copytree(kept, run / "checkpoints")
        assert main(["train", "--resume", str(run), "--quiet"]) == 0
    assert "the copies of checkpoints are not looked at" in log(run)
    assert tardygrad.audit(run).exact


def test_numbers_of_checkpoints_are_not_used_again(tmp_path: Path) -> None:
    """Else an old copy could pass for a new one."""
    run, url = tmp_path / "run", f"file://{tmp_path / 'share'}"
    stopped(run, url)
    before = CheckpointStore(run).steps()
    for step in before[1:]:
        shutil.rmtree(CheckpointStore(run).directory(step))
    assert tardygrad.resume(run, quiet=True, checkpoint={"url": None}).outcome == "done"
    assert CheckpointStore(run).steps()[-1] > before[-1]
