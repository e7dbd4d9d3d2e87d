"""The figures as people read them: a table for the terminal, and one in Markdown for the pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from benchmarks.harness import verdict

HEADINGS = ("figure", "unit", "ours", "peer", "ratio or difference", "spread", "at least", "aim")
_STYLES = {"aim": "green", "ok": "green", "below": "red"}


def number(value: float | None) -> str:
    """A number as the tables show it: four digits, or all before the point."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def judged(document: dict[str, Any], value: float) -> str:
    """A number of the kind that the figure is judged by: 1.5x, +1.5 or 1.5."""
    if document["judged"] == "ratio":
        return f"{number(value)}x"
    return f"{'+' * (document['judged'] == 'difference' and value > 0)}{number(value)}"


def cells(document: dict[str, Any]) -> list[str]:
    """One line of a table, a cell for each of HEADINGS."""
    low, high = document["spread"]
    limits = [
        "" if limit is None else f"{'≤ ' * document['upper_limits']}{judged(document, limit)}"
        for limit in (document["at_least"], document["aim"])
    ]
    return [
        document["figure"], document["unit"], number(document["ours"]), number(document["peer"]),
        "" if document["judged"] == "ours" else judged(document, document["value"]),
        f"{judged(document, low)} to {judged(document, high)}", *limits,
    ]  # fmt: skip


def add_row(table: Table, document: dict[str, Any]) -> None:
    """A figure and how it compares with what is asked, as a line of a terminal's table."""
    reached = verdict(document)
    style = _STYLES.get(reached)
    table.add_row(*cells(document), f"[{style}]{reached}[/]" if style else "")


def markdown(documents: Sequence[dict[str, Any]]) -> str:
    """All figures, and below them on what and when they were measured."""
    rows = [HEADINGS, ("---",) * len(HEADINGS), *map(cells, documents)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    places = dict.fromkeys(f"Measured on {d['date']}: {d['machine']}." for d in documents)
    return "\n".join([*lines, "", *places])
