"""Workers join and leave a run of real processes; a machine without a free core kills nobody."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from real_runs import SAMPLES, assert_exact, settings, states, wait_until

import tardygrad
from tardygrad.callbacks import Callback
from tardygrad.errors import RunDirectoryError


def test_workers_join_and_leave(tmp_path: Path) -> None:
    run = tmp_path / "run"
    seen: list[list[dict[str, Any]]] = []

    def deed() -> None:
        wait_until(lambda: len(states(run, "worker", "ready")) >= 2, "two workers are there")
        seen.append(tardygrad.workers(run, add=2))
        wait_until(lambda: len(states(run, "worker", "ready")) >= 4, "two more are")
        wait_until(lambda: tardygrad.workers(run)[3]["samples"] > 0, "the last one works")
        seen.append(tardygrad.workers(run, remove=1))
        wait_until(lambda: tardygrad.workers(run)[3]["state"] == "left", "it has left")

    thread = threading.Thread(target=deed)
    thread.start()
    result = tardygrad.train(recipe=settings(workers=2, epochs=60), out=run, quiet=True)
    thread.join()
    assert result.outcome == "done", result.reason
    assert [len(rows) for rows in seen] == [4, 4]
    assert result.summary["workers"][3]["samples"] > 0
    assert_exact(run, epochs=60, samples=SAMPLES)
    with pytest.raises(RunDirectoryError, match="is done: it has no workers any more"):
        tardygrad.workers(run)


def test_a_callback_changes_the_crew(tmp_path: Path) -> None:
    class Grows(Callback):
        def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
            if epoch == 1:
                self.change_workers(add=1)

    run = tmp_path / "run"
    document = settings(workers=1, epochs=12)
    result = tardygrad.train(recipe=document, out=run, quiet=True, callbacks=[Grows()])
    assert result.outcome == "done" and len(result.summary["workers"]) == 2
    assert_exact(run, epochs=12, samples=SAMPLES)


def test_a_machine_without_a_free_core_kills_nobody(tmp_path: Path) -> None:
    run = tmp_path / "run"
    busy = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(2 * (os.cpu_count() or 1))
    ]
    try:
        result = tardygrad.train(recipe=settings(epochs=30), out=run, quiet=True)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert result.outcome == "done", result.reason
    for kind in ("worker", "server"):
        assert not states(run, kind, "suspected") and not states(run, kind, "died")
    assert_exact(run, epochs=30, samples=SAMPLES)
