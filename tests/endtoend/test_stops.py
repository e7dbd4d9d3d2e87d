"""Runs that are stopped, asked or not: nothing is lost, nothing stays behind, they can go on."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from real_runs import (
    SAMPLES,
    alive,
    assert_exact,
    command,
    descendants,
    epochs_begun,
    events,
    finish,
    leftovers,
    members,
    send,
    settings,
    states,
    training,
    wait_until,
)

import tardygrad
from stopping import StopAfter
from tardygrad.callbacks import Callback
from tardygrad.cli import main
from tardygrad.errors import ConfigError
from tardygrad.protocol import trace


def test_a_resumed_run_counts_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    process = training(run, tmp_path, epochs=1000, checkpoint={"every_s": 0.2})
    wait_until(lambda: newest_checkpoint(run) > 2 * SAMPLES, "a checkpoint in the third epoch")
    children = list(descendants(process.pid))
    assert len(children) >= 6
    send(members(process.pid, "worker")["worker-0"], signal.SIGSTOP)
    send(process.pid, signal.SIGKILL)
    process.communicate()
    wait_until(lambda: not alive(children), "all children are gone, the frozen one too")
    (left,) = leftovers(process.pid)

    # The next run removes what that one left, and its counts begin at the checkpoint.
    told = len(events(run, "progress"))
    epochs = epochs_begun(run) + 1
    with pytest.raises(ConfigError, match=f"has samples of epoch {epochs - 1}"):
        tardygrad.resume(run, quiet=True, epochs=epochs - 2)
    result = tardygrad.resume(run, quiet=True, epochs=epochs)
    assert result.outcome == "done", result.reason
    assert not left.exists()
    counts = [e["samples"] for e in events(run, "progress")][told:]
    assert 0 < counts[0] <= epochs * SAMPLES == counts[-1]
    assert counts == sorted(counts)
    assert states(run, "server", "ready")[-1]["reason"] != "v0"
    assert_exact(run, epochs=epochs, samples=SAMPLES)

    assert main(["ledger", str(run)]) == 0
    assert "exact" in capsys.readouterr().out
    _drop_last_record(run / "trace" / "shard-000.trace")
    assert main(["ledger", str(run)]) == 1


def newest_checkpoint(run: Path) -> int:
    return max((e["samples"] for e in events(run, "checkpoint")), default=0)


def _drop_last_record(path: Path) -> None:
    """Remove the last update that was applied, as if it had never been."""
    data = path.read_bytes()
    records = trace.decode_file(data, "trace")[2]
    behind = len(records) - max(i for i, r in enumerate(records) if r.kind == trace.APPLIED)
    size = trace.record_size(2)
    at = len(data) - behind * size
    path.write_bytes(data[:at] + data[at + size :])


def test_sigterm_and_resume_by_command(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = training(run, tmp_path, epochs=1000)
    send(process.pid, signal.SIGTERM)
    send(process.pid, signal.SIGTERM)  # some send it again; it changes nothing
    assert finish(process)[0] == 75
    end = events(run, "run_end")[-1]
    assert (end["outcome"], end["reason"]) == ("preempted", "SIGTERM was received")
    assert end["ledger"]["twice"] == 0

    epochs = end["samples"] // SAMPLES + 2
    process = command("train", "--resume", str(run), "--set", f"epochs={epochs}", "--quiet")
    assert finish(process)[0] == 0
    assert [e["outcome"] for e in events(run, "run_end")] == ["preempted", "done"]
    assert_exact(run, epochs=epochs, samples=SAMPLES)
    assert main(["train", "--resume", str(run)]) == 2  # it is done


def test_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = training(run, tmp_path, epochs=1000, model={
        # A step takes so long that the first interrupt alone would not be enough.
        "factory": "real_runs:paced", "arguments": {"pause_s": 0.5},
    })  # fmt: skip
    children = list(descendants(process.pid))
    send(members(process.pid, "worker")["worker-0"], signal.SIGSTOP)
    send(process.pid, signal.SIGINT)
    log = run / "events.log"
    wait_until(lambda: log.exists() and "SIGINT" in log.read_text(), "the first one is heard")
    send(process.pid, signal.SIGINT)
    status, errors = finish(process)
    assert status == 130
    assert errors.strip().splitlines()[-1] == "tardygrad: interrupted"
    wait_until(lambda: not alive(children), "all children are gone")
    assert not leftovers(process.pid)


def test_a_callback_stops_and_fewer_workers_go_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    document = settings(epochs=60)
    first = tardygrad.train(recipe=document, out=run, quiet=True, callbacks=[StopAfter(2)])
    assert (first.outcome, first.exit_code) == ("preempted", 75)
    assert first.reason == "StopAfter set stop_training"
    assert len(first.summary["workers"]) == 3
    epochs = first.summary["samples"] // SAMPLES + 2
    second = tardygrad.resume(run, quiet=True, workers=1, epochs=epochs)
    assert second.outcome == "done", second.reason
    assert len(second.summary["workers"]) == 1
    assert_exact(run, epochs=epochs, samples=SAMPLES)


class Broken(Callback):
    def __init__(self) -> None:
        self.calls = 0

    def on_step_end(self, samples: int, logs: dict[str, Any]) -> None:
        if samples:
            self.calls += 1
            raise LookupError("a bug in a callback")


def test_a_callback_that_raises_ends_the_run_in_good_order(tmp_path: Path) -> None:
    run, callback = tmp_path / "run", Broken()
    with pytest.raises(LookupError, match="a bug in a callback") as caught:
        tardygrad.train(recipe=settings(epochs=60), out=run, quiet=True, callbacks=[callback])
    assert "Broken.on_step_end" in caught.value.__notes__[0]
    assert callback.calls == 1
    assert events(run, "run_end")[-1]["outcome"] == "preempted"
    assert events(run, "checkpoint")
    assert not members(os.getpid(), "worker")
