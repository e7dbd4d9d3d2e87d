"""Several methods on one job: what is run, what the table says, and the page."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tardygrad import recipes, training
from tardygrad.callbacks import Callback
from tardygrad.cli import main
from tardygrad.comparing import compare, documents_of
from tardygrad.errors import ConfigError, Preempted, UsageError
from tardygrad.metrics.comparison import COLUMNS, Target, Trial, rows, write_page
from tardygrad.metrics.history import History


def told(accuracies: list[float], *, first: float = 1.0, speed: float = 100.0) -> History:
    history = History()
    history.add({"event": "run_start", "time_s": 0.0, "samples_per_epoch": 10})
    for number, value in enumerate(accuracies, 1):
        measured = {"accuracy": value, "loss": 1 - value}
        history.add(
            {"event": "evaluate", "epoch": number, "samples": 10 * number, "final": False,
             "time_s": first + number + 0.5, "at_s": first + number, **measured}
        )  # fmt: skip
    histogram = {"0": {"0": 1, "2": 1}}
    history.add(
        {"event": "run_end", "time_s": 9.0, "first_update_s": first, "samples_per_s": speed,
         "staleness_histogram": histogram, "ledger": {"dropped": 3}, "samples": 100,
         "bytes_pushed": 250_000, "bytes_pulled": 50_000}
    )  # fmt: skip
    return history


def cells(trials: list[Trial], target: Target | None) -> dict[str, dict[str, str]]:
    found = rows(trials, target, "accuracy")
    return {row.method: dict(zip(COLUMNS, row.cells, strict=True)) for row in found}


def test_seconds_count_from_the_first_update() -> None:
    trial = Trial("a", 0, told([0.5, 0.8, 0.9], first=4.0))
    assert trial.seconds_to(Target("accuracy", 0.8)) == pytest.approx(2.0)
    assert trial.seconds_to(Target("loss", 0.15)) == pytest.approx(3.0)
    assert math.isinf(trial.seconds_to(Target("accuracy", 0.95)))
    assert trial.lasted_s() == pytest.approx(3.0)


def test_a_row_has_medians_and_says_what_was_not_reached() -> None:
    trials = [
        Trial("fast", 0, told([0.9], speed=100.0)),
        Trial("slow", 0, told([0.5, 0.9])),
        Trial("fast", 1, told([0.5, 0.92], speed=300.0)),
        Trial("slow", 1, told([0.5, 0.6])),
        Trial("fast", 2, told([0.5, 0.6, 0.95], speed=200.0)),
        Trial("slow", 2, told([0.5, 0.6])),
    ]
    found = cells(trials, Target("accuracy", 0.9))
    assert list(found) == ["fast", "slow"]
    assert found["fast"]["seconds to target"] == "2.00 (1.00 to 3.00)"
    assert found["fast"]["reached"] == "3 of 3"
    assert found["fast"]["final"] == "0.9200 (0.9000 to 0.9500)"
    assert found["fast"]["samples/s"] == "200 (100 to 300)"
    assert found["fast"]["staleness mean"] == "1.00"
    assert found["fast"]["dropped"] == "3"
    assert found["fast"]["pushed"] == "250.0 kB (2.5 kB a sample)"
    assert found["fast"]["pulled"] == "50.0 kB (500 B a sample)"
    # Two of three never got there: the median is no time.
    assert found["slow"]["seconds to target"] == "> 2.00"
    assert found["slow"]["reached"] == "1 of 3"
    assert cells(trials, None)["slow"]["seconds to target"] == ""


def test_bytes_are_those_of_all_stretches() -> None:
    history = told([0.5])
    # Resumed at 60 of the 100 samples.
    history.add({"event": "run_start", "time_s": 10.0, "samples": 60})
    end = {"event": "run_end", "samples": 160, "bytes_pushed": 150_000, "bytes_pulled": 10_000}
    history.add({**end, "time_s": 20.0})
    assert Trial("a", 0, history).moved("pushed") == (400_000, 2_000)
    history.add({"event": "run_start", "time_s": 21.0, "samples": 160})
    history.add({"event": "run_end", "time_s": 22.0, "outcome": "failed", "reason": "an error"})
    found = cells([Trial("a", 0, history)], None)["a"]
    # Of a stretch that failed nothing is known, so nothing is said of the whole.
    assert found["pushed"] == "?"


def test_the_page_stands_alone(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    trials = [Trial("a<b", 0, told([0.5, 0.9])), Trial("c", 0, told([0.4]))]
    page = write_page(tmp_path / "page.html", "mine & yours", trials, None, "accuracy")
    text = page.read_text(encoding="utf-8")
    assert "mine &amp; yours" in text
    assert "<td>a&lt;b</td>" in text
    assert text.count("data:image/png;base64,") == 2


def test_each_method_gets_the_job_and_its_own_settings() -> None:
    found = documents_of(
        recipes.load("blobs"), ["sync_sgd", "diloco"], {"diloco": {"exchange_period": 3}}
    )
    assert found["sync_sgd"]["method"]["name"] == "sync_sgd"
    lent = recipes.load("blobs")["method"]["optimizer"]
    assert found["sync_sgd"]["method"]["optimizer"] == lent
    assert found["diloco"]["method"]["exchange_period"] == 3
    assert "optimizer" not in found["diloco"]["method"], "its inner optimizer is another thing"
    with pytest.raises(UsageError, match="did you mean 'diloco'"):
        documents_of(recipes.load("blobs"), ["dilco"], {})
    with pytest.raises(UsageError, match="not among"):
        documents_of(recipes.load("blobs"), ["ssp"], {"diloco": {}})
    with pytest.raises(ConfigError, match="exchange_period"):
        documents_of(recipes.load("blobs"), ["ssp"], {"ssp": {"exchange_period": 0}})


def small(**changes: Any) -> dict[str, Any]:
    document = {**recipes.load("blobs"), "engine": "inline", "epochs": 1, "workers": 2, **changes}
    return {**document, "data": {**document["data"], "arguments": {"train": 256, "test": 64}}}


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    documents = documents_of(small(), ["async_sgd", "local_sgd"], {})
    first = list(compare(documents, range(2), tmp_path))
    assert [(t.method, t.seed) for t in first] == [
        ("async_sgd", 0), ("local_sgd", 0), ("async_sgd", 1), ("local_sgd", 1),
    ]  # fmt: skip
    written = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("metrics.jsonl")}
    again = list(compare(documents, range(2), tmp_path))
    assert written == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("metrics.jsonl")}
    assert [t.final("loss") for t in again] == [t.final("loss") for t in first]
    other = documents_of(small(batch_size=16), ["async_sgd"], {})
    with pytest.raises(UsageError, match="was run with another batch_size"):
        list(compare(other, [0], tmp_path))


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    words = ["compare", "blobs", "--methods", "ssp,dana", "--engine", "inline", "--set", "epochs=1"]
    assert main([*words, "--target", "accuracy=0.3", "--own", "dana.momentum=0.5"]) == 0
    told = capsys.readouterr()
    assert "2/2 dana, seed 0" in told.err
    assert "ssp" in told.out and "dana" in told.out
    page = Path(told.out.split()[-1])
    assert page.name == "comparison.html" and page.exists()


def test_a_terminal_gets_a_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    words = ["compare", "blobs", "--methods", "ssp", "--engine", "inline", "--set", "epochs=1"]
    assert main(words) == 0
    told = capsys.readouterr().err
    assert "1/1" in told and "1/1 ssp, seed 0" not in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["blobs", "--methods", "nope"], "unknown method 'nope'"),
        (["blobs", "--methods", "ssp", "--target", "accuracy"], "expected METRIC=VALUE"),
        (["blobs", "--methods", "ssp", "--target", "acuracy=0.9"], "did you mean 'accuracy'"),
        (["blobs", "--methods", "ssp", "--own", "bound=1"], "expected METHOD.KEY=VALUE"),
        (["blobs", "--methods", "ssp", "--own", "ssp.bound"], "expected METHOD.KEY=VALUE"),
        (["blobs", "--methods", "ssp", "--seeds", "0"], "expected at least 1"),
        (["blobs", "--methods", "ssp", "--set", "method=dana"], "--methods names the methods"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_stopped_trial_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = documents_of(small(epochs=60), ["async_sgd"], {})
    run = training.run

    def stopped(*args: Any, **options: Any) -> Any:
        return run(*args, **options, callbacks=[Stops()])

    class Stops(Callback):
        def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
            self.stop_training = True

    monkeypatch.setattr(training, "run", stopped)
    with pytest.raises(Preempted, match="same command again goes on") as caught:
        list(compare(documents, [0], tmp_path))
    assert caught.value.exit_code == 75
    other = documents_of(small(epochs=60, batch_size=16), ["async_sgd"], {})
    # With other settings it would be another trial.
    with pytest.raises(UsageError, match="was run with another batch_size"):
        list(compare(other, [0], tmp_path))
    monkeypatch.setattr(training, "run", None)  # it is resumed, not run again
    (trial,) = compare(documents, [0], tmp_path)
    assert trial.history.end["samples"] == 60 * 256
