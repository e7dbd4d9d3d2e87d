"""What the main process tells of each epoch, and the evaluator that measures it meanwhile.

Theory of operation. The evaluator says when it has nothing to do. It is then given the newest epoch
that ended and was not measured; an older one that still waited is passed over, because parameters
are read when a request is taken up, and those would no longer be the epoch's. So at most one
request is under way, and at the end nothing waits but that. An epoch's evaluation is told after its
end, whose loss needs the workers' next reports.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tardygrad.engines.base import Job, Observer
from tardygrad.engines.statistics import RunStatistics

Ask = Callable[[dict[str, Any]], None]


class Epochs:
    """The ends of epochs, and their evaluations.

    Args:
        job: says which epochs are measured.
        observer: is told.
        statistics: knows the epochs' losses.
        ask: sends a request to the evaluator.
    """

    def __init__(self, job: Job, observer: Observer, statistics: RunStatistics, ask: Ask) -> None:
        self._job, self._observer, self._statistics = job, observer, statistics
        self._ask = ask
        self._every = 0 if job.test is None else job.config.evaluation.every_epochs
        self._ended: list[tuple[float, int]] = []
        self._found: list[dict[str, Any]] = []
        self._idle = False
        self._waiting: int | None = None
        self._under_way: int | None = None

    @property
    def wants_evaluator(self) -> bool:
        """Whether anything is to be measured before the end."""
        return self._every > 0

    @property
    def measuring(self) -> bool:
        """Whether the evaluator owes an answer."""
        return self._under_way is not None

    def ended(self, epoch: int) -> None:
        """An epoch (counted from 0) ended."""
        number = epoch + 1
        # The workers' next reports bring the losses of the epoch's last batches.
        self._ended.append((time.monotonic(), number))
        # The last epoch's parameters are the final ones, which are measured at the end.
        if self._every and number % self._every == 0 and number < self._job.config.epochs:
            if self._waiting is not None:
                self._pass_over("the evaluator was still at an earlier one")
            self._waiting = number
            self._request()

    def _request(self) -> None:
        if self._idle and self._waiting is not None:
            self._idle = False
            self._under_way, self._waiting = self._waiting, None
            samples = self._under_way * self._job.plan.samples
            self._ask({"epoch": self._under_way, "samples": samples})

    def _pass_over(self, reason: str) -> None:
        self._observer.decided(f"epoch {self._waiting} is not measured", reason)
        self._waiting = None

    # --- what the evaluator says --------------------------------------------------------------

    def evaluator_idle(self) -> None:
        """It is there and has nothing to do."""
        self._idle = True
        self._request()

    def evaluator_answered(self, answer: dict[str, Any]) -> None:
        """It has measured what it was asked to, or could not."""
        epoch, self._under_way = self._under_way, None
        if answer["found"] is None:
            reason = "its parameters were being written all the time"
            self._observer.decided(f"epoch {epoch} is not measured", reason)
        else:
            at_s = self._observer.now() - (time.monotonic() - answer["read_at"])
            self._found.append({**answer, "at_s": round(at_s, 6)})
            self._tell_evaluations()
        self.evaluator_idle()

    def evaluator_gone(self, *, replaced: bool) -> None:
        """It died; its successor, if there is one, measures what it owed."""
        self._idle = False
        if self._waiting is None:
            self._waiting = self._under_way
        self._under_way = None
        if not replaced:
            self._every, self._waiting = 0, None

    # --- what people hear ---------------------------------------------------------------------

    def tell(self, patience_s: float) -> None:
        """Tell of the epochs that ended so long ago."""
        while self._ended and time.monotonic() - self._ended[0][0] >= patience_s:
            _, number = self._ended.pop(0)
            self._observer.emit(
                "epoch",
                epoch=number,
                samples=number * self._job.plan.samples,
                loss=self._statistics.epoch_loss(number - 1),
            )
            self._tell_evaluations()

    def _tell_evaluations(self) -> None:
        untold = {number for _, number in self._ended}
        while self._found and self._found[0]["epoch"] not in untold:
            answer = self._found.pop(0)
            self._observer.emit(
                "evaluate",
                epoch=answer["epoch"],
                samples=answer["samples"],
                at_s=answer["at_s"],
                final=False,
                **answer["found"],
            )

    def close(self) -> None:
        """The run is over: tell what is untold, and measure nothing more."""
        self.tell(0.0)
        if self._waiting is not None:
            self._pass_over("the run was over before the evaluator came to it")
        self._every = 0
