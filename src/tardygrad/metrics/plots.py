"""``curves.png``: one picture of a run, from its metrics alone.

Theory of operation.  Six panels answer six questions: how fast it learnt per sample and per
second, how good it got, how stale its updates were, what its workers did with their time, and how
fast it went (with the deaths).  ``figure`` builds a matplotlib figure of its own (no pyplot, so
nothing global is touched and a notebook's own figures stay as they are); each panel is one
function that says so when the run has nothing to show in it.  Long runs are averaged down to what
the picture can resolve.  The colours stay distinct for colour-blind readers and in print.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from tardygrad.metrics import summary, wording
from tardygrad.metrics.history import Floats, History, as_float
from tardygrad.metrics.sink import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILE_NAME = "curves.png"
"""The name of the file in a run directory."""

WIDTH_PX, HEIGHT_PX, DPI = 1600, 1000, 100

_INK, _FAINT, _GRID = "#2b2b2b", "#767676", "#e8e8e8"
_TRAIN, _TEST, _BAD, _BACK = "#3a6ea5", "#d9822b", "#c0392b", "#2e8b57"
_SHARES = (("computing", "#3a6ea5"), ("waiting", "#cfd4da"), ("communicating", "#e6b34a"))
_POINTS_MAX = 400  # of a line; more cannot be told apart in a panel of 450 pixels
_BINS = 160  # at most, of the utilisation strips
_STRIPS_MAX = 24  # workers drawn one by one; more become one row of pixels each
_UNITS = ((7200.0, 3600.0, "h"), (300.0, 60.0, "min"), (0.0, 1.0, "s"))


def write_curves(history: History, path: Path) -> Path:
    """Write the picture, 1600 x 1000 pixels; an older file is replaced whole.

    Raises:
        ImportError: matplotlib is missing (``report`` says so in words).
        StorageError: the file cannot be written.
    """
    buffer = io.BytesIO()
    figure(history).savefig(buffer, format="png", dpi=DPI, facecolor="white")
    replace_file(path, buffer.getvalue())
    return path


def figure(history: History) -> Figure:
    """The picture as a matplotlib figure, to show in a notebook or save in another format.

    Raises:
        ImportError: matplotlib is missing.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    picture = Figure(figsize=(WIDTH_PX / DPI, HEIGHT_PX / DPI), dpi=DPI)
    FigureCanvasAgg(picture)
    grid = picture.add_gridspec(
        2, 3, left=0.052, right=0.985, top=0.84, bottom=0.07, wspace=0.2, hspace=0.34
    )
    panels = (
        _loss_by_samples,
        _loss_by_time,
        _quality,
        _staleness,
        utilisation,
        _speed,
    )
    for place, draw in enumerate(panels):
        draw(picture.add_subplot(grid[place // 3, place % 3]), history)
    title, settings, outcome = _headings(history)
    picture.text(0.02, 0.963, title, fontsize=18, fontweight="bold", color=_INK, va="center")
    picture.text(0.02, 0.931, settings, fontsize=12, color=_FAINT, va="center")
    picture.text(0.02, 0.906, outcome, fontsize=12, color=_INK, va="center")
    return picture


def _headings(history: History) -> tuple[str, str, str]:
    start = history.start
    facts = [
        f"{wording.method(start.get('method'))} on engine {start.get('engine', '?')}",
        wording.plural(start.get("workers"), "worker"),
        wording.plural(start.get("servers"), "server"),
        f"batch {start.get('batch_size', '?')}",
        f"seed {start.get('seed', '?')}",
    ]
    if history.stretches > 1:  # which the settings and the outcome are of
        facts.append(f"stretch {history.stretches} of the run")
    notice = wording.notice(history.end)
    title = _literal(start.get("name") or start.get("run") or "run")
    outcome = notice.text if notice else "not ended (or cut off)"
    return title, _literal(", ".join(facts)), _literal(outcome)


def _literal(text: object) -> str:
    """Text from outside, on one line of bounded length and with no mathematics in it."""
    line = " ".join(str(text).split()).replace("$", r"\$")
    return line if len(line) <= 180 else line[:177] + "..."


# --- the panels -------------------------------------------------------------------------------


def _loss_by_samples(axes: Axes, history: History) -> None:
    frame(axes, "Loss against samples", "samples", "loss")
    counts = history.against_samples()
    line = (history.progress["samples"][counts], history.progress["loss"][counts])
    tests = [(as_float(e.get("samples")), as_float(e.get("loss"))) for e in history.evaluations]
    _loss(axes, line, tests)
    per_epoch = as_float(history.start.get("samples_per_epoch"))
    if per_epoch > 0:
        axes.set_xlabel(f"samples (one epoch = {per_epoch:,.0f})")
    axes.xaxis.set_major_formatter(thousands)


def _loss_by_time(axes: Axes, history: History) -> None:
    scale, unit = _time_unit(history)
    frame(axes, "Loss against time", _time_label(history, unit), "loss")
    line = (history.progress["time_s"] / scale, history.progress["loss"])
    tests = [
        (as_float(e.get("at_s", e.get("time_s"))) / scale, as_float(e.get("loss")))
        for e in history.evaluations
    ]
    _loss(axes, line, sorted(tests))  # a resumed run may have evaluated an early epoch late


def _loss(axes: Axes, line: tuple[Floats, Floats], tests: Sequence[tuple[float, float]]) -> None:
    x, y = _thin(*line)
    points = np.array(tests, dtype=np.float64).reshape(-1, 2)
    values = np.concatenate([y, points[:, 1]])
    values = values[np.isfinite(values)]
    if len(values) == 0:
        _nothing(axes, "no loss was recorded")
        return
    if np.isfinite(y).any():
        axes.plot(x, y, color=_TRAIN, linewidth=1.6, label="train")
    if np.isfinite(points[:, 1]).any():
        _points(axes, points[:, 0], points[:, 1], "test")
    if values.min() > 0 and values.max() / values.min() > 20:
        _logarithmic(axes, decades=math.log10(values.max() / values.min()))
    axes.set_xlim(left=0)
    _legend(axes, "upper right")


def _quality(axes: Axes, history: History) -> None:
    names = history.metric_names()
    name = "accuracy" if "accuracy" in names else (names[0] if names else "")
    frame(axes, f"Test {_literal(name.replace('_', ' ') or 'accuracy')}", "epoch", "")
    told = [(as_float(e.get("epoch")), as_float(e.get(name))) for e in history.evaluations]
    points = np.array(told, dtype=np.float64).reshape(-1, 2)
    points = points[np.isfinite(points).all(axis=1)]
    if len(points) == 0:
        _nothing(axes, "no evaluation was recorded")
        return
    x, y = points.T
    fraction = name.endswith("accuracy") and bool(((y >= 0) & (y <= 1)).all())
    y = 100 * y if fraction else y
    _points(axes, x, y, None)
    axes.set_ylabel("per cent" if fraction else _literal(name), fontsize=12, color=_INK)
    axes.margins(x=0.06, y=0.12)
    _whole_numbers(axes)
    last = f"last {wording.metric(name, float(points[-1, 1]))}"
    better = fraction and points[:, 1].max() > points[-1, 1]
    best = f"best {wording.metric(name, float(points[:, 1].max()))}, " if better else ""
    axes.text(
        0.97, 0.06, best + last, transform=axes.transAxes, ha="right",
        fontsize=13, fontweight="bold", color=_TEST,
    )  # fmt: skip


def _staleness(axes: Axes, history: History) -> None:
    title = "Staleness of the updates"
    told, stretches = history.stretches_in_histograms, history.stretches
    if 0 < told < stretches:  # the others go on or were cut off
        title += f" ({told} of {stretches} stretches)"
    frame(axes, title, "staleness (versions)", "per cent of updates")
    histogram = history.staleness_histogram()
    figures = summary.summarise(histogram)
    if not figures.count:
        _nothing(axes, _staleness_so_far(history))
        return
    # One straggler's late update must not squeeze all others into a corner.
    limit = figures.max if figures.max <= 3 * figures.p99 + 10 else 2 * figures.p99 + 5
    shown = {staleness: times for staleness, times in histogram.items() if staleness <= limit}
    heights = [100 * times / figures.count for times in shown.values()]
    axes.bar(list(shown), heights, width=0.86, color=_TRAIN, alpha=0.85)
    marks = (
        (f"mean {figures.mean:.2f}", figures.mean, _INK, "-"),
        (f"p50 {figures.p50}", figures.p50, _BACK, "--"),
        (f"p99 {figures.p99}", figures.p99, _TEST, "--"),
        (f"max {figures.max}", figures.max, _BAD, ":"),
    )
    top = max(heights)
    for label, at, colour, dashes in marks:
        if at <= limit:
            axes.plot([at, at], [0, 1.06 * top], dashes, color=colour, linewidth=1.8, label=label)
        else:
            axes.plot([], [], dashes, color=colour, linewidth=1.8, label=f"{label} (off the axis)")
    axes.set_xlim(-0.7, limit + 0.7)
    axes.set_ylim(0, 1.2 * top)
    _whole_numbers(axes)
    axes.set_ylabel(f"per cent of {figures.count:,} updates")
    _legend(axes, "upper center", columns=4)


def _staleness_so_far(history: History) -> str:
    if history.end or len(history.staleness) == 0:
        return "no update was recorded"
    mean, p99, largest = (history.staleness[name][-1] for name in ("mean", "p99", "max"))
    return (
        f"so far: mean {mean:.2f}, p99 {p99:g}, max {largest:g}\n\n"
        "(the histogram is written when the run ends)"
    )


def utilisation(axes: Axes, history: History, title: str = "What each worker did") -> None:
    """A strip for each worker: which part of its time it computed, waited and communicated."""
    scale, unit = _time_unit(history)
    frame(axes, title, _time_label(history, unit), "worker (blank: not running)")
    axes.grid(False)
    workers = sorted(history.workers.items())
    if not workers or history.last_time_s <= 0:
        _nothing(axes, "no worker reported")
        return
    bins = min(_BINS, max(len(history.progress), 1))  # finer ones would only beat with the reports
    edges = np.linspace(0.0, history.last_time_s, bins + 1)
    if len(workers) > _STRIPS_MAX:
        _heat_map(axes, np.array([told.shares(edges)[0] for _, told in workers]), edges / scale)
        _mark_deaths(axes, history, scale)
        return
    for place, (_, told) in enumerate(workers):
        base = np.full(bins + 1, place + 0.42)
        for share, (name, colour) in zip(told.shares(edges), _SHARES, strict=True):
            top = base - 0.84 * np.append(share, share[-1])
            label = name if place == 0 else None
            axes.fill_between(
                edges / scale, base, top, step="post", color=colour, linewidth=0, label=label
            )
            base = top
    _mark_deaths(axes, history, scale)
    axes.set_yticks(range(len(workers)), [str(worker) for worker, _ in workers])
    axes.set_ylim(len(workers) - 0.5, -0.5 - 0.11 * len(workers))  # with room for the legend
    axes.set_xlim(0, history.last_time_s / scale)
    _legend(axes, "upper center", columns=4)


def _heat_map(axes: Axes, computing: Floats, edges: Floats) -> None:
    """One row of pixels for each worker: how much of the time it computed."""
    image = axes.imshow(
        100 * computing,
        aspect="auto",
        interpolation="nearest",
        extent=(float(edges[0]), float(edges[-1]), len(computing) - 0.5, -0.5),
        cmap="Blues",
        vmin=0,
        vmax=100,
    )
    bar = axes.figure.colorbar(image, ax=axes, pad=0.02)
    bar.set_label("per cent computing", fontsize=11, color=_INK)
    bar.ax.tick_params(labelsize=10, colors=_INK)


def _mark_deaths(axes: Axes, history: History, scale: float) -> None:
    rows = {worker: row for row, worker in enumerate(sorted(history.workers))}
    deaths = [
        (as_float(event.get("time_s")) / scale, rows[event["id"]])
        for event in history.members
        if event.get("kind") == "worker"
        and event.get("state") == "died"
        and event.get("id") in rows
    ]
    if deaths:
        x, y = zip(*deaths, strict=True)
        axes.plot(x, y, "X", color=_BAD, markersize=9, markeredgecolor="white", label="died")


def _speed(axes: Axes, history: History) -> None:
    scale, unit = _time_unit(history)
    frame(axes, "Speed", _time_label(history, unit), "samples per second")
    x, y = history.progress["time_s"] / scale, history.progress["samples_per_s"]
    if not np.isfinite(y).any():
        _nothing(axes, "no progress was recorded")
        return
    thin_x, thin_y = _thin(x, y)
    axes.plot(thin_x, thin_y, color=_TRAIN, linewidth=1.0, alpha=0.35)
    axes.plot(thin_x, _smooth(thin_y), color=_TRAIN, linewidth=2.0, label="samples/s (smoothed)")
    marks = (
        (history.member_times("worker", "died"), _BAD, "-", "worker died"),
        (_returns(history), _BACK, "--", "worker back"),
        (history.member_times("server", "died"), _INK, "-", "server died"),
    )
    for times, colour, dashes, label in marks:
        for index, time_s in enumerate(times):
            axes.axvline(
                time_s / scale,
                ymax=0.82,  # below the legend
                color=colour,
                linestyle=dashes,
                linewidth=1.4 if len(times) < 20 else 0.5,
                label=label if index == 0 else None,
            )
    axes.set_ylim(0, 1.3 * float(thin_y.max()) or 1.0)
    axes.set_xlim(0, history.last_time_s / scale or 1.0)
    axes.yaxis.set_major_formatter(thousands)
    _legend(axes, "upper center", columns=2)


def _returns(history: History) -> list[float]:
    """When workers came back after a death."""
    died: set[int] = set()
    times = []
    for event in history.members:
        if event.get("kind") != "worker":
            continue
        worker = int(event.get("id", -1))
        if event.get("state") == "died":
            died.add(worker)
        elif event.get("state") == "ready" and worker in died:
            died.discard(worker)
            times.append(as_float(event.get("time_s")))
    return times


# --- helpers ----------------------------------------------------------------------------------


def frame(axes: Axes, title: str, x: str, y: str) -> None:
    """Title, labels and style of a panel."""
    axes.set_title(title, fontsize=13.5, fontweight="bold", color=_INK, loc="left", pad=10)
    axes.set_xlabel(x, fontsize=12, color=_INK)
    axes.set_ylabel(y, fontsize=12, color=_INK)
    axes.set_facecolor("white")
    axes.grid(True, color=_GRID, linewidth=0.9)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_FAINT)
    _style_ticks(axes)


def _style_ticks(axes: Axes) -> None:
    axes.tick_params(which="major", labelsize=11, colors=_INK, length=3, color=_FAINT)
    axes.tick_params(which="minor", length=0)


def _legend(axes: Axes, place: Literal["upper right", "upper center"], columns: int = 1) -> None:
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            loc=place,
            ncols=columns,
            fontsize=11,
            frameon=False,
            labelcolor=_INK,
            handlelength=1.2,
            handletextpad=0.4,
            columnspacing=1.0,
        )


def _points(axes: Axes, x: Floats, y: Floats, label: str | None) -> None:
    size = 6 if len(x) <= 20 else 3
    axes.plot(x, y, "o-", color=_TEST, linewidth=1.6, markersize=size, label=label)


def _logarithmic(axes: Axes, decades: float) -> None:
    from matplotlib.ticker import LogLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 3 else (1,)))
    axes.yaxis.set_major_formatter(_short)
    _style_ticks(axes)


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))


def _nothing(axes: Axes, why: str) -> None:
    axes.text(
        0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", fontsize=12, color=_FAINT
    )
    axes.set_xticks([])
    axes.set_yticks([])


def _thin(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Means of equal runs of points: at most ``_POINTS_MAX``, without those that are NaN."""
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) <= _POINTS_MAX:
        return x, y
    starts = np.linspace(0, len(x), _POINTS_MAX, endpoint=False).astype(np.int64)
    lengths = np.diff(np.append(starts, len(x)))
    return np.add.reduceat(x, starts) / lengths, np.add.reduceat(y, starts) / lengths


def _smooth(y: Floats) -> Floats:
    """A centred moving mean, wide enough to show the level and narrow enough to show a death."""
    width = max(3, len(y) // 40) | 1
    if len(y) <= width:
        return y
    kernel = np.ones(width)
    return np.convolve(y, kernel, "same") / np.convolve(np.ones(len(y)), kernel, "same")


def _time_unit(history: History) -> tuple[float, str]:
    return next((scale, unit) for least, scale, unit in _UNITS if history.last_time_s >= least)


def _time_label(history: History, unit: str) -> str:
    simulated = history.start.get("engine") == "inline"
    return f"{'simulated time' if simulated else 'time since the start'} ({unit})"


def thousands(value: float, _: object = None) -> str:
    """60000 as ``60k``, 1500000 as ``1.5M``."""
    for unit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{suffix}"
    return f"{value:g}"


def _short(value: float, _: object = None) -> str:
    """A decade of a logarithmic axis as a plain number."""
    return f"{value:g}" if 1e-4 <= value < 1e5 else f"1e{math.log10(value):.0f}"
