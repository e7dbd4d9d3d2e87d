"""The live terminal view: one panel that redraws in place.

Theory of operation.  ``update`` alone changes what the view knows (``_Shown``); drawing only reads
it.  rich's refresh thread draws twice a second (as often as progress is told: more would take time
from the workers), under a lock, so that a half-told event is never drawn.  Between events only the
elapsed time goes on, by the clock handed in; a simulated run tells its own time and is shown as
told.  Names and reasons come from outside, so all text is placed as ``Text``, never as markup.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tardygrad.metrics import wording

REFRESH_PER_S = 2.0
NOTICES = 6
"""How many of the latest notable events stay on the screen."""

RATE_WINDOW_S = 20.0
"""The time left is judged by the speed over this many seconds."""

_ROWS_OTHERWISE = 13 + NOTICES  # lines of the panel that are not rows of workers
_ROWS_AT_LEAST = 4
_TONES = {"good": "green", "bad": "bold red", "info": "default"}
_STATES = {
    "starting": "cyan",
    "training": "green",
    "waiting": "yellow",
    "dead": "bold red",
    "restarting": "magenta",
    "put_aside": "red",
    "leaving": "yellow",
    "left": "dim",
    "done": "dim",
}
_MEMBER_STATES = {
    "started": "starting",
    "ready": "training",
    "died": "dead",
    "put_aside": "put_aside",
    "leaving": "leaving",
    "left": "done",
}
_COLUMNS = (
    "worker",
    "state",
    "samples/s",
    "stale\np50",
    "stale\np99",
    "stale\nmax",
    "computing",
    "waiting",
    "communicating",
    "restarts",
)
_WIDE = 110  # columns of a terminal in which everything can be spelt out
_SHORT = {"computing": "comp", "waiting": "wait", "communicating": "comm"}


class _Point(NamedTuple):
    time_s: float
    samples: float


@dataclass
class _Shown:
    """All that the panel shows; ``LiveView.update`` is its one writer."""

    start: Mapping[str, Any] = field(default_factory=dict)
    progress: Mapping[str, Any] = field(default_factory=dict)
    loss: Any = None
    evaluated: Mapping[str, Any] = field(default_factory=dict)
    end: Mapping[str, Any] = field(default_factory=dict)
    workers: dict[int, dict[str, Any]] = field(default_factory=dict)
    notices: deque[tuple[float, wording.Notice]] = field(
        default_factory=lambda: deque(maxlen=NOTICES)
    )
    points: deque[_Point] = field(default_factory=deque)
    time_s: float = 0.0
    told_at: float = 0.0


class LiveView:
    """Header, progress, key figures, a row for each worker, and the last notable events."""

    def __init__(
        self,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        auto_refresh: bool = True,
    ) -> None:
        """Prepare the view; it appears with the first event.

        Args:
            console: Where to draw; the terminal of standard output if not given.
            clock: Seconds of any origin, to let the elapsed time go on between events.
            auto_refresh: Redraw from a thread of its own; otherwise after each event.
        """
        self._console = console if console is not None else Console()
        self._clock = clock
        self._auto_refresh = auto_refresh
        self._shown = _Shown()
        self._lock = threading.Lock()
        self._live: Live | None = None
        self._closed = False

    def update(self, event: dict[str, Any]) -> None:
        """Take note of one event."""
        if self._closed:
            return
        with self._lock:
            self._note(event)
        # rich holds its own lock while it draws, and drawing takes ours: never call it with ours.
        if self._live is None:
            self._live = Live(
                get_renderable=self.render,
                console=self._console,
                auto_refresh=self._auto_refresh,
                refresh_per_second=REFRESH_PER_S,
                vertical_overflow="ellipsis",
            )
            self._live.start(refresh=True)
        elif not self._auto_refresh:
            self._live.refresh()

    def close(self) -> None:
        """Draw the last state and leave it on the terminal."""
        self._closed = True
        if self._live is not None:
            self._live.stop()
            self._live = None

    def render(self) -> RenderableType:
        """The panel as it stands."""
        with self._lock:
            parts: list[RenderableType] = [self._progress_line(), self._figures()]
            if self._shown.workers:
                parts.append(self._worker_table())
            parts.extend(_notice_line(time_s, notice) for time_s, notice in self._shown.notices)
            last = wording.notice(self._shown.end)
            if last is not None:
                parts += [Text(), Text(last.text, style=_TONES[last.tone])]
            return Panel(Group(*parts), title=self._title(), title_align="left", box=box.ROUNDED)

    def _note(self, event: Mapping[str, Any]) -> None:
        shown = self._shown
        shown.told_at = self._clock()
        time_s = event.get("time_s")
        if isinstance(time_s, int | float):
            shown.time_s = float(time_s)
        match event.get("event"):
            case "run_start":
                shown.start = dict(event)
                shown.points.clear()
                for worker in range(int(event.get("workers") or 0)):
                    shown.workers.setdefault(worker, {"state": "starting"})
            case "progress":
                self._note_progress(event)
            case "member":
                self._note_member(event)
            case "evaluate":
                shown.evaluated = dict(event)
            case "run_end":
                shown.end = dict(event)
                self._note_workers(event)
                return
        notice = wording.notice(event)
        if notice is not None:
            shown.notices.append((shown.time_s, notice))

    def _note_progress(self, event: Mapping[str, Any]) -> None:
        shown = self._shown
        shown.progress = dict(event)
        if event.get("loss") is not None:
            shown.loss = event["loss"]
        self._note_workers(event)
        samples = event.get("samples")
        if isinstance(samples, int | float):
            shown.points.append(_Point(shown.time_s, float(samples)))
            while shown.time_s - shown.points[0].time_s > RATE_WINDOW_S:
                shown.points.popleft()

    def _note_workers(self, event: Mapping[str, Any]) -> None:
        for row in event.get("workers") or ():
            self._shown.workers[int(row.get("worker", 0))] = dict(row)

    def _note_member(self, event: Mapping[str, Any]) -> None:
        """Between two progress events a death must not look like a worker at work."""
        state = _MEMBER_STATES.get(str(event.get("state")))
        if event.get("kind") != "worker" or state is None:
            return
        row = self._shown.workers.setdefault(int(event.get("id", 0)), {})
        if state == "starting" and wording.restarts(event.get("incarnation")):
            state = "restarting"
        row["state"] = state
        if state in ("dead", "restarting", "put_aside"):
            row["samples_per_s"] = None

    def _title(self) -> Text:
        start = self._shown.start
        title = Text(str(start.get("name") or start.get("run") or "tardygrad"), style="bold")
        if start:
            facts = (
                wording.method(start.get("method")),
                str(start.get("engine", "?")),
                wording.plural(start.get("workers"), "worker"),
                wording.plural(start.get("servers"), "server"),
            )
            title.append("".join(f" · {fact}" for fact in facts), style="not bold dim")
            title.append(f" · {wording.resumed(start)}".rstrip(": ·"), style="not bold")
        return title

    def _progress_line(self) -> RenderableType:
        shown = self._shown
        epochs = shown.start.get("epochs") or 0
        epoch = shown.progress.get("epoch") or _begun(shown.start)
        if shown.end.get("outcome") == "done":
            epoch = max(epoch, epochs)
        current = min(int(epoch) + 1, epochs) if epochs else int(epoch) + 1
        within = min(max(epoch - (current - 1), 0.0), 1.0)
        line = Table.grid(padding=(0, 2), expand=True)
        line.add_column(no_wrap=True)
        line.add_column(ratio=1)
        for _ in range(3):
            line.add_column(no_wrap=True, justify="right")
        line.add_row(
            Text(f"epoch {current}/{epochs or '?'}", style="bold"),
            ProgressBar(total=1.0, completed=within, complete_style="cyan", finished_style="green"),
            Text(f"{100 * within:3.0f} %"),
            _labelled("elapsed", wording.duration(self._elapsed_s())),
            _labelled("left", wording.duration(self._left_s())),
        )
        return line

    def _figures(self) -> RenderableType:
        shown = self._shown
        progress = shown.progress
        staleness = progress.get("staleness") or {}
        stale = f"{wording.number(staleness.get('mean'), '.2f')}"
        extremes = ("p99", "max") if self._wide() else ("max",)
        tail = ", ".join(f"{name} {wording.number(staleness.get(name), 'g')}" for name in extremes)
        figures = [_labelled("train loss", wording.loss(shown.loss))]
        for name, value in list(wording.metrics(shown.evaluated).items())[:2]:
            figures.append(_labelled(name, wording.metric(name, value)))
        if not shown.evaluated:
            figures.append(_labelled("accuracy", wording.MISSING))
        rate = shown.end.get("samples_per_s") or progress.get("samples_per_s")
        figures.append(_labelled("samples/s", wording.rate(rate)))
        figures.append(_labelled("staleness", f"{stale} ({tail})"))
        line = Table.grid(padding=(0, 2))
        line.add_row(*figures)
        return line

    def _worker_table(self) -> RenderableType:
        wide = self._wide()
        table = Table(
            box=box.SIMPLE_HEAD,
            expand=True,
            pad_edge=False,
            padding=(0, 1) if wide else 0,
            header_style="dim",
        )
        for column in _COLUMNS:
            table.add_column(
                column if wide else _SHORT.get(column, column),
                justify="left" if column == "state" else "right",
                vertical="bottom",
                no_wrap=True,
            )
        workers = sorted(self._shown.workers.items())
        room = max(_ROWS_AT_LEAST, self._console.height - _ROWS_OTHERWISE)
        for worker, row in workers[:room]:
            table.add_row(*_worker_cells(worker, row))
        hidden = workers[room:]
        if not hidden:
            return table
        training = sum(1 for _, row in hidden if row.get("state") in ("training", "waiting"))
        more = f"and {wording.plural(len(hidden), 'worker')} more, {training} of them at work"
        return Group(table, Text(more, style="dim"))

    def _wide(self) -> bool:
        return self._console.width >= _WIDE

    def _elapsed_s(self) -> float:
        shown = self._shown
        if shown.end or shown.start.get("engine") == "inline":
            return shown.time_s
        return shown.time_s + max(self._clock() - shown.told_at, 0.0)

    def _left_s(self) -> float | None:
        """Seconds to the end at the speed of the last seconds; None if it cannot be said."""
        shown = self._shown
        if shown.end.get("outcome") == "done":
            return 0.0
        epochs, per_epoch = shown.start.get("epochs"), shown.start.get("samples_per_epoch")
        if not epochs or not per_epoch or len(shown.points) < 2 or shown.end:
            return None
        first, last = shown.points[0], shown.points[-1]
        done, took_s = last.samples - first.samples, last.time_s - first.time_s
        if done <= 0 or took_s <= 0:
            return None
        return float(max(epochs * per_epoch - last.samples, 0.0) * took_s / done)


def _begun(start: Mapping[str, Any]) -> float:
    """Epochs that were done when the run was resumed."""
    return float(start.get("samples") or 0) / (start.get("samples_per_epoch") or 1)


def _labelled(label: str, value: str) -> Text:
    return Text.assemble((f"{label} ", "dim"), (value, "bold"))


def _worker_cells(worker: int, row: Mapping[str, Any]) -> list[Text]:
    state = str(row.get("state") or wording.MISSING)
    staleness = row.get("staleness") if row.get("samples") else None
    stale = [wording.number((staleness or {}).get(name), "g") for name in ("p50", "p99", "max")]
    restarts = row.get("restarts") or 0
    return [
        Text(str(worker)),
        Text(state.replace("_", " "), style=_STATES.get(state, "default")),
        Text(wording.rate(row.get("samples_per_s"))),
        *(Text(value) for value in stale),
        *(Text(share) for share in _shares(row)),
        Text(str(restarts), style="bold yellow" if restarts else "default"),
    ]


def _shares(row: Mapping[str, Any]) -> list[str]:
    """What parts of its time a worker computed, waited and communicated, in per cent."""
    parts = [row.get(name) or 0.0 for name in ("computing_s", "waiting_s", "communicating_s")]
    total = sum(parts)
    if total <= 0:
        return [wording.MISSING] * len(parts)
    return [f"{100 * part / total:.0f} %" for part in parts]


def _notice_line(time_s: float, notice: wording.Notice) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(f"{wording.duration(time_s):>8}  ", style="dim")
    line.append(notice.text, style=_TONES[notice.tone])
    return line
