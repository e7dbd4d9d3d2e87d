"""Simulated times from a real run's metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tardygrad.errors import RunDirectoryError
from tardygrad.fitting import simulation_like
from tardygrad.storage.run_directory import RunDirectory


def row(worker: int, samples: int, computing_s: float, communicating_s: float) -> dict[str, Any]:
    spent = {"computing_s": computing_s, "waiting_s": 0.0, "communicating_s": communicating_s}
    return {"worker": worker, "samples": samples, "restarts": 0, **spent}


def run_with(path: Path, rows: list[dict[str, Any]], period: int = 1) -> Path:
    with RunDirectory.create(path, "name: x\n", name="x") as directory:
        start = {
            "event": "run_start", "time_s": 0.0, "batch_size": 10, "fragment_batches": 8,
            "method": {"exchange_period": period},
        }  # fmt: skip
        events = [start, {"event": "progress", "time_s": 1.0, "workers": rows}]
        lines = "".join(json.dumps(event) + "\n" for event in events)
        directory.metrics_jsonl.write_text(lines, encoding="utf-8")
    return path


def test_a_step_and_a_way_of_each_worker(tmp_path: Path) -> None:
    rows = [row(0, 1000, 2.0, 0.1), row(1, 200, 2.0, 0.4)]
    assert simulation_like(run_with(tmp_path / "run", rows)) == {
        "workers": 2,
        "simulation": {"compute": [0.02, 0.1], "network": [0.0005, 0.01]},
    }


@pytest.mark.parametrize(("period", "way"), [(4, 0.002), (100, 0.004)])
def test_an_exchange_is_of_several_batches(tmp_path: Path, period: int, way: float) -> None:
    # Of 100 no fragment has more than 8.
    found = simulation_like(run_with(tmp_path / "run", [row(0, 1000, 1.0, 0.1)], period))
    assert found["simulation"]["network"] == [pytest.approx(way)]


def test_what_did_not_train_tells_nothing(tmp_path: Path) -> None:
    rows = [row(0, 1000, 1.0, 0.1), row(1, 0, 0.0, 0.0)]
    with pytest.raises(RunDirectoryError, match="worker 1 trained nothing"):
        simulation_like(run_with(tmp_path / "run", rows))
    with pytest.raises(RunDirectoryError, match="no progress"):
        simulation_like(run_with(tmp_path / "none", []))
