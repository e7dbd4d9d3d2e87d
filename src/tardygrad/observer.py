"""Who is told what happens in a run, and how a run is asked to stop.

metrics.jsonl comes first (its failure ends the run), then events.log, the views and the callbacks.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tardygrad.callbacks import CallbackList
from tardygrad.metrics.recorder import Recorder


class RunObserver:
    """Tells metrics.jsonl, events.log, the views and the callbacks what happens."""

    def __init__(self, recorder: Recorder, log: Path, callbacks: CallbackList) -> None:
        self._recorder = recorder
        self._log = log
        self._callbacks = callbacks
        self.stop_reason = ""
        self.history: list[dict[str, Any]] = []

    def emit(self, event: str, **fields: Any) -> None:
        """An event for metrics.jsonl."""
        record = self._recorder.emit(event, **fields)
        if event in ("epoch", "evaluate", "run_end"):
            self.history.append(record)
        if event == "member":
            who = f"{fields['kind']} {fields['id']} {fields['state']}"
            self.decided(who, fields["reason"] or f"incarnation {fields['incarnation']}")
        self._callbacks.tell(record)

    def decided(self, decision: str, reason: str) -> None:
        """A decision and why, for events.log; one that cannot be written is not worth a run.

        May be called from any thread.
        """
        with contextlib.suppress(OSError), self._log.open("a", encoding="utf-8") as file:
            file.write(f"{self.now():.3f}\t{decision}\t{reason}\n")

    def now(self) -> float:
        """Seconds since the run's first start."""
        return self._recorder.now()

    def interrupted(self) -> str:
        """Why the run must stop now, or an empty string."""
        return self.stop_reason or self._callbacks.stop_reason

    def wishes(self) -> list[tuple[int, int]]:
        """How many workers are to join and to leave, as callbacks wish; each is told once."""
        return self._callbacks.wishes()


@contextlib.contextmanager
def stopped_by_signals(observer: RunObserver) -> Iterator[None]:
    """SIGTERM and the first Ctrl-C stop the run in good order; the second stops it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: types.FrameType | None) -> None:
        if observer.stop_reason:
            if number == signal.SIGTERM:
                return  # some schedulers send it again and again; only a person is in a hurry
            raise KeyboardInterrupt
        observer.stop_reason = f"{signal.Signals(number).name} was received"

    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
