"""The scheduler dies or stands still: another takes up its journal, and nothing is done twice."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from real_runs import (
    SAMPLES,
    alive,
    assert_exact,
    events,
    killing,
    members,
    saboteur,
    samples_of,
    send,
    settings,
    states,
    wait_until,
)

import tardygrad
from tardygrad.storage.traces import read_traces

ME = os.getpid()


def test_a_scheduler_killed_at_random_moments(tmp_path: Path) -> None:
    run = tmp_path / "run"
    document = settings(epochs=30)
    with killing(run, 1, scheduler=6):
        result = tardygrad.train(recipe=document, out=run, quiet=True)
    assert result.outcome == "done", result.reason
    died = states(run, "scheduler", "died")
    assert len(died) == 6
    assert {e["reason"] for e in died} == {"killed by SIGKILL"}
    back = states(run, "scheduler", "ready")[1:]
    assert all(e["reason"].startswith("away for") for e in back)
    assert result.summary["scheduler"]["restarts"] == 6
    # Nobody else was disturbed: the same processes, the same leases.
    for kind in ("worker", "server"):
        assert not states(run, kind, "died") and not states(run, kind, "suspected")
    assert_exact(run, epochs=30, samples=SAMPLES)
