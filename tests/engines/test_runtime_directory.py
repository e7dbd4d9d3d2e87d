"""Where a run's sockets and memory live, and which of them are leftovers."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tardygrad.engines import runtime_directory
from tardygrad.errors import StorageError


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("memory", "disk"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(runtime_directory, "base", lambda: tmp_path / "memory")
    monkeypatch.setattr(runtime_directory, "disk_base", lambda: tmp_path / "disk")
    return tmp_path / "memory"


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


# --- room -------------------------------------------------------------------------------------

MIB = 1 << 20


@pytest.fixture
def little_memory(base: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """As if so much room were left; the disk's can be changed."""
    room = {"memory": 2 * MIB, "disk": 1000 * MIB}
    allocate = os.posix_fallocate

    def free(place: Path) -> int:
        return room["memory" if place.is_relative_to(base) else "disk"]

    def fallocate(descriptor: int, offset: int, size: int) -> None:
        place = Path(f"/proc/self/fd/{descriptor}").readlink()
        if size > free(place):
            raise OSError(errno.ENOSPC, "No space left on device")
        allocate(descriptor, offset, size)

    monkeypatch.setattr(runtime_directory, "free_bytes", free)
    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    return room


def test_what_fits_lies_in_memory(base: Path, little_memory: dict[str, int]) -> None:
    made = runtime_directory.create()
    os.close(runtime_directory.reserve(made / "arena", MIB // 2))
    assert not (made / "arena").is_symlink()
    assert (made / "arena").stat().st_size == MIB // 2
    assert runtime_directory.decisions(made) == []
    assert not list((base.parent / "disk").iterdir())


@pytest.mark.parametrize("guess", [2 * MIB, 1000 * MIB], ids=["known", "taken meanwhile"])
def test_what_does_not_fit_lies_on_disk(
    base: Path, little_memory: dict[str, int], monkeypatch: pytest.MonkeyPatch, guess: int
) -> None:
    monkeypatch.setattr(runtime_directory, "free_bytes", lambda place: guess)
    made = runtime_directory.create()
    for name in ("train", "test"):
        descriptor = runtime_directory.reserve(made / name, 20 * MIB)
        os.write(descriptor, b"data")
        os.close(descriptor)
        assert (made / name).read_bytes()[:4] == b"data"
    (companion,) = (base.parent / "disk").iterdir()
    assert stat.S_IMODE(companion.stat().st_mode) == 0o700
    assert (made / "train").resolve() == companion / "train"
    told = runtime_directory.decisions(made)
    assert [decision for decision, _ in told] == [
        f"the test data lies on disk, at {companion / 'test'}",
        f"the training data lies on disk, at {companion / 'train'}",
    ]
    assert "20 MiB are needed" in told[0][1] and "--shm-size" in told[0][1]
    assert runtime_directory.clean() == []
    runtime_directory.remove(made)
    assert not made.exists() and not companion.exists()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("train", "no room for the training data: 20 MiB are needed, 2.0 MiB are free in"),
        ("arena", "no room for the exchange between .*use fewer workers or a smaller model"),
    ],
)
def test_what_fits_nowhere_is_named(
    base: Path, little_memory: dict[str, int], name: str, told: str
) -> None:
    little_memory["disk"] = 3 * MIB
    made = runtime_directory.create()
    with pytest.raises(StorageError, match=told) as caught:
        runtime_directory.reserve(made / name, 20 * MIB)
    assert "3.0 MiB in" in str(caught.value) and "TMPDIR" in str(caught.value)
    runtime_directory.remove(made)
    assert not list((base.parent / "disk").iterdir())


def test_what_a_dead_process_left_on_disk_is_removed(
    base: Path, little_memory: dict[str, int]
) -> None:
    made = [runtime_directory.create() for _ in range(2)]
    pid = dead_process()
    for directory_ in made:
        os.close(runtime_directory.reserve(directory_ / "train", 20 * MIB))
    for place in (*base.iterdir(), *(base.parent / "disk").iterdir()):
        (place / "owner.json").write_text(json.dumps({**owner(place), "pid": pid}))
    # Memory is empty after the machine was started again, and the disk is not.
    shutil.rmtree(made[1])
    assert len(runtime_directory.clean(dry_run=True)) == 3
    runtime_directory.clean()
    assert not list(base.iterdir()) and not list((base.parent / "disk").iterdir())


def test_a_strangers_directory_is_not_looked_into(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = directory(base, dead_process(), "")
    me = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)
    left.rename(left.with_name(f"tardygrad-{me + 1}-1-0123abcd"))
    (base / f"tardygrad-{me + 1}-2-0123abcd").symlink_to(base.parent / "disk")
    assert runtime_directory.clean() == []
