"""A run directory holds one run, is driven by one process, and says what is wrong with it."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from tardygrad.errors import RunDirectoryError, StorageError
from tardygrad.storage import run_directory
from tardygrad.storage.checkpoints import CheckpointStore
from tardygrad.storage.lock import DirectoryLock
from tardygrad.storage.run_directory import RunDirectory

NOON = datetime(2026, 1, 31, 12, 0, 5, tzinfo=UTC)

DRIVE = """
import os, sys
from tardygrad.storage.run_directory import RunDirectory
run = RunDirectory.open(sys.argv[1], lock=True)
print(os.getpid(), flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def test_create_and_open(tmp_path: Path) -> None:
    with RunDirectory.create("out/run", "name: x\n", now=NOON) as run:
        assert run.path == tmp_path / "out/run"
        assert str(run) == "out/run"
        assert os.fspath(run) == str(tmp_path / "out/run")
        assert run.read_config() == "name: x\n"
    found = RunDirectory.open(tmp_path / "out/run")
    assert found.record == run.record
    assert len(found.record.run) == 32 and int(found.record.run, 16)
    assert found.record.created == "2026-01-31T12:00:05+00:00"
    assert (found.record.incarnation, found.record.outcome) == (0, None)


def test_every_run_has_its_own_id() -> None:
    ids = {RunDirectory.create(name, "").record.run for name in "abc"}
    assert len(ids) == 3


def test_the_paths() -> None:
    run = RunDirectory.create("run", "")
    files = [
        run.config_yaml,
        run.metrics_jsonl,
        run.checkpoints,
        run.trace,
        run.logs,
        run.events_log,
        run.job_pkl,
        run.run_json,
    ]
    assert [path.relative_to(run.path).as_posix() for path in files] == [
        "config.yaml",
        "metrics.jsonl",
        "checkpoints",
        "trace",
        "logs",
        "events.log",
        "job.pkl",
        "run.json",
    ]
    assert names(run.path) == ["checkpoints", "config.yaml", "lock", "logs", "run.json", "trace"]
    assert CheckpointStore(run).path == run.checkpoints


def test_a_mapping_becomes_yaml() -> None:
    document = {"name": "x", "model": {"factory": "a:b"}}
    run = RunDirectory.create("run", document)
    assert yaml.safe_load(run.read_config()) == document


def test_default_names_are_free_ones() -> None:
    runs = [RunDirectory.create(None, "", name="mnist", now=NOON) for _ in range(3)]
    assert [str(run) for run in runs] == [
        "runs/mnist-20260131-120005",
        "runs/mnist-20260131-120005-2",
        "runs/mnist-20260131-120005-3",
    ]


@pytest.mark.parametrize(
    ("name", "directory"),
    [("a/../b c", "a-..-b-c"), ("..", "run"), ("", "run"), ("größe", "größe")],
)
def test_any_name_makes_a_directory_below_runs(name: str, directory: str) -> None:
    run = RunDirectory.create(None, "", name=name, now=NOON)
    assert str(run) == f"runs/{directory}-20260131-120005"


def test_an_empty_directory_will_do() -> None:
    Path("empty").mkdir()
    RunDirectory.create("empty", "").close()
    assert RunDirectory.open("empty").record.incarnation == 0


def test_a_directory_with_a_run_is_refused() -> None:
    with RunDirectory.create("run", "one", now=NOON) as run:
        run.finish("preempted")
    with pytest.raises(RunDirectoryError) as caught:
        RunDirectory.create("run", "two")
    message = str(caught.value)
    assert message == (
        "run holds a run already (started 2026-01-31T12:00:05+00:00, preempted); go on with it by "
        "--resume run, or choose another directory with --out"
    )
    assert caught.value.exit_code == 2
    assert RunDirectory.open("run").read_config() == "one"


def test_a_directory_with_other_files_is_refused_untouched() -> None:
    Path("photos").mkdir()
    for name in ("a.jpg", "b.jpg", "config.yaml", "d.jpg", "e.jpg"):
        Path("photos", name).write_text(name)
    before = names(Path("photos"))
    with pytest.raises(RunDirectoryError, match=r"holds a.jpg, b.jpg, config.yaml and 2 more;"):
        RunDirectory.create("photos", "")
    assert names(Path("photos")) == before


def test_a_file_is_refused() -> None:
    Path("file").write_text("")
    with pytest.raises(RunDirectoryError, match="file is a file"):
        RunDirectory.create("file", "")
    with pytest.raises(RunDirectoryError, match="a part of the path is a file"):
        RunDirectory.create("file/below", "")
    with pytest.raises(RunDirectoryError, match="file is a file: expected the directory"):
        RunDirectory.open("file")


def test_opening_what_is_no_run_names_the_nearest() -> None:
    Path("folder").mkdir()
    with pytest.raises(RunDirectoryError, match=r"^folder holds no run: it has no run.json$"):
        RunDirectory.open("folder")
    RunDirectory.create("runs/mnist-1", "").close()
    with pytest.raises(RunDirectoryError, match=r"exist: .* \(did you mean runs/mnist-1\?\)"):
        RunDirectory.open("runs/mnits-1")
    with pytest.raises(RunDirectoryError, match=r"holds no run.*did you mean runs/mnist-1"):
        RunDirectory.open("runs")
    with pytest.raises(RunDirectoryError, match=r"^nowhere/at/all does not exist"):
        RunDirectory.open("nowhere/at/all", lock=True)
    assert not Path("nowhere").exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is damaged"),
        ("[]", "is damaged"),
        ("{}", "is damaged"),
        ('{"format": 1, "run": "x", "created": "y", "wheels": 4}', "is damaged"),
        ('{"format": 2}', "another version of tardygrad"),
    ],
)
def test_a_damaged_record(text: str, reason: str) -> None:
    RunDirectory.create("run", "").run_json.write_text(text)
    with pytest.raises(RunDirectoryError, match=rf"run\.json .*{reason}"):
        RunDirectory.open("run")
    with pytest.raises(RunDirectoryError, match="holds a run already;"):
        RunDirectory.create("run", "")


def test_incarnations_and_outcomes_are_kept() -> None:
    with RunDirectory.create("run", "") as run:
        run.finish("failed")
    with RunDirectory.open("run", lock=True) as again:
        assert again.record.outcome == "failed"
        assert again.next_incarnation() == 1
        assert RunDirectory.open("run").record.outcome is None
        again.finish("done")
    last = RunDirectory.open("run").record
    assert (last.incarnation, last.outcome, last.run) == (1, "done", run.record.run)


def test_another_model_under_the_same_name_is_refused() -> None:
    with RunDirectory.create("run", "") as run:
        run.check_layout("aaaa")
        run.check_layout("aaaa")
    with RunDirectory.open("run", lock=True) as again:
        with pytest.raises(RunDirectoryError, match="fingerprint aaaa, those given now bbbb"):
            again.check_layout("bbbb")
        again.check_layout("aaaa")


def test_reading_changes_nothing() -> None:
    RunDirectory.create("run", "").close()
    reader = RunDirectory.open("run")
    for change in (reader.next_incarnation, lambda: reader.finish("done")):
        with pytest.raises(RuntimeError, match="lock=True"):
            change()


def test_job_by_value() -> None:
    run = RunDirectory.create("run", "")
    assert run.read_job() is None
    run.write_job(b"pickled")
    assert RunDirectory.open("run").read_job() == b"pickled"


def test_missing_configuration() -> None:
    run = RunDirectory.create("run", "")
    run.config_yaml.unlink()
    with pytest.raises(RunDirectoryError, match=r"config\.yaml cannot be read: No such file"):
        run.read_config()


def test_one_driver_in_one_process() -> None:
    run = RunDirectory.create("run", "")
    with pytest.raises(RunDirectoryError, match=f"being driven by process {os.getpid()} on "):
        RunDirectory.open("run", lock=True)
    RunDirectory.open("run")  # looking is always allowed
    run.close()
    run.close()
    RunDirectory.open("run", lock=True).close()


def test_one_driver_among_processes_until_it_is_killed() -> None:
    RunDirectory.create("run", "").close()
    with subprocess.Popen(
        [sys.executable, "-c", DRIVE, "run"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as driver:
        assert driver.stdout is not None
        pid = driver.stdout.readline().strip()
        with pytest.raises(RunDirectoryError, match=f"run is being driven by process {pid} on"):
            RunDirectory.open("run", lock=True)
        driver.kill()
        driver.wait()
        RunDirectory.open("run", lock=True).close()


def test_two_creators_of_one_directory() -> None:
    """The second comes when the first has the lock but no record yet."""
    run = RunDirectory.create("run", "")
    run.run_json.unlink()
    run.config_yaml.unlink()
    for folder in (run.checkpoints, run.trace, run.logs):
        folder.rmdir()
    with pytest.raises(RunDirectoryError, match="is being driven by"):
        RunDirectory.create("run", "")


def test_a_creator_who_comes_a_moment_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its look at an empty directory and its lock, another run begins there and ends."""
    lock, faster = DirectoryLock, []

    def delayed(directory: Path) -> DirectoryLock:
        monkeypatch.setattr(run_directory, "DirectoryLock", lock)
        with RunDirectory.create(directory, "first") as run:
            faster.append(run.record)
        return lock(directory)

    monkeypatch.setattr(run_directory, "DirectoryLock", delayed)
    with pytest.raises(RunDirectoryError, match="holds a run already"):
        RunDirectory.create("run", "second")
    with RunDirectory.open("run", lock=True) as run:
        assert [run.record] == faster and run.read_config() == "first"


def test_a_lock_on_a_deleted_file_guards_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its holder deletes it between our opening and our locking it."""
    flock = fcntl.flock

    def delayed(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        (tmp_path / "lock").unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", delayed)
    lock = DirectoryLock(tmp_path)
    with pytest.raises(RunDirectoryError, match="is being driven"):
        DirectoryLock(tmp_path)
    lock.release()


def test_leftovers_of_a_killed_driver_are_cleared() -> None:
    with RunDirectory.create("run", "") as run:
        (run.path / ".run.json.0123abcd.tmp").write_text("{")
    RunDirectory.open("run").close()
    assert ".run.json.0123abcd.tmp" in names(run.path)
    RunDirectory.open("run", lock=True).close()
    assert ".run.json.0123abcd.tmp" not in names(run.path)


@pytest.mark.parametrize("existed", [False, True])
def test_a_full_disk_leaves_no_half_run(monkeypatch: pytest.MonkeyPatch, existed: bool) -> None:
    if existed:
        Path("run").mkdir()
    sync, left = os.fsync, [3]

    def fsync(descriptor: int) -> None:
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= 1
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(StorageError, match="the disk is full"):
            RunDirectory.create("run", "")
    assert Path("run").exists() == existed
    assert not existed or names(Path("run")) == []
    RunDirectory.create("run", "").close()


@pytest.mark.skipif(os.geteuid() == 0, reason="everything is writable for root")
def test_an_unwritable_place() -> None:
    Path("shut").mkdir(mode=0o500)
    with pytest.raises(RunDirectoryError, match=r"shut/run: permission denied; .*--out"):
        RunDirectory.create("shut/run", "")


def test_an_unwritable_place_even_for_root() -> None:
    if not Path("/proc/self").exists():
        pytest.skip("needs /proc, where nobody can create anything")
    with pytest.raises(RunDirectoryError) as caught:
        RunDirectory.create("/proc/run", "")
    assert str(caught.value) == (
        "cannot create the directory /proc/run: no directory can be made there; "
        "choose a directory elsewhere with --out"
    )


@pytest.mark.parametrize("path", ["run", None])
@pytest.mark.parametrize("call", ["mkdir", "open"])
def test_a_read_only_disk(path: str | None, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is to be made is refused: the directory, or in one that is there already, the lock."""
    if call == "open":
        Path("run").mkdir()
    before = names(Path())
    real = getattr(os, call)

    def refuse(place: str, *rest: int, **options: int) -> object:
        if call == "open" and not rest[0] & os.O_CREAT:
            return real(place, *rest, **options)
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), place)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(RunDirectoryError, match="the file system is read-only; choose a dir"):
            RunDirectory.create(path, "")
    if call == "mkdir":
        assert names(Path()) == before


def test_the_path_stays_right_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = RunDirectory.create("run", "name: x\n")
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert run.read_config() == "name: x\n"
    assert str(run) == str(tmp_path / "run")


def test_a_deleted_working_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("gone").mkdir()
    monkeypatch.chdir("gone")
    Path.cwd().rmdir()
    with pytest.raises(RunDirectoryError, match="the current directory was deleted"):
        RunDirectory.create("run", "")


def test_home_is_understood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert RunDirectory.create("~/run", "").path == tmp_path / "home" / "run"
