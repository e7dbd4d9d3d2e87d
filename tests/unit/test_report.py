"""A synthetic run, its history, and the files drawn from it."""

from __future__ import annotations

import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat

from tardygrad.errors import RunDirectoryError, StorageError, UsageError
from tardygrad.metrics import MetricsLog, plots
from tardygrad.metrics.history import History, WorkerHistory
from tardygrad.metrics.mat import contents
from tardygrad.metrics.report import report

WORKERS, EPOCHS, PER_EPOCH, RATE = 3, 4, 1200, 600


def start(incarnation: int = 0, time_s: float = 0.0, **changes: Any) -> dict[str, Any]:
    return {
        "event": "run_start",
        "time_s": time_s,
        "run": "r1",
        "name": "a $run$",
        "incarnation": incarnation,
        "workers": WORKERS,
        "servers": 2,
        "epochs": EPOCHS,
        "samples_per_epoch": PER_EPOCH,
        "batch_size": 30,
        "method": "async_sgd",
        "engine": "processes",
        "seed": 2**64,
        **changes,
    }


def progress(time_s: float, samples: int, workers: int = WORKERS, **changes: Any) -> dict[str, Any]:
    staleness = {"mean": 2.0, "p50": 2, "p99": 5, "max": 9}
    rows = [
        {
            "worker": worker,
            "state": "training",
            "samples": samples // workers,
            "staleness": staleness,
            "computing_s": 0.8 * time_s,
            "waiting_s": 0.1 * time_s,
            "communicating_s": 0.05 * time_s,
            "restarts": int(worker == 1),
        }
        for worker in range(workers)
    ]
    return {
        "event": "progress",
        "time_s": time_s,
        "epoch": samples / PER_EPOCH,
        "samples": samples,
        "samples_per_s": RATE,
        "loss": 2.0 / (1 + samples / 100),
        "learning_rate": 0.1,
        "staleness": staleness,
        "workers": rows,
        **changes,
    }


def member(time_s: float, state: str, worker: int = 1) -> dict[str, Any]:
    return {"event": "member", "time_s": time_s, "kind": "worker", "id": worker, "state": state}


def a_run() -> Iterator[dict[str, Any]]:
    yield start()
    yield from (member(0.0, "ready", worker) for worker in range(WORKERS))
    for tick in range(1, 2 * EPOCHS * PER_EPOCH // RATE + 1):
        time_s, samples = tick / 2, tick * RATE // 2
        yield progress(time_s, samples)
        if tick == 5:
            yield member(time_s, "died")
            yield member(time_s + 0.25, "ready")
        if samples % PER_EPOCH == 0:
            epoch = samples // PER_EPOCH
            done = {"time_s": time_s, "epoch": epoch, "samples": samples}
            yield {"event": "epoch", **done, "loss": 1.0 / epoch}
            if epoch % 2 == 0:
                metrics = {"accuracy": 0.9 + epoch / 100, "top-5 accuracy": 0.99}
                yield {"event": "evaluate", **done, "loss": 0.5 / epoch, **metrics}
    yield {
        "event": "run_end",
        "time_s": 9.0,
        "outcome": "done",
        "reason": None,
        "samples": EPOCHS * PER_EPOCH,
        "seconds": 8.5,
        "samples_per_s": 564.7,
        "staleness": {"mean": 2.0, "p50": 2, "p99": 5, "max": 9},
        "staleness_histogram": {"10": {"1": 5, "9": 1}, "0": {"2": 20, "1": 4}},
        "ledger": {"exact": True, "applied": 4800, "dropped": 0, "missing": 0, "twice": 0},
        "digest": "abc",
        "final": {"loss": 0.125, "accuracy": 0.94},
    }


def run_of(directory: Path, *events: dict[str, Any]) -> Path:
    directory.mkdir(exist_ok=True)
    with MetricsLog(directory / "metrics.jsonl") as log:
        for event in events:
            log.write(event)
    return directory


def history_of(*events: dict[str, Any]) -> History:
    history = History()
    for event in events:
        history.add(event)
    return history


def png_size(path: Path) -> tuple[int, int]:
    header = path.read_bytes()[:24]
    assert header.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", header[16:])
    return width, height


# --- the files --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = run_of(tmp_path_factory.mktemp("run"), *a_run())
    assert report(run) == [run / "metrics.mat", run / "curves.png"]
    return run


def test_the_picture_has_its_size_and_something_in_it(reported: Path) -> None:
    assert png_size(reported / "curves.png") == (1600, 1000)
    assert (reported / "curves.png").stat().st_size > 40_000
    assert sorted(path.name for path in reported.iterdir()) == [
        "curves.png",
        "metrics.jsonl",
        "metrics.mat",
    ]


def test_the_mat_file_holds_the_run(reported: Path) -> None:
    mat = loadmat(reported / "metrics.mat", squeeze_me=True, simplify_cells=True)
    np.testing.assert_array_equal(mat["epoch"], [1, 2, 3, 4])
    np.testing.assert_allclose(mat["train_loss"], [1, 1 / 2, 1 / 3, 1 / 4])
    np.testing.assert_allclose(mat["test_loss"], [np.nan, 0.25, np.nan, 0.125])
    np.testing.assert_allclose(mat["test_accuracy"], [np.nan, 0.92, np.nan, 0.94])
    np.testing.assert_allclose(mat["test_top_5_accuracy"], [np.nan, 0.99, np.nan, 0.99])
    np.testing.assert_array_equal(mat["samples"], [1200, 2400, 3600, 4800])
    np.testing.assert_array_equal(mat["time_s"], [2, 4, 6, 8])
    assert mat["progress_loss"].shape == mat["progress_staleness_p99"].shape == (16,)
    np.testing.assert_array_equal(mat["staleness_values"], [1, 2, 9])
    np.testing.assert_array_equal(mat["staleness_counts"], [9, 20, 1])
    np.testing.assert_array_equal(mat["staleness_counts_worker"], [[4, 20, 0], [5, 0, 1]])
    np.testing.assert_array_equal(mat["worker_restarts"], [0, 1, 0])
    np.testing.assert_allclose(mat["worker_computing_s"], 6.4)
    assert mat["settings"]["method"] == "async_sgd"
    assert mat["settings"]["workers"] == 3
    assert mat["settings"]["seed"] == str(2**64)
    assert mat["result"]["ledger"]["exact"] == 1
    assert np.isnan(mat["result"]["reason"])


@pytest.mark.parametrize(
    "events",
    [
        [start()],
        [start(), progress(0.5, 30)],
        [start(), progress(0.5, 30, loss=None, samples_per_s=None), {"event": "run_end"}],
        [start(engine="inline"), progress(9e5, 10**9, loss=float("nan"))],
        [{"event": "progress"}, {"event": "evaluate"}, {"event": "unheard-of"}],
    ],
    ids=["only started", "one point", "nulls", "diverged", "bare"],
)
def test_any_run_can_be_drawn_while_it_goes_on(tmp_path: Path, events: list[Any]) -> None:
    mat, png = report(run_of(tmp_path, *events))
    assert "epoch" in loadmat(mat)
    assert png_size(png) == (1600, 1000)


def test_many_workers_and_a_straggling_update_are_drawn() -> None:
    histogram = {"0": {"3": 1000, "5": 10, "900": 1}}
    end = {"event": "run_end", "time_s": 4.0, "staleness_histogram": histogram}
    picture = plots.figure(
        history_of(
            start(),
            *(progress(t / 2, 100 * t, workers=40) for t in range(1, 8)),
            member(2.0, "died", 30),
            end,
        )
    )
    staleness, utilisation = picture.axes[3], picture.axes[4]
    assert staleness.get_xlim()[1] < 50
    legend = staleness.get_legend()
    assert legend is not None
    assert "max 900 (off the axis)" in [text.get_text() for text in legend.get_texts()]
    assert np.asarray(utilisation.images[0].get_array()).shape[0] == 40


def test_drawing_leaves_pyplot_alone() -> None:
    imported = "matplotlib.pyplot" in sys.modules
    plots.figure(history_of(*a_run()))
    assert imported or "matplotlib.pyplot" not in sys.modules


# --- a resumed run ----------------------------------------------------------------------------


def test_after_a_resume_only_the_last_word_counts() -> None:
    history = history_of(
        start(),
        progress(1.0, 600, loss=0.9),
        progress(2.0, 1200, loss=0.8),
        {"event": "epoch", "time_s": 2.0, "epoch": 1, "samples": 1200, "loss": 0.85},
        progress(3.0, 1500, loss=0.7),
        {"event": "run_end", "time_s": 3.0, "outcome": "preempted"},
        start(1, 3.5),
        progress(4.0, 900, loss=0.6),
        progress(5.0, 1200, loss=0.5),
        {"event": "epoch", "time_s": 5.0, "epoch": 1, "samples": 1200, "loss": 0.55},
    )
    counts = history.against_samples()
    np.testing.assert_array_equal(history.progress["loss"][counts], [0.9, 0.6, 0.5])
    np.testing.assert_array_equal(history.progress["samples"][counts], [600, 900, 1200])
    assert len(history.progress["time_s"]) == 5
    assert [event["loss"] for event in history.epochs] == [0.55]
    assert history.end == {}


def evaluation(time_s: float, epoch: int, accuracy: float, **changes: Any) -> dict[str, Any]:
    done = {"epoch": epoch, "samples": epoch * PER_EPOCH, "at_s": time_s, "final": False}
    told = {"event": "evaluate", "time_s": time_s, **done, "loss": 1 - accuracy}
    return {**told, "accuracy": accuracy, **changes}


def end(time_s: float, outcome: str, histogram: dict[str, dict[str, int]]) -> dict[str, Any]:
    told = {"event": "run_end", "time_s": time_s, "outcome": outcome}
    return {**told, "staleness_histogram": histogram}


STOPPED = (
    start(),
    progress(2.0, 1200),
    evaluation(2.0, 1, 0.8),
    evaluation(3.0, 1, 0.9, samples=1500, final=True),
    end(3.0, "preempted", {"0": {"0": 3}, "1": {"2": 1}}),
)


@pytest.mark.parametrize("epoch", [1, EPOCHS])
def test_a_run_stopped_within_an_epoch_is_measured_where_it_stands(epoch: int) -> None:
    stopped = history_of(*(e | {"epoch": epoch} if e.get("final") else e for e in STOPPED))
    found = [(event["epoch"], event["accuracy"]) for event in stopped.evaluations]
    assert found == [(1, 0.8), (1.25, 0.9)]
    points = plots.figure(stopped).axes[2].lines[0].get_xydata()
    np.testing.assert_allclose(points, [[1, 80], [1.25, 90]])
    mat = contents(stopped)
    np.testing.assert_array_equal(mat["epoch"], [1])
    np.testing.assert_array_equal(mat["test_accuracy"], [0.8])


def test_where_a_run_was_stopped_is_no_evaluation_once_it_goes_on() -> None:
    resumed = history_of(
        *STOPPED,
        start(1, 4.0),
        evaluation(6.0, EPOCHS, 0.93),
        evaluation(7.0, EPOCHS, 0.95, final=True),
        end(7.0, "done", {}),
    )
    found = [(event["epoch"], event["accuracy"]) for event in resumed.evaluations]
    assert found == [(1, 0.8), (EPOCHS, 0.95)]


def test_before_its_first_epoch_ends_a_run_has_no_epoch() -> None:
    history = history_of(start(), evaluation(1.0, 0, 0.0645, samples=300, final=True))
    assert [event["epoch"] for event in history.evaluations] == [0.25]
    assert len(contents(history)["epoch"]) == 0


def test_test_points_against_time_never_run_backwards() -> None:
    history = history_of(
        start(),
        evaluation(2.0, 1, 0.8),
        evaluation(4.0, 2, 0.9),
        start(1, 5.0),  # from a checkpoint of the first epoch
        evaluation(7.0, 1, 0.85),
    )
    line = plots.figure(history).axes[1].lines[0]
    np.testing.assert_array_equal(np.asarray(line.get_xydata())[:, 0], [4.0, 7.0])


def test_the_histogram_is_that_of_all_stretches() -> None:
    resumed = (*STOPPED, start(1, 4.0), end(7.0, "done", {"0": {"0": 1, "5": 2}, "2": {"1": 4}}))
    history = history_of(*resumed)
    assert history.staleness_by_worker() == {0: {0: 4, 5: 2}, 1: {2: 1}, 2: {1: 4}}
    mat = contents(history)
    np.testing.assert_array_equal(mat["staleness_values"], [0, 1, 2, 5])
    np.testing.assert_array_equal(mat["staleness_counts"], [4, 4, 1, 2])
    title = "Staleness of the updates"
    assert plots.figure(history).axes[3].get_title(loc="left") == title
    going_on = history_of(*resumed, start(2, 8.0))
    assert going_on.staleness_by_worker() == history.staleness_by_worker()
    told = plots.figure(going_on).axes[3].get_title(loc="left")
    assert told == f"{title} (2 of 3 stretches)"


def test_the_heading_of_a_resumed_run_says_which_stretch_it_tells_of() -> None:
    for events, said in (
        (STOPPED, f"seed {2**64}"),
        ((*STOPPED, start(1, 4.0)), "stretch 2 of the run"),
    ):
        assert plots.figure(history_of(*events)).texts[1].get_text().endswith(f", {said}")


def test_counters_that_start_again_are_added_up() -> None:
    worker = WorkerHistory()
    told = ((1.0, 1.0, 0), (2.0, 2.0, 2), (4.0, 0.5, 0), (5.0, 1.5, 1))
    for time_s, computing_s, restarts in told:
        worker.add(time_s, {"computing_s": computing_s, "waiting_s": 0.0, "restarts": restarts})
    np.testing.assert_array_equal(worker.column("computing_s"), [1.0, 2.0, 2.5, 3.5])
    assert worker.total("computing_s") == 3.5
    assert worker.total("restarts") == 3


def test_shares_are_parts_of_the_time_and_blank_when_dead() -> None:
    worker = WorkerHistory()
    for time_s, computing_s, waiting_s in ((1, 0, 0), (2, 0.75, 0.25), (3, 0.75, 0.25), (4, 3, 1)):
        worker.add(time_s, {"computing_s": computing_s, "waiting_s": waiting_s})
    shares = worker.shares(np.array([0.0, 1.0, 2.0, 3.0, 4.0]))
    np.testing.assert_allclose(shares[0], [0, 0.75, 0, 0.75])
    np.testing.assert_allclose(shares.sum(axis=0), [0, 1, 0, 1])


# --- what cannot be reported ------------------------------------------------------------------


def test_a_directory_without_a_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"holds no metrics\.jsonl"):
        report(tmp_path)
    with pytest.raises(RunDirectoryError, match="no such directory"):
        report(tmp_path / "missing")
    (tmp_path / "metrics.jsonl").write_bytes(b'{"event"')
    with pytest.raises(RunDirectoryError, match="no event"):
        report(tmp_path)


@pytest.mark.parametrize("library", ["scipy.io", "matplotlib.figure"])
def test_a_missing_extra_is_named_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    run = run_of(tmp_path, *a_run())
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=r"pip install 'tardygrad\[report\]'"):
        report(run)
    assert [path.name for path in run.iterdir()] == ["metrics.jsonl"]


def test_a_file_that_cannot_be_replaced_is_told(reported: Path, tmp_path: Path) -> None:
    shutil.copy(reported / "metrics.jsonl", tmp_path)
    (tmp_path / "metrics.mat").mkdir()
    with pytest.raises(StorageError, match=r"cannot write .*metrics\.mat"):
        report(tmp_path)
    assert not list(tmp_path.glob(".*"))
