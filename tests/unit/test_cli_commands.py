"""The commands that look at runs and at the machine: what they print, and their exit statuses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tardygrad.auditing import Audit, Row
from tardygrad.cli import doctor, main
from tardygrad.cli.doctor import Check, cpu_quota, memory_sizes
from tardygrad.data import mnist

PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"

Install = Callable[..., None]


@dataclass
class ReplayReport:
    matches: bool
    expected: str = "aa"
    found: str = "aa"
    updates: int = 12
    seconds: float = 0.5


def row(
    epoch: int,
    shard: int,
    applied: int,
    missing: int = 0,
    twice: int = 0,
    complete: bool = True,
) -> Row:
    return Row(epoch, shard, applied, 0, missing, twice, complete)


BOOKS = Audit(True, [row(epoch, shard, 60_000) for epoch in (1, 2) for shard in (0, 1)])


def test_ledger_exact(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("auditing", audit=lambda run: BOOKS)
    assert main(["ledger", "runs/a"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["epoch", "shard", "applied", "dropped", "missing", "twice"]
    assert lines[2].split() == ["1", "1", "60000", "0", "0", "0"]
    assert lines[-1] == BOOKS.verdict()


def test_ledger_not_exact(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row(1, 0, 90, missing=10), row(1, 1, 110, twice=10), row(2, 0, 5, complete=False)]
    install("auditing", audit=lambda run: Audit(False, rows))
    assert main(["ledger", "runs/a"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("  <-")[1] != "" for line in lines[1:4]] == [True, True, False]
    assert lines[3].split()[4] == "0" and lines[3].endswith("under way, 0 to come")
    assert lines[-1].startswith("NOT EXACT: ")


def test_ledger_for_programs(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("auditing", audit=lambda run: Audit(False, [row(1, 0, 90, missing=10)]))
    assert main(["ledger", "runs/a", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {
        "exact": False,
        "rows": [
            {
                "epoch": 1,
                "shard": 0,
                "applied": 90,
                "dropped": 0,
                "missing": 10,
                "twice": 0,
                "complete": True,
            }
        ],
    }


@pytest.mark.parametrize(
    ("report", "status", "expected"),
    [
        (ReplayReport(True), 0, "same parameters, bit for bit: 12 updates repeated in 0.5 s, dige"),
        (ReplayReport(False, found="bb"), 1, "NOT the same parameters after 12 updates: the run "),
    ],
)
def test_replay(
    report: ReplayReport,
    status: int,
    expected: str,
    install: Install,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def replay(run: Path, progress: Callable[[int, int], None] | None = None) -> ReplayReport:
        assert run == Path("runs/a")
        if progress is not None:
            progress(6, 12)
        return report

    install("replaying", replay=replay)
    assert main(["replay", "runs/a"]) == status
    assert capsys.readouterr().out.startswith(expected)
    assert main(["replay", "runs/a", "--quiet"]) == status
    assert (capsys.readouterr().out == "") is report.matches


def test_a_replay_tells_how_far_it_is_where_nobody_looks_at_a_terminal(
    install: Install, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def replay(run: Path, progress: Callable[[int, int], None]) -> ReplayReport:
        progress(1_500, 6_000)
        return ReplayReport(True)

    install("replaying", replay=replay)
    monkeypatch.setattr("tardygrad.cli.replay._TELL_EVERY_S", 0.0)
    assert main(["replay", "runs/a"]) == 0
    assert capsys.readouterr().err == "replaying: 1,500 of 6,000 steps (25 %)\n"


def test_the_next_command_works_where_no_environment_is_activated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tardygrad.cli.summary import _command

    bin_ = tmp_path / "own" / "bin"
    bin_.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(bin_ / "python"))
    monkeypatch.setenv("PATH", "")
    assert _command() == "python -m tardygrad"
    (bin_ / "tardygrad").touch(mode=0o755)
    assert _command() == str(Path("own/bin/tardygrad"))
    monkeypatch.chdir(bin_.parent.parent.parent)
    assert _command().endswith("own/bin/tardygrad")
    monkeypatch.setenv("PATH", str(bin_))
    assert _command() == "tardygrad"


def test_report(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("metrics.report", report=lambda run: [run / "curves.png", run / "metrics.mat"])
    assert main(["report", "runs/a"]) == 0
    assert capsys.readouterr().out == "runs/a/curves.png\nruns/a/metrics.mat\n"


@pytest.mark.parametrize(
    ("left", "words", "expected"),
    [
        (["/dev/shm/x"], ["clean"], "/dev/shm/x\n1 removed\n"),
        (["/dev/shm/x"], ["clean", "--dry-run"], "/dev/shm/x\n1 would be removed\n"),
        ([], ["clean"], "nothing was left behind\n"),
    ],
)
def test_clean(
    left: list[str],
    words: list[str],
    expected: str,
    install: Install,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[bool] = []

    def clean(dry_run: bool = False) -> list[str]:
        asked.append(dry_run)
        return left

    install("engines.runtime_directory", clean=clean)
    assert main(words) == 0
    assert capsys.readouterr().out == expected
    assert asked == ["--dry-run" in words]


# doctor


def test_doctor(
    install: Install, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install("engines.runtime_directory", clean=lambda dry_run=False: ["x"])
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for subject in ("python", "torch", "numpy", "cores", "memory", "disk", "GPU", "MNIST"):
        assert f"  {subject} " in shown
    assert "WARN  leftovers          1 left behind by dead runs\n" in shown
    assert "-> tardygrad clean\n" in shown

    def broken() -> list[Check]:
        return [Check("error", "torch", "not installed", "pip install torch")]

    monkeypatch.setattr(doctor, "_EXAMINATIONS", (broken,))
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out.endswith("-> pip install torch\n")
    assert main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[0]["level"] == "error"


def test_the_doctor_asks_for_every_package_that_is_needed() -> None:
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    needed = [re.split("[<>=]", line)[0] for line in project["dependencies"]]
    assert sorted(doctor._PACKAGES) == sorted(needed)


def test_a_torch_that_is_broken_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libtorch.so:\\nnot found')")
    done = subprocess.run(
        [sys.executable, "-m", "tardygrad", "doctor"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    broken = "FAIL  torch              cannot be imported: OSError: libtorch.so: not found"
    assert lines[lines.index(broken) + 1].lstrip().startswith("-> install torch again")
    assert "WARN  data               cannot be examined: OSError: libtorch.so: not found" in lines
    assert any(line.startswith("ok    disk ") for line in lines)


def test_an_examination_that_fails_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def disk() -> Iterator[Check]:
        yield Check("ok", "memory", "8 GiB")
        raise FileNotFoundError("gone")

    def last() -> Iterator[Check]:
        yield Check("ok", "GPU", "none")

    monkeypatch.setattr(doctor, "_EXAMINATIONS", (disk, last))
    assert main(["doctor"]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["ok", "memory"],
        ["WARN", "disk"],
        ["ok", "GPU"],
    ]


@pytest.mark.parametrize(
    ("files", "level", "found"),
    [
        ({"a": Path("x/a"), "b": Path("y/b")}, "ok", "x"),
        ({"a": Path("x/a"), "b": None}, "warning", "1 of its 2 files are not on this machine"),
        ({"a": None, "b": None}, "warning", "not on this machine"),
    ],
)
def test_all_of_mnist_must_be_there(
    files: dict[str, Path | None], level: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mnist, "locate", lambda: files)
    [check] = doctor.data()
    assert (check.level, check.found) == (level, found)


@pytest.mark.parametrize(
    ("text", "cores"), [("max 100000", None), ("150000 100000\n", 1.5), ("", None)]
)
def test_cores_of_a_control_group(text: str, cores: float | None) -> None:
    assert cpu_quota(text) == cores


def test_memory_of_a_machine() -> None:
    text = "MemTotal:       16000 kB\nMemFree:        1 kB\nMemAvailable:   8000 kB\n"
    assert memory_sizes(text) == (16000 * 1024, 8000 * 1024)
    assert memory_sizes("") == (None, None)
