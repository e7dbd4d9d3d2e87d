"""List the workers of a running run; let more join, or ask some to leave.

A worker that joins is at work within seconds. One that leaves finishes the batches at hand and
gives back the rest of what it held; those with the highest numbers leave first. Every sample still
counts once. What follows the number of workers, and what does not, is on the page about elastic
runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

SUMMARY = "list, add or remove the workers of a running run"

EXAMPLES = (
    ("tardygrad workers runs/mnist-async-20260114-101500", "who works there"),
    ("tardygrad workers runs/mnist-async-20260114-101500 --add 2", "two more"),
    ("tardygrad workers runs/mnist-async-20260114-101500 --remove 1", "one fewer"),
)

_COLUMNS = ("worker", "state", "incarnation", "samples/s", "restarts", "reason")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``tardygrad workers``."""
    parser.add_argument("run", metavar="RUN", type=Path, help="the directory of a run that runs")
    parser.add_argument("--add", type=int, default=0, metavar="N", help="so many more workers")
    parser.add_argument("--remove", type=int, default=0, metavar="N", help="so many fewer")


def run(arguments: argparse.Namespace) -> int:
    """Ask the run; returns the exit status."""
    from tardygrad.crewing import workers

    rows = workers(arguments.run, add=arguments.add, remove=arguments.remove)
    print("\n".join(_table(rows)))
    return 0


def _table(rows: list[dict[str, Any]]) -> list[str]:
    cells = [_COLUMNS, *map(_cells, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(_COLUMNS))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    numbers = (row["incarnation"] & 1023, f"{row['samples_per_s']:.0f}", row["restarts"])
    return (str(row["worker"]), row["state"], *map(str, numbers), row["reason"])
