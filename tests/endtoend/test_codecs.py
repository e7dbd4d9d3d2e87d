"""Codecs in real processes: members die, runs stop and go on, and the replay is the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from real_runs import (
    SAMPLES,
    assert_exact,
    killing,
    settings,
)

import tardygrad
from stopping import StopAfter

AGAIN = {"name": "cut_off", "below": 1, "again": True}
CASES: list[dict[str, Any]] = [
    {"name": "async_sgd", "codec": {"name": "top_k", "fraction": 0.1}},
    {"name": "async_sgd", "codec": "int8", "mixing": 0.7, "in_flight": 2},
    {"name": "rennala", "codec": "scaled_sign", "staleness": AGAIN},
    {"name": "diloco", "codec": "power_sgd", "exchange_period": 4},
    {"name": "sync_sgd", "codec": "fp16"},
]


@pytest.mark.parametrize("method", CASES, ids=lambda m: f"{m['name']}-{m['codec']}")
def test_members_die_the_run_stops_and_goes_on_and_is_repeated(
    method: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"

    document = settings(epochs=12, method=method, checkpoint={"every_s": 0.3})
    with killing(run, 2, worker=2, server=1):
        first = tardygrad.train(recipe=document, out=run, quiet=True, callbacks=[StopAfter(6)])
    assert first.outcome in ("preempted", "done"), first.reason
    assert 0 < first.summary["bytes_pushed"] < first.summary["bytes_unencoded"]
    epochs = first.summary["samples"] // SAMPLES + 3
    second = tardygrad.resume(run, quiet=True, epochs=epochs)
    assert second.outcome == "done", second.reason
    assert_exact(run, epochs=epochs, samples=SAMPLES)
    log = (run / "events.log").read_text(encoding="utf-8")
    # All workers left in good order, so every one of them goes on with what it had left out.
    assert "what codecs left out at the workers" not in log
    assert '"before"' in (run / "trace" / "residuals.jsonl").read_text()
    assert tardygrad.replay(run).matches
