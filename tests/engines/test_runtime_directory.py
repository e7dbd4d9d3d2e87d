"""Where a run's sockets and memory live, and which of them are leftovers."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tardygrad.engines import runtime_directory
from tardygrad.errors import StorageError


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(runtime_directory, "base", lambda: tmp_path)
    return tmp_path


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def directory(base: Path, pid: int, owner: object | None) -> Path:
    made = base / f"tardygrad-{os.getuid()}-{pid}-0123abcd"
    made.mkdir()
    (made / "arena").write_bytes(b"x")
    if owner is not None:
        (made / "owner.json").write_text(owner if isinstance(owner, str) else json.dumps(owner))
    return made


def owner(path: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((path / "owner.json").read_text())
    return found


def test_a_living_run_keeps_its_directory(base: Path) -> None:
    made = runtime_directory.create()
    assert made.parent == base
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert runtime_directory.clean() == []
    assert runtime_directory.create() != made and made.exists()
    runtime_directory.remove(made)
    assert not made.exists()
    runtime_directory.remove(made)


def test_what_a_dead_process_left_is_removed_by_the_next_run(base: Path) -> None:
    mine = owner(runtime_directory.create())
    left = directory(base, pid := dead_process(), {**mine, "pid": pid})
    assert runtime_directory.clean(dry_run=True) == [str(left)]
    assert left.exists()
    runtime_directory.create()
    assert not left.exists()


def test_a_number_that_is_used_again_protects_nothing(base: Path) -> None:
    mine = owner(runtime_directory.create())
    left = directory(base, os.getpid(), {**mine, "started": "1"})
    assert runtime_directory.clean() == [str(left)]


def test_a_directory_of_another_container_is_left_alone(base: Path) -> None:
    mine = owner(runtime_directory.create())
    directory(base, 1, {**mine, "pid": dead_process(), "space": "pid:[1]"})
    assert runtime_directory.clean() == []


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"pid": "x"}', '{"pid": -1}'])
def test_damaged_owners_own_nothing(base: Path, content: str) -> None:
    left = directory(base, os.getpid(), content)
    assert runtime_directory.clean() == [str(left)]


def test_without_an_owner_the_name_tells(base: Path) -> None:
    mine, left = directory(base, os.getpid(), None), directory(base, dead_process(), None)
    assert runtime_directory.clean() == [str(left)]
    assert mine.exists()


def test_other_files_are_nobodys_business(base: Path) -> None:
    (base / f"tardygrad-{os.getuid()}-1-file").write_text("")
    (base / "tardygrad-99999-1-abcd").mkdir()
    (base / "something-else").mkdir()
    assert runtime_directory.clean() == []


def test_no_place_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, base: Path) -> None:
    monkeypatch.setattr(runtime_directory, "base", lambda: base / "nowhere")
    with pytest.raises(StorageError, match="cannot make a directory for shared memory"):
        runtime_directory.create()
