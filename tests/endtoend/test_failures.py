"""What goes wrong by the user's code or the machine: one clear line, and nothing half done."""

from __future__ import annotations

import json
import os
import resource
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from real_runs import (
    SAMPLES,
    Paced,
    assert_exact,
    events,
    finish,
    members,
    saboteur,
    settings,
    training,
    wait_until,
)

import tardygrad
from tardygrad.cli import main
from tardygrad.errors import ConfigError, DataError, ModelError, TrainingFailed, UsageError
from tardygrad.storage.checkpoints import CheckpointStore

ME = os.getpid()


def _limit_files(pid: int, most_bytes: int) -> None:
    """From now on no file of the process may grow beyond that: as if the disk were full."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (most_bytes, most_bytes))


def test_a_full_disk_under_a_server(tmp_path: Path) -> None:
    run = tmp_path / "run"

    def deed() -> None:
        wait_until(lambda: events(run, "checkpoint"), "a checkpoint")
        _limit_files(members(ME, "server")["server-1"], 1000)

    document = settings(epochs=1000, checkpoint={"every_s": 0.2})
    with saboteur(deed), pytest.raises(TrainingFailed, match="server 1: cannot write") as failed:
        tardygrad.train(recipe=document, out=run, quiet=True)
    assert "\n" not in str(failed.value) and str(run) in str(failed.value)
    assert events(run, "run_end")[-1]["outcome"] == "failed"
    _assert_only_whole_checkpoints(run)


def test_a_full_disk_under_the_main_process(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = training(run, tmp_path, epochs=1000, checkpoint={"every_s": 0.2})
    wait_until(lambda: events(run, "checkpoint"), "a checkpoint")
    _limit_files(process.pid, (run / "metrics.jsonl").stat().st_size)
    status, errors = finish(process)
    assert status == 1
    (line,) = [e for e in errors.splitlines() if "error" in e]
    assert line.startswith("tardygrad: error: cannot append to")
    _assert_only_whole_checkpoints(run)


def _assert_only_whole_checkpoints(run: Path) -> None:
    store = CheckpointStore(run)
    newest = store.newest_valid()
    assert newest is not None
    assert not store.skipped
    visible = [p for p in (run / "checkpoints").iterdir() if (p / "manifest.json").exists()]
    assert newest.path in visible


class Raises(Paced):
    """Raises in the process of a worker, and not where the first batch is tried."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and "TARDYGRAD_WORKER" in os.environ:
            raise ArithmeticError("this batch\nis not for me")
        return super().forward(x)


class ComesAlong:
    """Can be sent to another process, but not be opened there."""

    def __reduce__(self) -> Any:
        return _cannot_be_made_here, (ME,)


def _cannot_be_made_here(pid: int) -> object:
    if os.getpid() == pid:
        return ComesAlong()
    raise ConnectionError("not in this process")


def no_scalar(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(output, target, reduction="none")


def bad_metric(output: torch.Tensor, target: torch.Tensor) -> float:
    raise ZeroDivisionError("no such measure")


def test_a_model_that_raises_is_told_with_its_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TrainingFailed) as failed:
        tardygrad.train(Raises(0.0), recipe=_bare(), out=tmp_path / "run")
    assert failed.value.exit_code == 1
    reason = str(failed.value)
    assert "ArithmeticError: this batch is not for me" in reason
    assert f"({__file__}, line " in reason and ", in forward)" in reason
    assert "Traceback" not in capfd.readouterr().err
    logs = [p.read_text() for p in (tmp_path / "run" / "logs").glob("worker-*.log")]
    assert any("Traceback" in log for log in logs)


def _bare(**changes: Any) -> dict[str, Any]:
    document = settings(epochs=1, workers=2, servers=1, **changes)
    del document["model"]
    return document


def test_a_loss_that_is_no_number_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"loss.*scalar"):
        tardygrad.train(
            Paced(0.0), loss=no_scalar, recipe=_bare(), out=tmp_path / "run", quiet=True
        )
    assert not (tmp_path / "run").exists()


def test_what_does_not_fit_is_told_before_anything_begins(tmp_path: Path) -> None:
    x, y = torch.randn(64, 31), torch.zeros(64, dtype=torch.long)
    with pytest.raises(ModelError, match=r"float32 \[32, 31\].*cannot be trained.*shapes"):
        tardygrad.train(Paced(0.0), (x, y), recipe=_bare(), out=tmp_path / "run", quiet=True)
    with pytest.raises(DataError, match=r"first batch: LookupError: no such sample \(.*line"):
        tardygrad.train(Paced(0.0), Holes(), recipe=_bare(), out=tmp_path / "run", quiet=True)
    with pytest.raises(ConfigError, match="Invalid learning rate"):
        document = _bare()
        document["method"]["optimizer"]["arguments"]["lr"] = -1.0
        tardygrad.train(Paced(0.0), recipe=document, out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


class Holes(torch.utils.data.Dataset[Any]):
    """Data that cannot be read."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        raise LookupError("no such sample")


def test_a_diverging_run_ends_and_says_so(tmp_path: Path) -> None:
    document = _bare()
    document["method"]["optimizer"]["arguments"]["lr"] = 1e12
    result = tardygrad.train(Paced(0.0), recipe=document, out=tmp_path / "run", quiet=True)
    assert result.outcome == "done"
    assert result.metrics["loss"] != result.metrics["loss"] or result.metrics["loss"] > 1e6
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_a_metric_that_raises_costs_no_training(tmp_path: Path) -> None:
    run = tmp_path / "run"
    document = _bare(evaluation={"every_epochs": 1})
    with pytest.raises(TrainingFailed, match="the final evaluation failed: ZeroDivisionError"):
        tardygrad.train(
            Paced(0.0), metrics={"bad": bad_metric}, recipe=document | {"epochs": 2}, out=run,
            quiet=True,
        )  # fmt: skip
    assert_exact(run, epochs=2, samples=SAMPLES)
    assert "the evaluator is gone" in (run / "events.log").read_text()


def test_what_cannot_travel_is_refused_before_anything_begins(tmp_path: Path) -> None:
    stuck = Paced(0.0)
    stuck.lock = threading.Lock()
    with pytest.raises(UsageError, match="cannot be sent to other processes"):
        tardygrad.train(lambda: stuck, recipe=_bare(), out=tmp_path / "run", quiet=True)


def test_what_cannot_be_opened_there_is_told(tmp_path: Path) -> None:
    module = Paced(0.0)
    module.companion = ComesAlong()
    with pytest.raises(TrainingFailed, match="ConnectionError: not in this process"):
        tardygrad.train(module, recipe=_bare(), out=tmp_path / "run", quiet=True)


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["--set", "model.factory=nowhere:model"], 2, "there is no module 'nowhere'"),
        (["--set", "model.factory=real_runs:pased"], 2, "did you mean 'paced'?"),
        (["--out", "/dev/null/run"], 2, "a part of the path is a file"),
        (["--out", "/proc/run"], 2, "no directory can be made there"),
    ],
)
def test_what_cannot_begin_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    words: list[str],
    status: int,
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "blobs", *words]) == status
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("tardygrad: error: ") and told in line
    assert not (tmp_path / "runs").exists()
