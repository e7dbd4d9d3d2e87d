"""An evaluator that is slow, fails or dies; a machine that has little shared memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from real_runs import (
    HERE,
    SAMPLES,
    alive,
    assert_exact,
    events,
    members,
    saboteur,
    send,
    settings,
    wait_until,
)

import tardygrad

ME = os.getpid()


def slow(output: torch.Tensor, target: torch.Tensor) -> float:
    time.sleep(0.1)
    return 0.0


def test_a_slow_evaluator_measures_what_it_says(tmp_path: Path) -> None:
    run = tmp_path / "run"
    document = settings(epochs=16, evaluation={"every_epochs": 1, "batch_size": 128})
    document["data"]["arguments"]["test"] = 640  # half a second: more than an epoch takes
    result = tardygrad.train(recipe=document, metrics={"slow": slow}, out=run, quiet=True)
    assert result.outcome == "done", result.reason
    measured = [e for e in events(run, "evaluate") if not e["final"]]
    assert 2 <= len(measured) < 12
    log = (run / "events.log").read_text()
    assert "is not measured\tthe evaluator was still at an earlier one" in log
    told = events(run, "progress")
    for event in measured:
        # Progress counts what was booked by then, or a little earlier.
        before = [e["samples"] for e in told if e["time_s"] <= event["at_s"]]
        after = [e["samples"] for e in told if e["time_s"] >= event["at_s"] + 1.5]
        assert event["samples"] >= max(event["epoch"] * SAMPLES, *before, 0)
        assert event["samples"] <= min(after, default=16 * SAMPLES)


def _elsewhere() -> bool:
    return "TARDYGRAD_WORKER" not in os.environ and os.getpid() != int(os.environ["ASKED_IN"])


def late_error(output: torch.Tensor, target: torch.Tensor) -> float:
    if _elsewhere():
        time.sleep(2.0)
        raise ZeroDivisionError("after the end")
    return 0.0


def test_an_evaluator_that_dies_after_the_end_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASKED_IN", str(ME))
    run = tmp_path / "run"
    document = settings(
        # Longer than a test may take.
        epochs=2, evaluation={"every_epochs": 1}, failure={"stop_s": 600.0, "backoff_s": 0.01},
    )  # fmt: skip
    result = tardygrad.train(recipe=document, metrics={"late": late_error}, out=run, quiet=True)
    assert result.outcome == "done", result.reason
    assert "the evaluator is gone\tZeroDivisionError" in (run / "events.log").read_text()


def frozen_then_broken(output: torch.Tensor, target: torch.Tensor) -> float:
    if _elsewhere():
        killed = Path(os.environ["KILLED"])
        if not killed.exists():
            killed.with_suffix(".begun").touch()
            time.sleep(1000.0)
        raise ZeroDivisionError("no such measure")
    return 0.0


def test_a_replaced_evaluator_that_fails_is_not_replaced_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, killed = tmp_path / "run", tmp_path / "killed"
    monkeypatch.setenv("ASKED_IN", str(ME))
    monkeypatch.setenv("KILLED", str(killed))

    def deed() -> None:
        wait_until(killed.with_suffix(".begun").exists, "the evaluator measures")
        killed.touch()
        evaluator = members(ME, "evaluator")["evaluator-0"]
        send(evaluator, signal.SIGKILL)
        wait_until(lambda: not alive([evaluator]), "it is gone")

    document = settings(epochs=20, evaluation={"every_epochs": 1})
    with saboteur(deed):
        result = tardygrad.train(
            recipe=document, metrics={"m": frozen_then_broken}, out=run, quiet=True
        )
    assert result.outcome == "done", result.reason
    log = (run / "events.log").read_text()
    gone = [line.split("\t")[2] for line in log.splitlines() if "the evaluator is gone" in line]
    assert gone[0] == "killed by SIGKILL"
    assert [reason.split(":")[0] for reason in gone[1:]] == ["ZeroDivisionError"]


# --- little shared memory ---------------------------------------------------------------------

_MOUNT = 'mount -t tmpfs -o size="$0" tmpfs /dev/shm && exec "$@"'


def _with_little_memory(size: str, *words: str, **places: str) -> subprocess.Popen[str]:
    """``tardygrad ...`` where ``/dev/shm`` has so much room."""
    return subprocess.Popen(
        ["unshare", "-m", "bash", "-c", _MOUNT, size, sys.executable, "-m", "tardygrad", *words],
        env={**os.environ, "PYTHONPATH": str(HERE), "TARDYGRAD_DEBUG": "", **places},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _can_mount() -> bool:
    words = ["unshare", "-m", "bash", "-c", _MOUNT, "1m", "true"]
    try:
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


little_memory = pytest.mark.skipif(not _can_mount(), reason="no right to mount anything here")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    place = tmp_path / "disk"
    place.mkdir()
    return place


def _document(tmp_path: Path, *, epochs: int, train: int = 20 * SAMPLES) -> str:
    document = settings(epochs=epochs)
    document["model"]["arguments"] = {"pause_s": 0.0 if epochs == 1 else 0.01}
    document["data"]["arguments"]["train"] = train
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(document))
    return str(path)


@little_memory
@pytest.mark.parametrize(("size", "arena_too"), [("3m", False), ("512k", True)])
def test_with_little_shared_memory_a_run_starts_anyway(
    tmp_path: Path, disk: Path, size: str, arena_too: bool
) -> None:
    run = tmp_path / "run"
    words = ("train", _document(tmp_path, epochs=1), "--out", str(run))
    process = _with_little_memory(size, *words, TMPDIR=str(disk))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert_exact(run, epochs=1, samples=20 * SAMPLES)
    log = (run / "events.log").read_text()
    assert "the training data lies on disk, at" in log and "--shm-size" in log
    assert ("the exchange between workers and servers lies on disk" in log) == arena_too
    assert not list(disk.glob("tardygrad-*"))


@little_memory
def test_what_a_killed_run_left_on_disk_is_cleaned(tmp_path: Path, disk: Path) -> None:
    run = tmp_path / "run"
    words = ("train", _document(tmp_path, epochs=1000), "--out", str(run))
    process = _with_little_memory("3m", *words, TMPDIR=str(disk))
    wait_until(lambda: events(run, "progress") or process.poll() is not None, "it runs")
    assert process.poll() is None, process.communicate()
    (companion,) = disk.glob("tardygrad-*")
    process.kill()
    process.communicate()
    cleaned = subprocess.run(
        [sys.executable, "-m", "tardygrad", "clean"],
        env={**os.environ, "TMPDIR": str(disk)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert str(companion) in cleaned.stdout
    assert not companion.exists()


@little_memory
def test_without_room_anywhere_the_error_names_what_is_too_large(tmp_path: Path) -> None:
    words = ("train", _document(tmp_path, epochs=1), "--out", str(tmp_path / "run"), "--quiet")
    process = _with_little_memory("2m", *words, TMPDIR="/dev/shm")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    (line,) = errors.splitlines()
    assert "no room for the training data" in line and "fewer workers" not in line
