"""One run: a configuration in, what became of it out, kept in a file.

Theory of operation. A run is named by a digest of its configuration, so nothing is run twice, in
whatever study or arm it stands, and whoever is interrupted goes on where it stopped. The simulator
is deterministic: what is kept is what would come out again.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import multiprocessing.connection
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tardygrad
from studies.problem import GUESSING
from tardygrad.metrics.comparison import Trial
from tardygrad.metrics.history import History

KEPT = Path(__file__).resolve().parent / "runs"
"""Where finished runs are kept. Git ignores it; delete it after a change of the sources."""

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """What became of a run.

    ``curve``: (virtual seconds since the first update, test accuracy) after each epoch. ``loss`` is
    the final one, None if it is not finite. ``staleness`` is the mean over applied updates,
    ``dropped`` the share of samples that were booked as dropped.
    """

    curve: tuple[tuple[float, float], ...]
    loss: float | None
    staleness: float
    dropped: float

    @property
    def accuracy(self) -> float:
        """At the end."""
        return self.curve[-1][1]

    @property
    def lasted(self) -> float:
        """Virtual seconds from the first update to the end."""
        return self.curve[-1][0]

    @property
    def diverged(self) -> bool:
        """Whether it ended no better than guessing."""
        return self.loss is None or self.loss >= GUESSING

    def seconds_to(self, target: float) -> float:
        """Virtual seconds until the accuracy first crosses ``target``, or inf.

        Between two measurements the accuracy is taken to be linear.

        >>> Run(((1.0, 0.5), (2.0, 0.9), (3.0, 0.7)), 0.1, 0.0, 0.0).seconds_to(0.8)
        1.75
        """
        before_s, before = 0.0, 0.0
        for at_s, accuracy in self.curve:
            if accuracy >= target:
                return before_s + (at_s - before_s) * (target - before) / (accuracy - before)
            before_s, before = at_s, accuracy
        return math.inf


def key(document: Document) -> str:
    """The run's name."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:20]


def from_json(found: Mapping[str, Any]) -> Run:
    """A run as it was kept."""
    curve = tuple((at_s, accuracy) for at_s, accuracy in found["curve"])
    return Run(curve, found["loss"], found["staleness"], found["dropped"])


def kept(document: Document, folder: Path = KEPT) -> Run | None:
    """What became of a run, if it was run before."""
    path = folder / f"{key(document)}.json"
    return from_json(json.loads(path.read_text())) if path.exists() else None


def keep(document: Document, run: Run, folder: Path = KEPT) -> None:
    """Keep what became of a run: whole, or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / f"{key(document)}.new"
    whole.write_text(json.dumps(asdict(run), allow_nan=False))
    whole.replace(whole.with_suffix(".json"))


class Hopeless(tardygrad.Callback):
    """Stops a run that was no better than guessing after two epochs in succession: it diverged."""

    def __init__(self) -> None:
        self._lost = 0

    def on_evaluate(self, logs: dict[str, Any]) -> None:
        """One more epoch."""
        # A loss that is no number is None in the log.
        loss = logs["loss"]
        better = isinstance(loss, float) and loss < GUESSING
        self._lost = 0 if better else self._lost + 1
        self.stop_training = self.stop_training or self._lost == 2


def play(document: Document) -> Run:
    """Simulate a run to its end, in this process.

    Raises:
        TrainingFailed: it failed; or its ledger does not prove that every sample counted once.
        Preempted: it was stopped from outside.
    """
    hopeless = Hopeless()
    with tempfile.TemporaryDirectory(prefix="study-") as folder:
        place = Path(folder) / "run"
        result = tardygrad.train(recipe=document, out=place, quiet=True, callbacks=[hopeless])
        trial = Trial("", 0, History.read(place / "metrics.jsonl"))
    if result.outcome != "done" and not hopeless.stop_training:
        raise tardygrad.errors.Preempted(result.reason)
    ledger = result.summary["ledger"]
    if not ledger["exact"]:
        raise tardygrad.errors.TrainingFailed(f"the ledger is not exact: {ledger}")
    began_s = trial.began_s()
    told = trial.history.evaluations
    loss = float(told[-1]["loss"] if told[-1]["loss"] is not None else math.nan)
    return Run(
        curve=tuple((round(e["at_s"] - began_s, 4), round(e["accuracy"], 4)) for e in told),
        loss=round(loss, 4) if math.isfinite(loss) else None,
        staleness=round(result.summary["staleness"]["mean"], 3),
        dropped=round(ledger["dropped"] / (ledger["applied"] + ledger["dropped"]), 4),
    )


def play_all(documents: Iterable[Document], jobs: int, tell: Callable[[int, int], None]) -> None:
    """Run what was not run before, in ``jobs`` processes, and keep it.

    Args:
        documents: of the runs.
        jobs: how many at a time.
        tell: is told how many are done, of how many.
    """
    wanted = {key(document): document for document in documents}
    missing = [document for document in wanted.values() if kept(document) is None]
    done = len(wanted) - len(missing)
    tell(done, len(wanted))
    if not missing:
        return
    spawn = multiprocessing.get_context("spawn")
    processes = [
        spawn.Process(target=_play_and_keep, args=(missing[n::jobs],)) for n in range(jobs)
    ]
    try:
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes):
            multiprocessing.connection.wait([p.sentinel for p in processes if p.is_alive()], 1.0)
            now = len(wanted) - sum(kept(document) is None for document in missing)
            if now != done:
                done = now
                tell(done, len(wanted))
    finally:
        for process in processes:
            # A run takes a politer signal for a wish to be stopped in good order.
            if process.is_alive():
                process.kill()
    if done < len(wanted):
        raise tardygrad.errors.TrainingFailed("a run failed; its error stands above")


def _play_and_keep(documents: Sequence[Document]) -> None:
    # Drawing the picture of a run takes longer than the run, and here nobody would look at it.
    for library in ("scipy", "matplotlib"):
        sys.modules[library] = None  # type: ignore[assignment]
    for document in documents:
        keep(document, play(document))
