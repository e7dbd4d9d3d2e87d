"""A real run under chaos: everything is counted once, and nothing is left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from real_runs import command, settings

from tardygrad.auditing import audit
from tardygrad.metrics.sink import read

pytestmark = pytest.mark.slow

CHAOS_S = 300
"""A loaded machine may take long for two runs of some seconds."""


@pytest.mark.timeout(2 * CHAOS_S)
def test_a_run_under_chaos(tmp_path: Path) -> None:
    document, run = tmp_path / "run.yaml", tmp_path / "run"
    failure = {"backoff_s": 0.01, "lease_s": 1.0, "heartbeat_s": 0.1}
    changes = {"failure": failure, "checkpoint": {"every_s": 0.5}, "replicas": 1}
    document.write_text(json.dumps(settings(**changes)))
    kinds = ("kill", "stop", "slow", "server", "backup", "scheduler", "disk")
    words = ["--every", "500ms", "--for", "6s", "--kinds", ",".join(kinds), "--set", "epochs=30"]
    process = command("chaos", str(document), "--out", str(run), *words)
    said, errors = process.communicate(timeout=CHAOS_S)
    assert process.returncode == 0, errors
    assert "exact: 30,720 samples applied once on each of 2 shards" in said
    assert "nothing of" in said
    assert audit(run).exact
    events = list(read(run / "metrics.jsonl"))
    faults = [event for event in events if event["event"] == "fault"]
    assert {"kill", "server", "backup", "scheduler"} <= {fault["kind"] for fault in faults}
    assert all(0 < fault["at_s"] <= fault["time_s"] for fault in faults)
    assert "kill" in {event["kind"] for event in events if event["event"] == "recovery"}
    found = json.loads((run / "chaos.json").read_text())
    assert found["outcome"] == "done"
    assert len(found["faults"]) == len(faults)
    assert found["leaks"] == found["unanswered"] == []
    assert Path(f"{run}-undisturbed").is_dir()


@pytest.mark.timeout(CHAOS_S)
def test_a_limit_that_is_missed(tmp_path: Path) -> None:
    document, run = tmp_path / "run.yaml", tmp_path / "run"
    document.write_text(json.dumps(settings()))
    words = ["--every", "500ms", "--for", "2s", "--kinds", "kill,backup", "--alone", "--quiet"]
    process = command("chaos", str(document), "--out", str(run), *words, "--limit", "goodput=99")
    said, errors = process.communicate(timeout=CHAOS_S)
    assert process.returncode == 1
    assert said == ""
    assert "tardygrad: failed: goodput" in errors
    assert "at least 9900.0% was demanded" in errors
