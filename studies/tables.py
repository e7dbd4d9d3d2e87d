"""A study's summary as people read it: one table in Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from studies.base import SEEDS, Study
from studies.runs import Run
from studies.summaries import Row, Summary


def block(study: Study, summary: Summary | None) -> str:
    """Everything of a study's section that is not written by hand: table, picture, origin."""
    if summary is None:
        return f"Not run yet: `make reproduce STUDIES={study.name}` runs it and writes this part."
    anchors = {arm.name: arm.anchor for arm in study.arms}
    columns = _columns(study, summary)
    lines = [columns, ["---"] * len(columns)]
    lines += [_cells(study, columns, row, anchors[row.arm]) for row in summary.rows]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    note = f"Medians of {len(SEEDS)} seeds, the least and the greatest in brackets."
    if any(row.at_edge for row in summary.rows):
        note += " \\* The best rate is at an edge of the grid: a better one may lie beyond."
    picture = f"![{study.question}](images/study-{study.name}.svg)"
    return f"{table}\n\n{note} Run on {summary.made}.\n\n{picture}"


def _columns(study: Study, summary: Summary) -> list[str]:
    columns = ["method", *([study.x] if study.x else []), "best rate", "accuracy"]
    if study.judged == "seconds":
        columns.append(f"s to {100 * study.target:g} %")
    columns.append("staleness")
    if any(run.dropped for row in summary.rows for run in row.found):
        columns.append("dropped")
    if any(row.anchored for row in summary.rows):
        columns.append("with another's best rate")
    return columns


def _cells(study: Study, columns: Sequence[str], row: Row, anchor: str | None) -> list[str]:
    cells = {
        "method": f"`{row.series}`" if row.series.isidentifier() else row.series,
        study.x: row.at,
        "best rate": f"{row.rate:g}" + r" \*" * row.at_edge,
        "accuracy": accuracy(row.found),
        f"s to {100 * study.target:g} %": seconds(row.found, study.target),
        "staleness": f"{statistics.median(run.staleness for run in row.found):.1f}",
        "dropped": f"{100 * statistics.median(run.dropped for run in row.found):.0f} %",
        "with another's best rate": "",
    }
    if row.anchored:
        judged = accuracy(row.anchored)
        if study.judged == "seconds":
            judged = f"{seconds(row.anchored, study.target)} s, {judged}"
        cells["with another's best rate"] = f"{row.anchor_rate:g} of {anchor}: {judged}"
    return [cells[column] for column in columns]


def accuracy(found: Sequence[Run]) -> str:
    """Final accuracies: median, least and greatest; how many diverged."""
    values = [run.accuracy for run in found]
    text = f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"
    diverged = sum(run.diverged for run in found)
    if diverged == len(found):
        return f"diverged ({text})"
    return f"{text}, {diverged} of {len(found)} diverged" if diverged else text


def seconds(found: Sequence[Run], target: float) -> str:
    """Seconds to the target: median, least and greatest; ``>`` where the median is censored."""
    times = [run.seconds_to(target) for run in found]
    middle = statistics.median(times)
    if math.isinf(middle):
        return f"> {min(run.lasted for run in found):.2f}"
    most = f"{max(times):.2f}" if math.isfinite(max(times)) else "never"
    return f"{middle:.2f} ({min(times):.2f} to {most})"
