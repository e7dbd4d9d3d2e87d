"""A study's summary as a picture, in SVG that is the same whenever it is drawn."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from studies.base import Study
from studies.runs import Run
from studies.summaries import Row, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

COLOURS = (
    "#3a6ea5", "#d9822b", "#2e8b57", "#c0392b", "#7b5aa6", "#8c6d46", "#767676", "#2aa5b5",
)  # fmt: skip


def draw(study: Study, summary: Summary, path: Path) -> None:
    """Draw the runs with each arm's own rate, and beside them those with another's."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    panels = [("each with its best rate", [(row, row.found) for row in summary.rows])]
    if any(row.anchored for row in summary.rows):
        # An arm without an anchor is one whose rate the others borrow.
        borrowed = [(row, row.anchored or row.found) for row in summary.rows]
        panels.append(("with another's best rate", borrowed))
    series = list(dict.fromkeys(row.series for row in summary.rows))
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(series)}
    with matplotlib.rc_context({"svg.hashsalt": study.name, "svg.fonttype": "none"}):
        figure = Figure(figsize=(5.5 * len(panels) + 2, 4.2), layout="constrained")
        FigureCanvasSVG(figure)
        places = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (title, shown) in zip(places, panels, strict=True):
            (_points if study.picture == "points" else _curves)(axes, study, shown, colours)
            axes.set_title(title if len(panels) > 1 else "", fontsize=10)
            axes.grid(alpha=0.3)
        handles, labels = places[0].get_legend_handles_labels()
        figure.legend(handles, labels, fontsize=8, loc="outside right upper")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None})
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(line.rstrip() for line in lines) + "\n", encoding="utf-8")


Shown = Sequence[tuple[Row, Sequence[Run]]]


def _points(axes: Axes, study: Study, shown: Shown, colours: dict[str, str]) -> None:
    places = list(dict.fromkeys(row.at for row, _ in shown if row.at))
    for number, (name, colour) in enumerate(colours.items()):
        own = [(row, found) for row, found in shown if row.series == name]
        shift = 0.08 * (number - (len(colours) - 1) / 2)
        if own[0][0].at:
            _series(axes, study, places, shift, own, colour)
        else:
            middle = statistics.median(_value(study, run) for run in own[0][1])
            axes.axhline(middle, color=colour, linestyle="--", label=name)
    axes.set_xticks(range(len(places)), places)
    unit = "test accuracy" if study.judged == "accuracy" else f"seconds to {100 * study.target:g} %"
    axes.set(xlabel=study.x, ylabel=unit)
    if study.judged == "seconds":
        axes.set_yscale("log")
        _plain_numbers(axes.yaxis)


def _series(
    axes: Axes, study: Study, places: list[str], shift: float, own: Shown, colour: str
) -> None:
    across = [places.index(row.at) + shift for row, _ in own]
    values = [[_value(study, run) for run in found] for _, found in own]
    middles = [statistics.median(each) for each in values]
    spread = [
        [middle - min(each) for middle, each in zip(middles, values, strict=True)],
        [max(each) - middle for middle, each in zip(middles, values, strict=True)],
    ]
    axes.errorbar(
        across, middles, spread, color=colour, marker="o", markersize=4, linewidth=1, capsize=2,
        label=own[0][0].series,
    )  # fmt: skip
    if study.judged == "seconds":
        for x, middle, (_, found) in zip(across, middles, own, strict=True):
            if math.isinf(statistics.median(run.seconds_to(study.target) for run in found)):
                axes.plot([x], [middle], marker="^", markersize=9, color=colour)


def _value(study: Study, run: Run) -> float:
    """What a run is judged by; one that did not reach the target stands where it ended."""
    if study.judged == "accuracy":
        return run.accuracy
    return min(run.seconds_to(study.target), run.lasted)


def _curves(axes: Axes, study: Study, shown: Shown, colours: dict[str, str]) -> None:
    for row, found in shown:
        for number, run in enumerate(found):
            across, values = zip(*run.curve, strict=True)
            label = row.arm if number == 0 else None
            axes.plot(across, values, color=colours[row.series], linewidth=1, label=label)
    axes.axhline(study.target, color="#767676", linestyle=":")
    axes.set_xscale("log")
    _plain_numbers(axes.xaxis)
    axes.set(xlabel="virtual seconds", ylabel="test accuracy")


def _plain_numbers(axis: Axis) -> None:
    """1, 2, 5 and so on along a logarithmic axis, not powers of ten."""
    from matplotlib.ticker import LogLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")
