"""The journal's file: a disk that is full, and a process that dies while it is replaced."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tardygrad.errors import StorageError
from tardygrad.storage.journal import JournalFile


def test_it_is_appended_to_cut_and_replaced(tmp_path: Path) -> None:
    place = tmp_path / "scheduler" / "journal"
    file = JournalFile(place)
    assert file.read() == b""
    file.append(b"abc")
    file.append(b"def")
    file.cut(4)
    file.append(b"X")
    assert place.read_bytes() == b"abcdX"
    file.replace(b"new")
    file.append(b"er")
    assert JournalFile(place).read() == b"newer"


def test_what_a_killed_process_left_beside_it_is_in_nobodys_way(tmp_path: Path) -> None:
    file = JournalFile(tmp_path / "journal")
    file.append(b"old")
    (tmp_path / ".journal.new").write_bytes(b"half of a b")
    again = JournalFile(tmp_path / "journal")
    assert again.read() == b"old"
    again.replace(b"new")
    assert again.read() == b"new" and [p.name for p in tmp_path.iterdir()] == ["journal"]


def test_a_full_disk_is_told_and_the_old_content_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = JournalFile(tmp_path / "journal")
    file.append(b"old")
    real = os.write

    def write(descriptor: int, data: bytes) -> int:
        if len(data) <= 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(StorageError, match="journal: the disk is full"):
        file.replace(b"something new")
    assert file.read() == b"old"
    with pytest.raises(StorageError, match="the disk is full"):
        file.append(b"and more")
    assert file.read().startswith(b"old")
