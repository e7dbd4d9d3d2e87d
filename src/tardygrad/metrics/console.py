"""What a person sees of a run while it goes on: live, as plain lines, or nothing.

Theory of operation.  A view is told every event and keeps what it shows; it never reads the
training processes or the clock of the run.  ``choose`` takes the live view (``live.py``) on a
terminal that can redraw, plain lines everywhere else (a file, a pipe, a notebook, a CI log).
Plain lines are short and in ASCII, one fact each, and about one progress line every five
seconds, so that the log of a long run stays readable.  A closed pipe (``tardygrad train | head``)
silences a view; it does not end the training.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Protocol, TextIO

from tardygrad.metrics import wording

PROGRESS_S = 5.0
"""Seconds of the run between two progress lines."""


class View(Protocol):
    """Whoever looks on: told every event in order, then closed."""

    def update(self, event: dict[str, Any]) -> None:
        """Take note of one event; ``event`` must not be changed."""

    def close(self) -> None:
        """The run is over, well or not; a second call does nothing."""


class QuietView:
    """Shows nothing."""

    def update(self, event: dict[str, Any]) -> None:
        """Ignore the event."""

    def close(self) -> None:
        """Nothing to close."""


class PlainView:
    """One short line for the start, each notable event, progress now and then, and the end."""

    def __init__(self, stream: TextIO, progress_s: float = PROGRESS_S) -> None:
        """Write to a stream that the caller closes.

        Args:
            stream: Where the lines go.
            progress_s: Seconds of the run (``time_s``) between two progress lines.
        """
        self._stream = stream
        self._progress_s = progress_s
        self._last_s = 0.0
        self._epochs: Any = None
        self._broken = False

    def update(self, event: dict[str, Any]) -> None:
        """Write the event's line, if it has one."""
        kind = event.get("event")
        if kind == "run_start":
            self._epochs = event.get("epochs")
            self._last_s = _seconds(event)
            self._line(event, _start(event))
        elif kind == "progress":
            if _seconds(event) - self._last_s >= self._progress_s:
                self._last_s = _seconds(event)
                self._line(event, self._progress(event))
        else:
            notice = wording.notice(event)
            if notice is not None:
                self._line(event, notice.text)

    def close(self) -> None:
        """Flush; the stream stays open."""
        self._guarded("")

    def _progress(self, event: Mapping[str, Any]) -> str:
        workers = [w for w in event.get("workers") or () if w.get("state") != "left"]
        training = sum(1 for worker in workers if worker.get("state") in ("training", "waiting"))
        staleness = event.get("staleness") or {}
        parts = [
            f"epoch {wording.number(event.get('epoch'), '.2f')}/{self._epochs or '?'}",
            f"loss {wording.loss(event.get('loss'))}",
            f"{wording.rate(event.get('samples_per_s'))} samples/s",
            f"staleness {wording.number(staleness.get('mean'), '.1f')}"
            f" (p99 {wording.number(staleness.get('p99'), '')},"
            f" max {wording.number(staleness.get('max'), '')})",
        ]
        if workers:
            parts.append(f"{training} of {wording.plural(len(workers), 'worker')} at work")
        return "  ".join(parts)

    def _line(self, event: Mapping[str, Any], text: str) -> None:
        safe = text.encode("ascii", "backslashreplace").decode("ascii")
        self._guarded(f"[{_seconds(event):8.1f} s] {safe}\n")

    def _guarded(self, text: str) -> None:
        if self._broken:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # a broken pipe; a stream that its owner has closed
            self._broken = True


def choose(quiet: bool, stream: TextIO) -> View:
    """The view that fits a stream: live on a terminal, plain lines elsewhere, nothing if quiet."""
    if quiet:
        return QuietView()
    if not (stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")):
        return PlainView(stream)
    if "utf" not in (stream.encoding or "").lower():  # the live view draws with box characters
        return PlainView(stream)
    from rich.console import Console

    from tardygrad.metrics.live import LiveView

    return LiveView(Console(file=stream))


def _start(event: Mapping[str, Any]) -> str:
    name = event.get("name") or event.get("run") or "run"
    parts = [
        f"{name}: {wording.method(event.get('method'))} on engine {event.get('engine', '?')}",
        wording.plural(event.get("workers"), "worker"),
        wording.plural(event.get("servers"), "server"),
        f"{wording.plural(event.get('epochs'), 'epoch')} of "
        f"{wording.number(event.get('samples_per_epoch'), ',')} samples",
        f"batch {event.get('batch_size', '?')}",
        f"seed {event.get('seed', '?')}",
    ]
    return wording.resumed(event) + ", ".join(parts)


def _seconds(event: Mapping[str, Any]) -> float:
    value = event.get("time_s")
    return float(value) if isinstance(value, int | float) else 0.0
