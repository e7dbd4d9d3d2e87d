"""Rounds, groups and replicas in real processes: members die, and the replay is the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from real_runs import (
    SAMPLES,
    assert_exact,
    killing,
    settings,
    states,
)

import tardygrad

EPOCHS = 8
METHODS: list[dict[str, Any]] = [
    {"name": "sync_sgd", "admission": {"name": "quorum", "count": 2, "grace_s": 0.005}},
    {"name": "rennala", "staleness": {"name": "cut_off", "below": 1, "again": True}},
    {"name": "diloco", "exchange_period": 4, "optimizer": {"arguments": {"lr": 0.1}}},
    {
        "name": "diloco",
        "exchange_period": 4,
        "stripes": 2,
        "delay": 1,
        "mixing": 0.5,
        "codec": {"name": "top_k"},
        "optimizer": {"arguments": {"lr": 0.1}},
    },
    {"name": "incremental_sgd"},
    {"name": "all_reduce"},
    {"name": "gossip", "exchange_period": 2, "momentum": 0.9},
]


@pytest.mark.parametrize(
    "method", METHODS, ids=lambda m: f"{m['name']} in turns" if "stripes" in m else m["name"]
)
def test_members_and_a_server_die_and_the_run_is_repeated(
    method: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"

    document = settings(epochs=EPOCHS, method=method, checkpoint={"every_s": 0.3})
    with killing(run, 2, worker=3, server=1):
        result = tardygrad.train(recipe=document, out=run, quiet=True)
    assert result.outcome == "done", result.reason
    assert {e["reason"] for e in states(run, "worker", "died")} == {"killed by SIGKILL"}
    assert len(states(run, "server", "died")) == 1
    assert_exact(run, epochs=EPOCHS, samples=SAMPLES)
    assert tardygrad.replay(run).matches


def test_a_stopped_run_goes_on_with_another_method(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = settings(epochs=2, method={"name": "diloco", "exchange_period": 4})
    assert tardygrad.train(recipe=first, out=run, quiet=True).outcome == "done"
    for epochs, name in ((4, "dana"), (6, "sync_sgd")):
        result = tardygrad.resume(run, epochs=epochs, method=name, quiet=True)
        assert result.outcome == "done", result.reason
        assert_exact(run, epochs=epochs, samples=SAMPLES)
    log = (run / "events.log").read_text(encoding="utf-8")
    assert log.count("the method's state begins anew") == 2
    with pytest.raises(tardygrad.errors.RunDirectoryError, match="resumed with another method"):
        tardygrad.replay(run)
