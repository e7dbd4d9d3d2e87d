"""The one place through which a run tells what happens: stamps each event and hands it on.

Theory of operation.  ``emit`` adds ``time_s`` and gives the event first to the log, which is the
truth and whose failure ends the run (a run whose record is lost is not worth its electricity),
then to every view.  A view only looks on, so a view that fails is put aside with a warning and
the run goes on; only what tardygrad raises on purpose (a full disk under TensorBoard's files,
say) passes.

``time_s`` counts seconds since the run's first start and never goes back: a resumed run goes on
from the last event in its log.  The clock is an argument, since the simulator has its own.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from tardygrad.errors import TardygradError
from tardygrad.metrics.console import View
from tardygrad.metrics.sink import MetricsLog


class Recorder:
    """Stamps events and passes them to the log and the views; safe to use from several threads."""

    def __init__(
        self,
        log: MetricsLog | None,
        views: Sequence[View] = (),
        clock: Callable[[], float] = time.monotonic,
        *,
        origin: float | None = None,
    ) -> None:
        """Start the run's clock.

        Args:
            log: The run's record, or None to keep none.
            views: Whoever looks on, in the order in which they are told.
            clock: Seconds of any origin that never go back.
            origin: The clock's reading that counts as the start of this incarnation (of the
                command, say); now, if not given.
        """
        self._log = log
        self._views = list(views)
        self._clock = clock
        self._origin = clock() if origin is None else origin
        self._before_s = log.last_time_s if log is not None else 0.0
        self._last_s = self._before_s
        self._lock = threading.RLock()  # a view may itself emit
        self._closed = False

    def now(self) -> float:
        """Seconds since the run's first start (what ``emit`` would write as ``time_s``)."""
        return max(self._last_s, round(self._before_s + self._clock() - self._origin, 6))

    def emit(self, event: str, **fields: Any) -> dict[str, Any]:
        """Record one event and return it as it was recorded.

        Args:
            event: Its kind, as in the table of ``tardygrad.metrics``.
            fields: The rest of it.

        Raises:
            StorageError: the log cannot be written.
            ValueError: a field is called ``time_s``, which is the recorder's to set.
        """
        if "time_s" in fields:
            raise ValueError(
                f"event {event!r} was given time_s={fields['time_s']!r}; the recorder sets it"
            )
        with self._lock:
            record: dict[str, Any] = {"event": event, "time_s": self.now(), **fields}
            self._last_s = record["time_s"]
            if self._log is not None:
                self._log.write(record)
            for view in tuple(self._views):
                try:
                    view.update(record)
                except TardygradError:
                    raise
                except Exception as error:
                    self._put_aside(view, error)
        return record

    def close(self) -> None:
        """Close the views and the log; a second call does nothing.

        Raises:
            StorageError: the log's last lines cannot be written to the device.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for view in tuple(self._views):
                try:
                    view.close()
                except Exception as error:
                    self._put_aside(view, error)
            if self._log is not None:
                self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _put_aside(self, view: View, error: Exception) -> None:
        self._views = [other for other in self._views if other is not view]
        warnings.warn(
            f"{type(view).__name__} failed and is put aside; the run goes on: {error!r}",
            RuntimeWarning,
            stacklevel=3,
        )
