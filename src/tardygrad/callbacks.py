"""Callbacks with the names that everybody knows, told in the main process.

Steps are counted by the servers and reported about twice a second, so ``on_step_end`` is called
that often, with the newest count, and not once for each of thousands of updates a second. A
callback that raises ends the run in good order: it is stopped and checkpointed, then the error is
shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


class Callback:
    """Override what you want to hear. ``logs`` are the fields of the event in metrics.jsonl.

    Set ``self.stop_training = True`` to stop the run in good order (it can be resumed).
    """

    stop_training: bool = False
    _emit: Callable[..., None] | None = None

    def emit(self, event: str, **fields: Any) -> None:
        """Put an event of your own into metrics.jsonl; from any thread.

        Args:
            event: its kind; one that tardygrad does not use itself.
            fields: what else it has.

        Raises:
            ValueError: the run has not begun, or is over.
        """
        if self._emit is None:
            raise ValueError(f"event {event!r} comes before the run; expected it while it goes on")
        self._emit(event, **fields)

    def change_workers(self, *, add: int = 0, remove: int = 0) -> None:
        """Ask for so many workers more or fewer; see ``tardygrad.workers``.

        Returns at once. What became of the wish stands in events.log and shows in the next logs.

        Raises:
            UsageError: a number is negative.
        """
        from tardygrad.engines.operator import check_change

        check_change(add, remove)
        self.__dict__.setdefault("_wishes", []).append((add, remove))

    def on_train_begin(self) -> None:
        """The run directory is there; no process has started."""

    def on_step_end(self, samples: int, logs: dict[str, Any]) -> None:
        """Updates were applied: ``samples`` so far (about twice a second)."""

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        """Every sample of epoch ``epoch`` (from 1) is booked on every shard."""

    def on_evaluate(self, logs: dict[str, Any]) -> None:
        """The newest parameters were measured on the test data."""

    def on_checkpoint(self, logs: dict[str, Any]) -> None:
        """A checkpoint is complete on storage."""

    def on_train_end(self, logs: dict[str, Any]) -> None:
        """The run is over; ``logs`` is its summary."""


class CallbackList:
    """Passes events on to callbacks in their order.

    One that raises is called no more, and the first error is kept: the run stops because of it and
    raises it at its end.
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = list(callbacks)
        self._error: Exception | None = None
        self._error_reason = ""

    @property
    def stop_reason(self) -> str:
        """Why a callback wants the run to stop, or an empty string."""
        if self._error_reason:
            return self._error_reason
        for callback in self._callbacks:
            if callback.stop_training:
                return f"{type(callback).__name__} set stop_training"
        return ""

    def wishes(self) -> list[tuple[int, int]]:
        """What callbacks want of the number of workers, as (add, remove); each is told once."""
        return [wish for c in self._callbacks for wish in c.__dict__.pop("_wishes", ())]

    def begin(self, emit: Callable[..., None]) -> None:
        """The run begins; an error here is raised at once, as nothing is to be wound up yet.

        Args:
            emit: puts an event into metrics.jsonl, by its kind and its fields.
        """
        for callback in self._callbacks:
            callback._emit = emit
            callback.on_train_begin()

    def tell(self, record: dict[str, Any]) -> None:
        """An event happened."""
        kind = record["event"]
        if kind == "progress":
            self._call("on_step_end", record["samples"], record)
        elif kind == "epoch":
            self._call("on_epoch_end", record["epoch"], record)
        elif kind == "evaluate":
            self._call("on_evaluate", record)
        elif kind == "checkpoint":
            self._call("on_checkpoint", record)

    def end(self, summary: dict[str, Any]) -> None:
        """The run is over.

        Raises:
            Exception: what a callback raised during the run.
        """
        self._call("on_train_end", summary)
        if self._error is not None:
            self._error.add_note(f"{self._error_reason}; the run was wound up in good order")
            raise self._error

    def _call(self, name: str, *arguments: Any) -> None:
        for callback in tuple(self._callbacks):
            try:
                getattr(callback, name)(*arguments)
            except Exception as error:
                self._callbacks = [other for other in self._callbacks if other is not callback]
                if self._error is None:
                    kind = type(error).__name__
                    self._error = error
                    self._error_reason = f"{type(callback).__name__}.{name} raised {kind}"
