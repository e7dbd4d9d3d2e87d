"""Real runs that go on with another number of servers, and from copies at a URL."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from real_runs import (
    SAMPLES,
    assert_exact,
    events,
    finish,
    members,
    send,
    training,
    wait_until,
)

import tardygrad
from tardygrad.cli import main
from tardygrad.errors import CheckpointError, TrainingFailed
from tardygrad.storage.checkpoints import CheckpointStore
from tardygrad.storage.traces import cuts


@pytest.mark.parametrize(
    "method",
    [
        {
            "name": "async_sgd",
            "in_flight": 2,
            "optimizer": {"class": "Adam", "arguments": {"lr": 0.001}},
        },
        {"name": "dana"},
        {"name": "local_sgd"},
    ],
    ids=lambda method: method["name"],
)
def test_after_a_clean_stop_the_shards_may_change(tmp_path: Path, method: dict[str, Any]) -> None:
    run = tmp_path / "run"
    process = training(run, tmp_path, epochs=1000, method=method)
    send(process.pid, signal.SIGTERM)
    assert finish(process)[0] == 75
    epochs = events(run, "run_end")[-1]["samples"] // SAMPLES + 2
    result = tardygrad.resume(run, quiet=True, servers=3, workers=2, epochs=epochs)
    assert result.outcome == "done"
    result = tardygrad.resume(run, quiet=True, servers=1, workers=3, epochs=epochs + 1)
    assert result.outcome == "done"
    assert len(cuts(run)) == 2
    assert_exact(run, epochs=epochs + 1, samples=SAMPLES)
    assert main(["ledger", str(run)]) == 0


def test_after_a_kill_they_may_be_cut_but_not_joined(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = training(run, tmp_path, epochs=1000, checkpoint={"every_s": 0.2})
    wait_until(lambda: len(events(run, "checkpoint")) > 3, "some checkpoints")
    send(process.pid, signal.SIGKILL)
    process.communicate()
    # Checkpoints may be some epochs ahead of what was told last.
    epochs = events(run, "progress")[-1]["samples"] // SAMPLES + 20
    try:
        result = tardygrad.resume(run, quiet=True, servers=1, epochs=epochs)
    except CheckpointError as error:
        assert "servers=2, stop it with Ctrl-C" in str(error)
        result = tardygrad.resume(run, quiet=True, servers=4, epochs=epochs)
    assert result.outcome == "done"
    assert_exact(run, epochs=epochs, samples=SAMPLES)


def test_a_server_that_finds_no_whole_checkpoint_ends_the_run_in_one_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = training(run, tmp_path, epochs=1000, checkpoint={"every_s": 0.2, "keep": 2})
    wait_until(lambda: len(events(run, "checkpoint")) > 2, "some checkpoints")
    # Nothing newer comes while it is damaged: the server is stopped.
    victim = members(process.pid, "server")["server-1"]
    send(victim, signal.SIGSTOP)
    # Also those of a checkpoint whose manifest is still to come.
    for path in run.glob("checkpoints/*/shard-001*"):
        path.write_bytes(b"nothing")
    send(victim, signal.SIGKILL)
    status, errors = finish(process)
    assert status == 1
    assert "shard 1 cannot be restored" in errors + events(run, "run_end")[-1]["reason"]
    assert events(run, "run_end")[-1]["outcome"] == "failed"
    with pytest.raises((CheckpointError, TrainingFailed), match="can be used"):
        tardygrad.resume(run, quiet=True)


def test_a_killed_run_goes_on_from_its_copies(tmp_path: Path) -> None:
    run, share = tmp_path / "run", tmp_path / "share"
    checkpoint = {"every_s": 0.2, "keep": 2, "url": f"file://{share}"}
    process = training(run, tmp_path, epochs=1000, checkpoint=checkpoint)
    wait_until(lambda: "is copied" in (run / "events.log").read_text(), "a copy")
    send(process.pid, signal.SIGKILL)
    process.communicate()
    shutil.rmtree(run / "checkpoints")
    # Checkpoints may be some epochs ahead of what was told last.
    epochs = events(run, "progress")[-1]["samples"] // SAMPLES + 20
    result = tardygrad.resume(run, quiet=True, epochs=epochs)
    assert result.outcome == "done"
    assert "is fetched" in (run / "events.log").read_text()
    assert_exact(run, epochs=epochs, samples=SAMPLES)
    steps = [int(p.parent.name) for p in share.rglob("manifest.json")]
    assert len(steps) <= 2 and max(steps) == CheckpointStore(run).steps()[-1]
