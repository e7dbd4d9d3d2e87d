"""What is told of each epoch, and what the evaluator is asked."""

from __future__ import annotations

import time
from typing import Any

import torch

from tardygrad.data.sources import ArraySource
from tardygrad.engines.epochs import Epochs
from tardygrad.engines.statistics import RunStatistics
from tardygrad.models.null import NullAdapter
from tardygrad.testing.simulation import SilentObserver, make_job, null_job


class Desk(Epochs):
    """With the evaluator and the observer in the test's hands."""

    def __init__(self, every_epochs: int = 1, *, epochs: int = 10) -> None:
        self.asked: list[dict[str, Any]] = []
        self.observer = Told()
        test = ArraySource(torch.zeros(1), torch.zeros(1))
        evaluation = {"every_epochs": every_epochs}
        job = make_job(
            lambda: NullAdapter(64), None, samples=640, test=test, epochs=epochs,
            evaluation=evaluation,
        )  # fmt: skip
        statistics = RunStatistics(1, 1, 640)
        super().__init__(job, self.observer, statistics, self.asked.append)

    def epochs_asked(self) -> list[int]:
        return [request["epoch"] for request in self.asked]

    def answer(self, *, samples: int = 0, found: dict[str, float] | None = None) -> None:
        request = self.asked[-1]
        self.evaluator_answered(
            {
                **request,
                "samples": max(request["samples"], samples),
                "read_at": time.monotonic(),
                "found": {"loss": 1.0} if found is None else found or None,
            }
        )


class Told(SilentObserver):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[Any, ...]] = []

    def emit(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields["epoch"], fields["samples"]))

    def decided(self, decision: str, reason: str) -> None:
        self.lines.append((f"{decision}: {reason}",))


def test_each_epoch_is_measured_while_the_evaluator_keeps_up() -> None:
    desk = Desk()
    desk.evaluator_idle()
    for epoch in range(3):
        desk.ended(epoch)
        desk.tell(0.0)
        desk.answer(samples=640 * (epoch + 1) + 32)
    assert desk.observer.lines == [
        ("epoch", 1, 640),
        ("evaluate", 1, 672),
        ("epoch", 2, 1280),
        ("evaluate", 2, 1312),
        ("epoch", 3, 1920),
        ("evaluate", 3, 1952),
    ]


def test_a_slow_evaluator_gets_the_newest_epoch() -> None:
    desk = Desk()
    desk.evaluator_idle()
    for epoch in range(5):
        desk.ended(epoch)
    desk.tell(0.0)
    assert desk.epochs_asked() == [1]
    desk.answer()
    assert desk.epochs_asked() == [1, 5]
    desk.answer()
    why = "is not measured: the evaluator was still at an earlier one"
    decisions = [line[0] for line in desk.observer.lines if len(line) == 1]
    assert decisions == [f"epoch {n} {why}" for n in (2, 3, 4)]
    assert [line[1] for line in desk.observer.lines if line[0] == "evaluate"] == [1, 5]


def test_an_evaluator_that_is_not_there_yet_is_asked_when_it_is() -> None:
    desk = Desk(2, epochs=6)
    for epoch in range(6):
        desk.ended(epoch)
    assert desk.asked == [] and not desk.measuring
    desk.evaluator_idle()
    # The last epoch's parameters are measured at the end.
    assert desk.epochs_asked() == [4] and desk.measuring


def test_an_evaluation_is_told_after_its_epoch() -> None:
    desk = Desk()
    desk.evaluator_idle()
    desk.ended(0)
    desk.answer()
    assert desk.observer.lines == []
    desk.tell(0.0)
    assert [line[0] for line in desk.observer.lines] == ["epoch", "evaluate"]


def test_at_the_end_nothing_new_is_begun() -> None:
    desk = Desk()
    desk.evaluator_idle()
    desk.ended(0)
    desk.ended(1)
    desk.close()
    assert desk.measuring
    told = "epoch 2 is not measured: the run was over before the evaluator came to it"
    assert (told,) in desk.observer.lines
    desk.answer()
    assert not desk.measuring and desk.epochs_asked() == [1]
    assert desk.observer.lines[-1] == ("evaluate", 1, 640)


def test_what_a_dead_evaluator_owed_its_successor_measures() -> None:
    desk = Desk()
    desk.evaluator_idle()
    desk.ended(0)
    desk.evaluator_gone(replaced=True)
    assert not desk.measuring
    desk.evaluator_idle()
    assert desk.epochs_asked() == [1, 1]
    desk.ended(1)
    desk.evaluator_gone(replaced=True)
    desk.evaluator_idle()
    assert desk.epochs_asked() == [1, 1, 2]


def test_without_an_evaluator_nothing_is_waited_for() -> None:
    desk = Desk()
    desk.evaluator_idle()
    desk.ended(0)
    desk.evaluator_gone(replaced=False)
    desk.ended(1)
    desk.close()
    assert not desk.measuring and not desk.wants_evaluator
    assert [line[0] for line in desk.observer.lines] == ["epoch", "epoch"]


def test_parameters_that_could_not_be_read_are_not_measured() -> None:
    desk = Desk()
    desk.evaluator_idle()
    desk.ended(0)
    desk.answer(found={})
    desk.tell(0.0)
    told = "epoch 1 is not measured: its parameters were being written all the time"
    assert desk.observer.lines == [(told,), ("epoch", 1, 640)]


def test_a_run_without_test_data_needs_no_evaluator() -> None:
    job = null_job(epochs=2, evaluation={"every_epochs": 1})
    epochs = Epochs(job, SilentObserver(), RunStatistics(1, 1, 640), lambda request: None)
    assert not epochs.wants_evaluator
