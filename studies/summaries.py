"""From a study's runs to its summary: what is committed, and what the pages are made of."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

from studies import runs
from studies.base import SEEDS, TUNING_SEED, Arm, Study
from studies.runs import Run

RESULTS = Path(__file__).resolve().parent / "results"

Tell = Callable[[str, int, int], None]


class Row(NamedTuple):
    """What one arm came to.

    ``scores``: for each rate of its own tuning what its run was judged by; None: not reached, or
    diverged. ``found``: the runs with the best ``rate``. ``anchored``: those with the anchor's.
    """

    arm: str
    series: str
    at: str
    rate: float
    scores: tuple[tuple[float, float | None], ...]
    found: tuple[Run, ...]
    anchor_rate: float | None = None
    anchored: tuple[Run, ...] = ()

    @property
    def at_edge(self) -> bool:
        """Whether the best rate is the grid's first or last: a better one may lie beyond."""
        rates = [rate for rate, _ in self.scores]
        return bool(rates) and self.rate in (min(rates), max(rates))


class Summary(NamedTuple):
    """What a study came to, and where it was run."""

    study: str
    made: str
    rows: tuple[Row, ...]

    def row(self, arm: str) -> Row:
        """That arm's row."""
        return next(row for row in self.rows if row.arm == arm)


def reproduce(study: Study, jobs: int, tell: Tell) -> Summary:
    """Run a study, or what of it was not run before.

    Args:
        study: which one.
        jobs: how many runs at a time.
        tell: is told study and stage, how many runs of it are done, of how many.
    """
    tuned = _tune(study, jobs, lambda *count: tell(f"{study.name}: rates", *count))
    best = {name: _best(study, found) for name, found in tuned.items()}
    best |= {arm.name: best[arm.tuned_as] for arm in study.arms if arm.tuned_as is not None}
    rates = {(arm.name, best[arm.name]) for arm in study.arms}
    rates |= {(arm.name, best[arm.anchor]) for arm in study.arms if arm.anchor is not None}
    documents = [
        study.arm(name).document(rate, seed, validation=False)
        for name, rate in sorted(rates)
        for seed in SEEDS
    ]
    runs.play_all(documents, jobs, lambda *count: tell(f"{study.name}: seeds", *count))
    made = (
        f"{datetime.now(UTC).date().isoformat()}: {platform.machine()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )
    return Summary(study.name, made, tuple(_row(study, arm, tuned, best) for arm in study.arms))


def _tune(study: Study, jobs: int, tell: Callable[[int, int], None]) -> dict[str, dict[float, Run]]:
    """For each arm the rates that were tried: every second one, then those beside the best."""
    coarse = {arm.name: study.rates[1::2] for arm in study.arms if arm.tuned_as is None}
    found = _tried(study, coarse, jobs, tell)
    fine = {name: _beside(study.rates, _best(study, tried)) for name, tried in found.items()}
    return _tried(study, {name: (*coarse[name], *fine[name]) for name in coarse}, jobs, tell)


def _tried(
    study: Study,
    rates: Mapping[str, Sequence[float]],
    jobs: int,
    tell: Callable[[int, int], None],
) -> dict[str, dict[float, Run]]:
    documents = {
        name: {
            rate: study.arm(name).document(rate, TUNING_SEED, validation=True)
            for rate in sorted(tried)
        }
        for name, tried in rates.items()
    }
    runs.play_all([d for each in documents.values() for d in each.values()], jobs, tell)
    return {
        name: {rate: _kept(document) for rate, document in each.items()}
        for name, each in documents.items()
    }


def _beside(rates: Sequence[float], rate: float) -> Sequence[float]:
    place = rates.index(rate)
    return (*rates[max(place - 1, 0) : place], *rates[place + 1 : place + 2])


def _kept(document: Mapping[str, Any]) -> Run:
    found = runs.kept(document)
    if found is None:
        raise RuntimeError(f"run {runs.key(document)} has vanished from {runs.KEPT}")
    return found


def _best(study: Study, found: Mapping[float, Run]) -> float:
    """The rate whose run is best, the smallest one of equals; all that diverged are equal."""

    def rank(rate: float) -> tuple[bool, float, float]:
        run = found[rate]
        seconds = run.seconds_to(study.target) if study.judged == "seconds" else 0.0
        return run.diverged, seconds, 0.0 if run.diverged else -run.accuracy

    return min(sorted(found), key=rank)


def score(study: Study, run: Run) -> float | None:
    """What a run is judged by; None if it diverged or did not reach the target."""
    if study.judged == "accuracy":
        return None if run.diverged else run.accuracy
    seconds = run.seconds_to(study.target)
    return round(seconds, 4) if math.isfinite(seconds) else None


def _row(
    study: Study, arm: Arm, tuned: Mapping[str, Mapping[float, Run]], best: Mapping[str, float]
) -> Row:
    def with_rate(rate: float) -> tuple[Run, ...]:
        return tuple(_kept(arm.document(rate, seed, validation=False)) for seed in SEEDS)

    anchor_rate = None if arm.anchor is None else best[arm.anchor]
    return Row(
        arm=arm.name,
        series=arm.series,
        at=arm.at,
        rate=best[arm.name],
        scores=tuple((rate, score(study, run)) for rate, run in tuned.get(arm.name, {}).items()),
        found=with_rate(best[arm.name]),
        anchor_rate=anchor_rate,
        anchored=() if anchor_rate is None else with_rate(anchor_rate),
    )


def save(summary: Summary, folder: Path = RESULTS) -> Path:
    """Write a summary in place of the last one."""
    rows = [
        {
            **row._asdict(),
            "found": [asdict(run) for run in row.found],
            "anchored": [asdict(run) for run in row.anchored],
        }
        for row in summary.rows
    ]
    lines = ",\n  ".join(json.dumps(row, allow_nan=False) for row in rows)
    head = f'"study": {json.dumps(summary.study)}, "made": {json.dumps(summary.made)}'
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{summary.study}.json"
    path.write_text(f'{{{head}, "rows": [\n  {lines}\n]}}\n', encoding="utf-8")
    return path


def load(name: str, folder: Path = RESULTS) -> Summary | None:
    """A study's summary, or None if it was not run."""
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    return Summary(found["study"], found["made"], tuple(_row_from(row) for row in found["rows"]))


def _row_from(found: dict[str, Any]) -> Row:
    return Row(
        **{
            **found,
            "scores": tuple((rate, judged) for rate, judged in found["scores"]),
            "found": tuple(map(runs.from_json, found["found"])),
            "anchored": tuple(map(runs.from_json, found["anchored"])),
        }
    )
