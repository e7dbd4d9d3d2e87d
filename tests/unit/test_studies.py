"""The studies: their configurations, their runs, and that the pages show what was committed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from studies import pages, registry, runs, summaries, tables
from studies.__main__ import main
from studies.base import SEEDS, TUNING_SEED, Arm, Study
from studies.runs import Run

from tardygrad import methods, training

STUDIES = list(registry.studies().values())
BY_NAME = pytest.mark.parametrize("study", STUDIES, ids=[study.name for study in STUDIES])


def run(*accuracies: float, loss: float | None = 0.1) -> Run:
    curve = tuple((float(second), value) for second, value in enumerate(accuracies, 1))
    return Run(curve, loss, staleness=1.0, dropped=0.0)


# --- what is committed --------------------------------------------------------------------------


@BY_NAME
def test_every_arm_is_a_configuration_of_its_own(study: Study) -> None:
    keys = set()
    for arm in study.arms:
        document = arm.document(study.rates[0], TUNING_SEED, validation=True)
        found = training.resolve(document)
        assert found.method["name"] == arm.settings["method"]["name"] in methods.names()
        assert found.engine == "inline"
        assert found.method["in_flight"] == 0
        keys.add(runs.key(document))
    assert len(keys) == len(study.arms) == len({arm.name for arm in study.arms})
    assert all(study.arm(arm.anchor) for arm in study.arms if arm.anchor is not None)


@BY_NAME
def test_the_summary_is_of_this_study_and_the_page_shows_it(study: Study) -> None:
    summary = summaries.load(study.name)
    page = pages.PAGE.read_text(encoding="utf-8")
    block = tables.block(study, summary)
    assert pages.filled(page, study.name, block) == page, "make reproduce writes the page again"
    if summary is None:  # the page says that it was not run
        return
    assert (pages.DOCS / "images" / f"study-{study.name}.svg").is_file()
    assert [row.arm for row in summary.rows] == [arm.name for arm in study.arms]
    for row in summary.rows:
        tried = {rate for rate, _ in row.scores}
        tuned_as = study.arm(row.arm).tuned_as
        if tuned_as is None:
            assert {row.rate, *study.rates[1::2]} <= tried <= set(study.rates)
        else:
            assert (row.rate, tried) == (summary.row(tuned_as).rate, set())
        assert len(row.found) == len(SEEDS)
        anchor = study.arm(row.arm).anchor
        assert row.anchor_rate == (None if anchor is None else summary.row(anchor).rate)


def test_results_and_pictures_are_of_studies_that_there_are() -> None:
    names = {path.stem for path in summaries.RESULTS.glob("*.json")}
    assert names <= {study.name for study in STUDIES}
    pictures = (pages.DOCS / "images").glob("study-*.svg")
    assert {path.stem.removeprefix("study-") for path in pictures} == names


# --- runs ---------------------------------------------------------------------------------------


def test_a_run_comes_out_the_same_again() -> None:
    # The first arm's, cut short.
    document = STUDIES[0].arms[0].document(0.05, 1, validation=False) | {"epochs": 1}
    once, again = runs.play(document), runs.play(document)
    assert once == again
    assert not once.diverged and 0.2 < once.accuracy < 0.9
    assert len(once.curve) == 1


def test_a_run_that_diverges_is_stopped_and_kept_as_that() -> None:
    arm = next(arm for arm in STUDIES[0].arms if arm.at == "n = 32")
    found = runs.play(arm.document(1.0, 1, validation=False) | {"epochs": 9})
    assert found.diverged and 2 <= len(found.curve) < 9


def test_seconds_to_a_target_lie_between_measurements() -> None:
    rising = run(0.5, 0.9, 0.7)
    assert rising.seconds_to(0.8) == 1.75
    assert rising.seconds_to(0.5) == 1.0
    assert rising.seconds_to(0.25) == 0.5
    assert math.isinf(rising.seconds_to(0.95))
    assert (rising.accuracy, rising.lasted) == (0.7, 3.0)


def test_no_better_than_guessing_is_diverged() -> None:
    assert run(0.1, loss=None).diverged and run(0.1, loss=2.303).diverged
    assert not run(0.1, loss=2.29).diverged


def test_what_is_kept_is_found_under_its_configuration_alone(tmp_path: Path) -> None:
    made = run(0.5, 0.9, loss=None)
    runs.keep({"seed": 1, "epochs": 2}, made, tmp_path)
    assert runs.kept({"epochs": 2, "seed": 1}, tmp_path) == made
    assert runs.kept({"epochs": 2, "seed": 2}, tmp_path) is None
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


# --- from runs to summaries ---------------------------------------------------------------------


def _arm(series: str, anchor: str | None = None, momentum: float = 0.0) -> Arm:
    method = {"name": "async_sgd", "mixing": 0.5 if series == "b" else 1.0}
    return Arm(series=series, at="", settings={"method": method}, anchor=anchor, momentum=momentum)


def _study(**changes: Any) -> Study:
    given = {
        "name": "small", "question": "Which?", "source": "nobody", "x": "",
        "arms": (_arm("a"), _arm("b", anchor="a", momentum=0.9)),
        "rates": (0.05, 0.1, 0.2, 0.5),
    }  # fmt: skip
    return Study(**{**given, **changes})


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """Runs whose accuracy falls with the distance of the configured rate from 0.2, or 0.05."""
    asked: list[dict[str, Any]] = []

    def play_all(
        documents: Iterable[dict[str, Any]], jobs: int, tell: Callable[[int, int], None]
    ) -> None:
        for document in documents:
            if runs.kept(document) is None:
                asked.append(document)
                method = document["method"]
                best = 0.05 if method["mixing"] == 0.5 else 0.2
                away = abs(method["optimizer"]["arguments"]["lr"] - best)
                runs.keep(document, run(0.5, 1 - away, loss=9.0 if away > 0.25 else 0.1))

    for function in (runs.keep, runs.kept):
        monkeypatch.setattr(function, "__defaults__", (tmp_path,))
    monkeypatch.setattr(runs, "play_all", play_all)
    return asked


def test_each_arm_is_tuned_with_the_same_budget_and_then_run_on_other_seeds(
    played: list[dict[str, Any]],
) -> None:
    study = _study()
    summary = summaries.reproduce(study, 1, lambda *_: None)
    tuning = [d for d in played if d["data"]["arguments"]["validation"]]
    # Two of the four rates for each, then those beside the best: one of them at the grid's edge.
    assert [d["seed"] for d in tuning] == [TUNING_SEED] * (4 + 3)
    assert {d["seed"] for d in played} == {TUNING_SEED, *SEEDS}
    first, second = summary.rows
    assert (first.rate, first.at_edge, first.anchored) == (0.2, False, ())
    assert [score for _, score in first.scores] == pytest.approx([0.85, 0.9, 1.0, None])
    # With a momentum of 0.9 a rate of 0.5 stands in the configuration as 0.05.
    assert (second.rate, second.at_edge, second.anchor_rate) == (0.5, True, 0.2)
    assert [each.accuracy for each in second.anchored] == pytest.approx([0.97] * 3)
    played.clear()
    assert summaries.reproduce(study, 1, lambda *_: None).rows == summary.rows
    assert played == []


def test_who_is_judged_by_seconds_is_tuned_by_seconds(played: list[dict[str, Any]]) -> None:
    study = _study(judged="seconds", target=0.85)
    first = summaries.reproduce(study, 1, lambda *_: None).rows[0]
    assert first.rate == 0.2
    assert first.scores[-1] == (0.5, None)


def test_summaries_come_back_as_they_were_written(
    played: list[dict[str, Any]], tmp_path: Path
) -> None:
    summary = summaries.reproduce(_study(), 1, lambda *_: None)
    path = summaries.save(summary, tmp_path / "results")
    assert summaries.load("small", tmp_path / "results") == summary
    assert json.loads(path.read_text())["study"] == "small"


# --- tables and pages ---------------------------------------------------------------------------


def test_cells_show_spread_censoring_and_divergence() -> None:
    slow, quick = run(0.5, 0.6), run(0.5, 0.9)
    assert tables.accuracy([quick, slow, quick]) == "0.900 (0.600 to 0.900)"
    assert tables.seconds([quick, slow, quick], 0.7) == "1.50 (1.50 to never)"
    assert tables.seconds([slow, slow, quick], 0.7) == "> 2.00"
    lost = run(0.1, loss=None)
    assert tables.accuracy([lost, quick, quick]).endswith("0.900), 1 of 3 diverged")
    assert tables.accuracy([lost] * 3) == "diverged (0.100 (0.100 to 0.100))"


def test_a_table_has_the_columns_that_say_something(played: list[dict[str, Any]]) -> None:
    study = _study()
    text = tables.block(study, summaries.reproduce(study, 1, lambda *_: None))
    heading, _, first, second = text.splitlines()[:4]
    assert heading == "| method | best rate | accuracy | staleness | with another's best rate |"
    assert first == "| `a` | 0.2 | 1.000 (1.000 to 1.000) | 1.0 |  |"
    assert second.startswith(r"| `b` | 0.5 \* | 1.000 ")
    assert second.endswith("| 0.2 of a: 0.970 (0.970 to 0.970) |")
    assert r"\* The best rate is at an edge" in text


def test_a_page_is_filled_where_it_has_a_place() -> None:
    remark = pages.REMARK
    page = f"a\n<!-- study x: begin. {remark} -->\nold\n<!-- study x: end -->\nb"
    filled = pages.filled(page, "x", r"new \1")
    assert filled.splitlines()[3] == r"new \1" and "old" not in filled
    assert pages.filled(filled, "x", r"new \1") == filled
    with pytest.raises(ValueError, match="has no lines"):
        pages.filled(page, "y", "new")


def test_the_command_names_the_studies(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "outer"]) == 0
    assert capsys.readouterr().out.startswith("outer: What does outer momentum do")
    with pytest.raises(SystemExit) as stopped:
        main(["outr"])
    assert stopped.value.code == 2
    assert "there is no study 'outr'; there are: softsync" in capsys.readouterr().err
