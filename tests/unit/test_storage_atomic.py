"""A file is whole or absent, and what the operating system refuses is said in one line."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tardygrad.errors import StorageError
from tardygrad.storage.atomic import (
    make_directory,
    remove_leftovers,
    replace,
    storage_error,
    write_bytes,
    write_json,
)


class FullDisk:
    """Stands in for ``os.fsync``: the n-th call and all later ones find the disk full."""

    def __init__(self, after: int = 0, code: int = errno.ENOSPC) -> None:
        self.left = after
        self.code = code

    def __call__(self, descriptor: int) -> None:
        if self.left == 0:
            raise OSError(self.code, os.strerror(self.code))
        self.left -= 1


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def test_writes_the_bytes(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"first")
    write_bytes(tmp_path / "a", memoryview(b"second"))
    assert (tmp_path / "a").read_bytes() == b"second"
    assert names(tmp_path) == ["a"]


texts = st.text(alphabet='aé"\n\ud800', max_size=3)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(document=json_values)
def test_json_reads_back_equal(tmp_path: Path, document: object) -> None:
    write_json(tmp_path / "a.json", document)
    assert json.loads((tmp_path / "a.json").read_bytes()) == document


def test_new_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_reader_never_meets_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    contents = {bytes([letter]) * size for letter, size in ((65, 10), (66, 300_000))}
    write_bytes(path, min(contents))
    done = threading.Event()

    def write() -> None:
        for _ in range(20):
            for content in contents:
                write_bytes(path, content)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        seen.add(path.read_bytes())
    writer.join()
    assert seen <= contents


def test_the_order_is_sync_rename_sync_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        log.append(f"{name[:2]} {(tmp_path / 'a').exists()}")
        sync(descriptor)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    monkeypatch.setattr(os, "fsync", fsync)
    write_bytes(tmp_path / "a", b"x")
    assert log == [".a False", f"{tmp_path.name[:2]} True"]


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EACCES, "permission denied"),
        (errno.EROFS, "read-only"),
        (errno.EIO, "device"),
        (errno.ECHILD, os.strerror(errno.ECHILD)),
    ],
)
def test_failure_keeps_the_old_file_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, cause: str
) -> None:
    path = tmp_path / "a"
    write_bytes(path, b"old")
    monkeypatch.setattr(os, "fsync", FullDisk(code=code))
    with pytest.raises(StorageError) as caught:
        write_bytes(path, b"new")
    message = str(caught.value)
    assert cause in message and str(path) in message and "--out" in message
    assert "\n" not in message
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_disk_that_is_really_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    opened = os.open

    def open_full(path: os.PathLike[str], flags: int, mode: int = 0o777) -> int:
        os.close(opened(path, flags, mode))
        return opened("/dev/full", os.O_WRONLY)

    monkeypatch.setattr(os, "open", open_full)
    with pytest.raises(StorageError, match=r"the disk is full \([0-9.]+ MB free"):
        write_bytes(tmp_path / "a", b"x" * size)
    assert names(tmp_path) == []


def test_failure_of_the_directory_sync_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", FullDisk(after=1))
    with pytest.raises(StorageError, match="the disk is full"):
        write_bytes(tmp_path / "a", b"x")


def test_a_file_system_without_directory_sync_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", FullDisk(after=1, code=errno.EINVAL))
    write_bytes(tmp_path / "a", b"x")
    assert (tmp_path / "a").read_bytes() == b"x"


def test_missing_directory_and_directory_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="its directory does not exist"):
        write_bytes(tmp_path / "gone" / "a", b"x")
    (tmp_path / "taken").mkdir()
    with pytest.raises(StorageError, match="directory of that name is in the way"):
        write_bytes(tmp_path / "taken", b"x")
    assert names(tmp_path) == ["taken"]


def test_an_interrupted_block_changes_nothing(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"old")
    with pytest.raises(KeyboardInterrupt), replace(tmp_path / "a") as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_an_error_about_another_file_is_not_disguised(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replace(tmp_path / "a") as file:
        file.write((tmp_path / "no such input").read_bytes())
    assert names(tmp_path) == []


def test_make_directory(tmp_path: Path) -> None:
    make_directory(tmp_path / "a" / "b")
    make_directory(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    write_bytes(tmp_path / "file", b"")
    for blocked in ("file", "file/below"):
        with pytest.raises(StorageError, match=r"cannot create the directory .*file"):
            make_directory(tmp_path / blocked)


def test_remove_leftovers_takes_only_its_own(tmp_path: Path) -> None:
    for name in (".a.0123abcd.tmp", ".a.tmp", "a.tmp", ".hidden"):
        write_bytes(tmp_path / name, b"")
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path / "gone")
    assert names(tmp_path) == [".a.tmp", ".hidden", "a.tmp"]


def test_reading_has_its_own_advice() -> None:
    missing = storage_error(FileNotFoundError(errno.ENOENT, "x"), "a", "read")
    assert str(missing) == "cannot read a: it does not exist; check the path"
    locked = storage_error(PermissionError(errno.EACCES, "x"), "a", "read")
    assert "make it readable" in str(locked)
