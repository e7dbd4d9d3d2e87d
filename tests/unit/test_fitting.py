"""Simulated times from a real run's metrics."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tardygrad import cli, documents, recipes, training
from tardygrad.documents import merge
from tardygrad.engines.statistics import WorkerCounters
from tardygrad.errors import RunDirectoryError
from tardygrad.fitting import simulation_like
from tardygrad.storage.run_directory import RunDirectory

NONE: dict[str, Any] = {
    "restarts": 0, "samples": 0, "computing_s": 0.0, "waiting_s": 0.0, "communicating_s": 0.0,
    "exchanges": 0, "scatter_s2": 0.0, "answers": 0, "answering_s": 0.0, "elapsed_s": 0.0,
}  # fmt: skip


def steps(worker: int, seconds: list[float], *, batches: int = 1, **told: float) -> dict[str, Any]:
    """A row of a worker that computed ranges of so many batches of 10 samples."""
    counters = WorkerCounters()
    for each in seconds:
        counters.computed(0, 10 * batches, batches, 0.0, each)
    mine = {name: value for name, value in vars(counters).items() if name in NONE}
    elapsed_s = counters.computing_s + told.get("communicating_s", 0.0)
    return {"worker": worker, **NONE, **mine, "elapsed_s": elapsed_s, **told}


def run_with(
    path: Path, *reports: list[dict[str, Any]], servers: list[dict[str, Any]] | None = None,
    **start: Any,
) -> Path:  # fmt: skip
    with RunDirectory.create(path, "name: x\n", name="x") as directory:
        events: list[dict[str, Any]] = [
            {"event": "run_start", "time_s": 0.0, "batch_size": 10, "servers": 2, **start}
        ]
        events += [
            {"event": "progress", "time_s": 1.0 + number, "workers": rows}
            for number, rows in enumerate(reports)
        ]
        if servers is not None:
            events.append({"event": "run_end", "time_s": 9.0, "servers": servers})
        lines = "".join(json.dumps(event) + "\n" for event in events)
        directory.metrics_jsonl.write_text(lines, encoding="utf-8")
    return path


def test_a_step_and_a_way_of_each_worker(tmp_path: Path) -> None:
    rows = [
        steps(0, [0.02] * 100, communicating_s=0.1),
        steps(1, [0.1] * 20, communicating_s=0.4),
    ]
    assert simulation_like(run_with(tmp_path / "run", rows)) == {
        "workers": 2,
        "servers": 2,
        "simulation": {"compute": [0.02, 0.1], "network": [0.0005, 0.01]},
    }


def test_time_that_is_none_of_the_three_is_part_of_the_exchange(tmp_path: Path) -> None:
    rows = [steps(0, [0.02] * 100, communicating_s=0.1, elapsed_s=2.5, waiting_s=0.2)]
    found = simulation_like(run_with(tmp_path / "run", rows))
    assert found["simulation"]["network"] == [pytest.approx((0.1 + 0.2) / 100 / 2)]


@pytest.mark.parametrize("batches", [1, 5])
def test_the_spread_is_that_of_single_batches(tmp_path: Path, batches: int) -> None:
    rng = random.Random(5)
    ranges = [sum(rng.gauss(0.02, 0.004) for _ in range(batches)) for _ in range(4000)]
    found = simulation_like(run_with(tmp_path / "run", [steps(0, ranges, batches=batches)]))
    (compute,) = found["simulation"]["compute"]
    assert compute["distribution"] == "lognormal"
    assert compute["mean_s"] == pytest.approx(0.02, rel=0.01)
    assert compute["spread"] == pytest.approx(0.004, rel=0.05)


def test_the_first_step_is_left_out(tmp_path: Path) -> None:
    reports = [[{"worker": 0, **NONE}], [steps(0, [3.0, 0.1])], [steps(0, [3.0] + [0.1] * 50)]]
    found = simulation_like(run_with(tmp_path / "run", *reports))
    assert found["simulation"]["compute"] == [0.1]
    # Who has but one report has no other.
    short = simulation_like(run_with(tmp_path / "short", reports[1]))
    assert short["simulation"]["compute"][0]["mean_s"] == 1.55


def test_a_machine_that_gets_slower_does_not_make_steps_scatter(tmp_path: Path) -> None:
    drifting = [0.1 + 0.0001 * step for step in range(1000)]
    found = simulation_like(run_with(tmp_path / "run", [steps(0, drifting)]))
    assert found["simulation"]["compute"] == [pytest.approx(0.15, rel=0.01)]


def test_who_waits_for_answers_has_four_ways_and_the_servers_time(tmp_path: Path) -> None:
    rows = [steps(0, [0.02] * 100, communicating_s=0.1, answers=100, answering_s=0.6)]
    servers = [
        {"server": 0, "pushes": 100, "applying_s": 0.1},
        {"server": 1, "pushes": 100, "applying_s": 0.3},
    ]
    found = simulation_like(run_with(tmp_path / "run", rows, servers=servers))["simulation"]
    assert found["apply"] == 0.002
    assert found["network"] == [pytest.approx((0.001 + 0.006 - 0.002) / 4)]


def test_a_batch_that_is_trained_several_times_takes_several_steps(tmp_path: Path) -> None:
    rng = random.Random(5)
    batches = [sum(rng.gauss(0.02, 0.004) for _ in range(3)) for _ in range(4000)]
    method = {"name": "local_sgd", "passes": 3}
    found = simulation_like(run_with(tmp_path / "run", [steps(0, batches)], method=method))
    [compute] = found["simulation"]["compute"]
    assert compute["mean_s"] == pytest.approx(0.02, rel=0.01)
    assert compute["spread"] == pytest.approx(0.004, rel=0.05)


def test_workers_that_a_resumed_run_has_no_more_are_left_out(tmp_path: Path) -> None:
    rows = [steps(0, [0.02] * 50), steps(1, [0.1] * 50), {"worker": 2, **NONE}]
    found = simulation_like(run_with(tmp_path / "run", rows, workers=2))
    assert found["workers"] == 2 and found["simulation"]["compute"] == [0.02, 0.1]


def test_as_many_workers_as_are_asked_for(tmp_path: Path) -> None:
    rows = [steps(0, [0.02] * 50), steps(1, [0.1] * 50)]
    run = run_with(tmp_path / "run", rows, workers=2)
    for workers, compute in ((1, [0.02]), (2, [0.02, 0.1]), (5, [0.02, 0.1, 0.02, 0.1, 0.02])):
        found = simulation_like(run, workers)
        assert found["workers"] == workers == len(found["simulation"]["network"])
        assert found["simulation"]["compute"] == compute


def test_the_command_fits_the_times_to_the_workers_that_it_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [steps(number, [0.02] * 50) for number in range(4)]
    run = run_with(tmp_path / "run", rows, workers=4)
    dry = ["simulate", "blobs", "--like", str(run), "--dry-run"]
    for count, assignments in ((4, []), (2, ["workers=2"]), (3, ["workers=2", "workers=3"])):
        assert cli.main([*dry, *(word for a in assignments for word in ("--set", a))]) == 0
        shown = documents.parse(capsys.readouterr().out, "it")
        assert shown["workers"] == count == len(shown["simulation"]["compute"])
    assert cli.main([*dry, "--set", "workers=0"]) == 2
    assert "workers" in capsys.readouterr().err


def test_what_did_not_train_tells_nothing(tmp_path: Path) -> None:
    rows = [steps(0, [0.02] * 50), {"worker": 1, **NONE}]
    with pytest.raises(RunDirectoryError, match="worker 1 trained nothing"):
        simulation_like(run_with(tmp_path / "run", rows))
    with pytest.raises(RunDirectoryError, match="no progress"):
        simulation_like(run_with(tmp_path / "none", []))


@pytest.mark.parametrize("in_flight", [0, 1])
def test_a_simulation_is_fitted_by_what_it_was_told(tmp_path: Path, in_flight: int) -> None:
    """The real engine aside, the way round is closed."""
    told = {
        "workers": 2,
        "servers": 2,
        "simulation": {
            "compute": [0.01, {"distribution": "lognormal", "mean_s": 0.02, "spread": 0.005}],
            "network": [0.0003, 0.002],
            "apply": 0.0004,
        },
    }
    changes = {
        **told, "engine": "inline", "epochs": 4, "batch_size": 8,
        "data": {"arguments": {"train": 4000, "test": 10}}, "method": {"in_flight": in_flight},
    }  # fmt: skip
    place = tmp_path / "run"
    training.run(training.resolve(merge(recipes.load("blobs"), changes)), out=place, quiet=True)
    found = simulation_like(place)
    simulation = found["simulation"]
    assert (found["workers"], found["servers"]) == (2, 2)
    assert simulation["apply"] == 0.0004
    assert simulation["network"] == pytest.approx([0.0003, 0.002], rel=0.01)
    assert simulation["compute"][0] == pytest.approx(0.01, rel=0.01)
    assert simulation["compute"][1]["mean_s"] == pytest.approx(0.02, rel=0.02)
    assert simulation["compute"][1]["spread"] == pytest.approx(0.005, rel=0.15)
