"""Both engines pass the same battery, and the battery notices a broken engine."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch

from tardygrad.engines.base import Job, Observer, RunEnd, SnapshotStore
from tardygrad.engines.inline import InlineEngine
from tardygrad.engines.processes import ProcessesEngine
from tardygrad.engines.stores import DirectoryStore
from tardygrad.testing.battery import check_engine


def test_the_simulator_conforms() -> None:
    check_engine(InlineEngine())


@pytest.mark.slow
def test_real_processes_conform(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    numbers = itertools.count()

    def place(job: Job) -> tuple[Job, SnapshotStore]:
        run = tmp_path / f"run-{next(numbers)}"
        for part in ("trace", "logs", "checkpoints"):
            (run / part).mkdir(parents=True)
        placed = dataclasses.replace(job, run_directory=run, trace_directory=run / "trace")
        return placed, DirectoryStore(run, job.layout, job.ranges)

    check_engine(ProcessesEngine(), place)


class _Sloppy(InlineEngine):
    """Hands back parameters that it did not save."""

    def run(self, job: Job, observer: Observer, store: SnapshotStore) -> RunEnd:
        end = super().run(job, observer, store)
        end.parameters += 1
        return end


class _Mute(InlineEngine):
    """Tells nobody of the epochs."""

    def run(self, job: Job, observer: Observer, store: SnapshotStore) -> RunEnd:
        tell = observer.emit
        observer.emit = lambda event, **fields: (  # type: ignore[method-assign]  # the fault
            None if event == "epoch" else tell(event, **fields)
        )
        return super().run(job, observer, store)


@pytest.mark.parametrize(
    ("engine", "what"),
    [(_Sloppy(), "the last checkpoint is not the result"), (_Mute(), r"tells of the epochs \[\]")],
)
def test_a_broken_engine_is_noticed(engine: InlineEngine, what: str) -> None:
    with pytest.raises(AssertionError, match=what):
        check_engine(engine)
