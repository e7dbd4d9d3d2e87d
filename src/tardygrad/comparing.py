"""Run one job by several methods and seeds, and put the runs side by side.

Each trial is a run directory of its own, ``METHOD-seedN`` in the comparison's folder. A trial that
is done is not run again, and one that was stopped goes on: a comparison that was interrupted is
taken up by the same command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tardygrad import training
from tardygrad.config import DEFAULT_METHOD
from tardygrad.documents import merge
from tardygrad.errors import Preempted, TrainingFailed, UsageError, unknown
from tardygrad.methods import names, switch
from tardygrad.metrics.comparison import Trial
from tardygrad.metrics.history import History
from tardygrad.storage.run_directory import RunDirectory

__all__ = ["compare", "documents_of"]

Told = Callable[[str, int, int, int], None]
"""Called before each trial with method, seed, its number from 1, and how many there are."""


def documents_of(
    document: Mapping[str, Any], methods: Sequence[str], own: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The job's document for each method.

    Args:
        document: the job, by any method.
        methods: names of methods.
        own: for some of the methods, settings of their section.

    Raises:
        UsageError: there is no such method, or settings are for one that is not compared.
        ConfigError: a method refuses a setting.
    """
    for name in methods:
        if name not in names():
            raise UsageError(unknown("method", name, names()))
    for name in own:
        if name not in methods:
            raise UsageError(f"{name!r} has settings of its own and is not among {list(methods)}")
    given = document.get("method", {})
    section = {"name": given} if isinstance(given, str) else dict(given)
    before = {"name": DEFAULT_METHOD, **section}
    found = {}
    for name in methods:
        settings = merge(switch(before, name), own.get(name, {}))
        found[name] = {**document, "method": settings}
        training.resolve(found[name])
    return found


def compare(
    documents: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    directory: Path,
    told: Told = lambda *_: None,
) -> Iterator[Trial]:
    """Run every method with every seed; seeds come before methods, so that a part tells something.

    Args:
        documents: from :func:`documents_of`.
        seeds: each method gets all of them, and with them the same first parameters and samples.
        directory: the comparison's folder.
        told: is told what comes next.

    Raises:
        TrainingFailed: a trial failed.
        Preempted: a trial was stopped.
        RunDirectoryError: a trial's directory holds another run.
    """
    number = 0
    for seed in seeds:
        for name, document in documents.items():
            number += 1
            told(name, seed, number, len(seeds) * len(documents))
            yield _trial(name, seed, document, directory / f"{name}-seed{seed}")


def _trial(name: str, seed: int, document: Mapping[str, Any], place: Path) -> Trial:
    config = training.resolve({**document, "seed": seed})
    if not place.exists():
        result = training.run(config, out=place, quiet=True)
    else:
        found = RunDirectory.open(place)
        _check_same(found, config.model_dump(mode="json"))
        if found.record.outcome == "done":
            return Trial(name, seed, History.read(found.metrics_jsonl))
        result = training.resume(found.path, quiet=True)
    if result.outcome == "preempted":
        raise Preempted(
            f"{place} was stopped ({result.reason}); the same command again goes on from here"
        )
    if result.outcome != "done":
        raise TrainingFailed(f"{place} ended as {result.outcome}: {result.reason}")
    return Trial(name, seed, History.read(place / "metrics.jsonl"))


def _check_same(found: RunDirectory, wanted: Mapping[str, Any]) -> None:
    from tardygrad.documents import load_config

    there = training.resolve(load_config(found.config_yaml)).model_dump(mode="json")
    other = [
        key
        for key, value in wanted.items()
        # Chosen when the run began, where it was not given.
        if there.get(key) != value and not (key == "fragment_batches" and value is None)
    ]
    if other:
        raise UsageError(
            f"{found.path} was run with another {', '.join(other)}; give another --out, or delete "
            "that folder"
        )
