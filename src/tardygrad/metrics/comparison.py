"""Several runs of one job side by side: what each method took, and one page about it.

Theory of operation. A *trial* is a run of one method with one seed. Each method's trials become a
row: medians, with the least and the greatest beside them. A trial that never reached the target is
*censored*: it counts as longer than it lasted, so the median of a method is a time only if more
than half of its trials reached the target. Accuracy is looked at where the runs measured it, after
their epochs, so a time to the target is no finer than an epoch.
"""

from __future__ import annotations

import base64
import html
import io
import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tardygrad.metrics import plots, summary, wording
from tardygrad.metrics.history import SPENT, History, as_float
from tardygrad.metrics.sink import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILE_NAME = "comparison.html"

COLUMNS = (
    "method", "seconds to target", "reached", "final", "samples/s", "staleness mean",
    "staleness p99", "computing", "waiting", "communicating", "pushed", "pulled", "dropped",
)  # fmt: skip

_COLOURS = (
    "#3a6ea5", "#d9822b", "#2e8b57", "#c0392b", "#7b5aa6", "#8c6d46", "#c774b2", "#767676",
    "#a8a12c", "#2aa5b5",
)  # fmt: skip


class Target(NamedTuple):
    """A metric of the evaluations and the value that is wanted of it."""

    metric: str
    value: float

    def met(self, found: float) -> bool:
        """Whether it is reached; of a loss less is more."""
        return found <= self.value if self.metric == "loss" else found >= self.value


class Trial(NamedTuple):
    """One run of a comparison."""

    method: str
    seed: int
    history: History

    def began_s(self) -> float:
        """When its first update was applied, in seconds of its own clock."""
        first = as_float(self.history.end.get("first_update_s"))
        return 0.0 if math.isnan(first) else first

    def seconds_to(self, target: Target) -> float:
        """Seconds from the first update to the first evaluation that meets the target, or inf."""
        for event in self.history.evaluations:
            if target.met(as_float(event.get(target.metric))):
                return as_float(event.get("at_s", event.get("time_s"))) - self.began_s()
        return math.inf

    def lasted_s(self) -> float:
        """Seconds from the first update to the last evaluation."""
        times = [as_float(e.get("at_s", e.get("time_s"))) for e in self.history.evaluations]
        return max(times, default=math.nan) - self.began_s()

    def final(self, metric: str) -> float:
        """The metric at the end."""
        told = self.history.evaluations
        return as_float(told[-1].get(metric)) if told else math.nan

    def moved(self, name: str) -> tuple[float, float]:
        """Bytes ``pushed`` or ``pulled``: in the whole run, and for each sample."""
        traffic = self.history.traffic
        total = traffic[f"bytes_{name}"]
        return total, total / (traffic["samples"] or math.nan)

    def shares(self) -> list[float]:
        """Parts of the workers' time spent computing, waiting and communicating."""
        workers = self.history.workers.values()
        spent = [sum(worker.total(name) for worker in workers) for name in SPENT]
        return [each / (sum(spent) or math.nan) for each in spent]


class Row(NamedTuple):
    """What one method's trials came to; cells as people read them."""

    method: str
    cells: tuple[str, ...]


def _spread(values: Sequence[float], digits: int) -> str:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "?"
    middle = f"{statistics.median(known):,.{digits}f}"
    least, most = f"{min(known):,.{digits}f}", f"{max(known):,.{digits}f}"
    return middle if least == most else f"{middle} ({least} to {most})"


def _moved(told: Sequence[tuple[float, float]]) -> str:
    total, each = (statistics.median(values) for values in zip(*told, strict=True))
    if math.isnan(each):
        return "?"
    return f"{wording.size(total)} ({wording.size(each)} a sample)"


def _seconds(trials: Sequence[Trial], target: Target | None) -> tuple[str, str]:
    if target is None:
        return "", ""
    times = [trial.seconds_to(target) for trial in trials]
    reached = [seconds for seconds in times if math.isfinite(seconds)]
    middle = statistics.median(times)
    if math.isinf(middle):
        said = f"> {min(trial.lasted_s() for trial in trials):,.2f}"
    else:
        most = f"{max(times):,.2f}" if len(reached) == len(times) else "never"
        said = f"{middle:,.2f} ({min(times):,.2f} to {most})"
    return said, f"{len(reached)} of {len(times)}"


def rows(trials: Iterable[Trial], target: Target | None, metric: str) -> list[Row]:
    """One row a method, in the order in which they first appear.

    Args:
        trials: all runs.
        target: what is to be reached, if anything.
        metric: whose final value is shown.
    """
    by_method: dict[str, list[Trial]] = {}
    for trial in trials:
        by_method.setdefault(trial.method, []).append(trial)
    return [Row(name, _cells(name, found, target, metric)) for name, found in by_method.items()]


def _cells(
    name: str, trials: Sequence[Trial], target: Target | None, metric: str
) -> tuple[str, ...]:
    ends = [trial.history.end for trial in trials]
    staleness = [summary.summarise(t.history.staleness_histogram()) for t in trials]
    shares = list(zip(*(trial.shares() for trial in trials), strict=True))
    dropped = [as_float((end.get("ledger") or {}).get("dropped", 0)) for end in ends]
    return (
        name,
        *_seconds(trials, target),
        _spread([trial.final(metric) for trial in trials], 4),
        _spread([as_float(end.get("samples_per_s")) for end in ends], 0),
        _spread([s.mean for s in staleness], 2),
        _spread([float(s.p99) for s in staleness], 0),
        *(f"{100 * statistics.median(share):.0f} %" for share in shares),
        *(_moved([trial.moved(name) for trial in trials]) for name in ("pushed", "pulled")),
        _spread(dropped, 0),
    )


# --- the page -----------------------------------------------------------------------------------


def write_page(
    path: Path, title: str, trials: Sequence[Trial], target: Target | None, metric: str
) -> Path:
    """Write the page, pictures included; an older one is replaced whole.

    Raises:
        ImportError: matplotlib is missing.
        StorageError: the file cannot be written.
    """
    curves = base64.b64encode(_curves(trials, target, metric)).decode()
    strips = base64.b64encode(_strips(trials)).decode()
    head = "".join(f"<th>{html.escape(name)}</th>" for name in COLUMNS)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row.cells) + "</tr>"
        for row in rows(trials, target, metric)
    )
    wanted = f"target: {target.metric} {target.value:g}; " if target else ""
    text = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>
body {{ font: 15px/1.5 sans-serif; margin: 2em; color: #2b2b2b; }}
table {{ border-collapse: collapse; }} td, th {{ padding: 0.3em 0.8em; text-align: left; }}
tr:nth-child(even) {{ background: #f4f4f4; }} img {{ max-width: 100%; margin-top: 1em; }}
</style>
<h1>{html.escape(title)}</h1>
<p>Medians over seeds, with the least and the greatest; {html.escape(wanted)}final: {metric} at
the end; seconds from a run's first update, to the end of an epoch. "&gt;" marks methods of which at
least half of the runs did not reach the target while they lasted.</p>
<table><tr>{head}</tr>
{body}
</table>
<img alt="Loss against samples and time, {metric} against time, staleness"
 src="data:image/png;base64,{curves}">
<img alt="What each worker did with its time, a panel for each method"
 src="data:image/png;base64,{strips}">
</html>
"""
    replace_file(path, text.encode())
    return path


def _curves(trials: Sequence[Trial], target: Target | None, metric: str) -> bytes:
    figure = _figure(10)
    places = figure.subplots(2, 2)
    names = list(dict.fromkeys(trial.method for trial in trials))
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}
    panels = (
        ("Test loss against samples", "samples", "loss"),
        ("Test loss against time", "seconds", "loss"),
        (f"Test {metric} against time", "seconds", metric),
    )
    for axes, (title, x, y) in zip(places.flat, panels, strict=False):
        plots.frame(axes, title, x if x == "samples" else "seconds since the first update", y)
        _lines(axes, trials, colours, x, y)
    places.flat[0].xaxis.set_major_formatter(plots.thousands)
    if target is not None and target.metric == metric:
        places.flat[2].axhline(target.value, color="#767676", linestyle=":")
    _staleness(places.flat[3], trials, colours)
    figure.legend(
        *places.flat[0].get_legend_handles_labels(), loc="outside upper center", frameon=False,
        ncols=min(len(names), 7), fontsize=12,
    )  # fmt: skip
    return _png(figure)


def _strips(trials: Sequence[Trial]) -> bytes:
    """What the workers of each method's first run did with their time."""
    first = {trial.method: trial for trial in reversed(trials)}
    names = list(dict.fromkeys(trial.method for trial in trials))
    lines = -(-len(names) // 2)
    figure = _figure(0.5 + 3.6 * lines)
    places = figure.subplots(lines, 2, squeeze=False)
    for axes, name in itertools.zip_longest(places.flat, names):
        if name is None:
            axes.set_axis_off()
        else:
            trial = first[name]
            plots.utilisation(axes, trial.history, f"{name}, seed {trial.seed}")
    return _png(figure)


def _figure(height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, height), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    return buffer.getvalue()


def _lines(axes: Axes, trials: Sequence[Trial], colours: dict[str, str], x: str, y: str) -> None:
    named: set[str] = set()
    for trial in trials:
        told = trial.history.evaluations
        began = trial.began_s()
        if x == "samples":
            across = [as_float(e.get("samples")) for e in told]
        else:
            across = [as_float(e.get("at_s", e.get("time_s"))) - began for e in told]
        label = trial.method if trial.method not in named else None
        named.add(trial.method)
        values = [as_float(e.get(y)) for e in told]
        axes.plot(across, values, marker=".", color=colours[trial.method], label=label)
    axes.set_xlim(left=0)


def _staleness(axes: Axes, trials: Sequence[Trial], colours: dict[str, str]) -> None:
    """One outline for each method; the few updates beyond the 99.9th percentile are left out."""
    plots.frame(axes, "Staleness of the updates", "versions", "per cent of updates")
    limit = 0
    for name, colour in colours.items():
        merged = summary.merge(t.history.staleness_histogram() for t in trials if t.method == name)
        total = sum(merged.values())
        if not total:
            continue
        limit = max(limit, _reach(merged))
        edges = [value - 0.5 for value in range(max(merged) + 2)]
        heights = [100 * merged.get(value, 0) / total for value in range(max(merged) + 1)]
        axes.stairs(heights, edges, color=colour, linewidth=1.6, fill=False)
        axes.stairs(heights, edges, color=colour, alpha=0.12, fill=True)
    axes.set_xlim(-0.7, limit + 0.7)
    axes.set_ylim(bottom=0)


def _reach(histogram: summary.Histogram) -> int:
    """The staleness that 99.9 per cent of the updates do not exceed."""
    left = 0.999 * sum(histogram.values())
    for value in sorted(histogram):
        left -= histogram[value]
        if left <= 0:
            return value
    return 0
