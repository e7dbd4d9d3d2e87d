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
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tardygrad.metrics import summary
from tardygrad.metrics.history import SPENT, History, as_float
from tardygrad.metrics.sink import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FILE_NAME = "comparison.html"

COLUMNS = (
    "method", "seconds to target", "reached", "final", "samples/s", "staleness mean",
    "staleness p99", "computing", "waiting", "communicating", "dropped",
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
    picture = base64.b64encode(_picture(trials, target, metric)).decode()
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
 src="data:image/png;base64,{picture}">
</html>
"""
    replace_file(path, text.encode())
    return path


def _picture(trials: Sequence[Trial], target: Target | None, metric: str) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 10), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.subplots(2, 2)
    names = list(dict.fromkeys(trial.method for trial in trials))
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}
    panels = (
        ("Test loss against samples", "samples", "loss"),
        ("Test loss against time", "seconds", "loss"),
        (f"Test {metric} against time", "seconds", metric),
    )
    for axes, (title, x, y) in zip(places.flat, panels, strict=False):
        _lines(axes, trials, colours, x, y)
        axes.set(title=title, xlabel=x, ylabel=y)
    if target is not None and target.metric == metric:
        places.flat[2].axhline(target.value, color="#767676", linestyle=":")
    _staleness(places.flat[3], trials, colours)
    places.flat[0].legend()
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


def _staleness(axes: Axes, trials: Sequence[Trial], colours: dict[str, str]) -> None:
    for name, colour in colours.items():
        histograms = [t.history.staleness_histogram() for t in trials if t.method == name]
        merged = summary.merge(histograms)
        total = sum(merged.values())
        if total:
            values = sorted(merged)
            axes.plot(values, [merged[v] / total for v in values], marker=".", color=colour)
    axes.set(title="Staleness", xlabel="versions", ylabel="share of updates")
