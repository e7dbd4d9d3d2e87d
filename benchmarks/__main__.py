"""``python -m benchmarks [FIGURE ...]``: measure, print a table, write results/latest.jsonl."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.figures import figures
from benchmarks.harness import SideFailed, busy, machine, measure, save, select, verdict

_STYLES = {"aim": "green", "ok": "green", "below": "red"}


def number(value: float | None) -> str:
    """A number as the table shows it: three digits, or all before the point."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def row(document: dict[str, Any]) -> list[str]:
    """One line of the table."""
    low, high = document["spread"]
    reached = verdict(document)
    style = _STYLES.get(reached)
    return [
        document["figure"], number(document["ours"]), number(document["peer"]), document["unit"],
        number(document["ratio"]), f"{number(low)} to {number(high)}",
        number(document["at_least"]), number(document["aim"]),
        f"[{style}]{reached}[/]" if style else "",
    ]  # fmt: skip


def main(words: list[str] | None = None) -> int:
    """Measure the figures that were asked for.

    Returns:
        0; 1 if a figure could not be measured; 2 if none is called as asked. How large a figure is
        does not matter: that is for people to judge.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure, and write results/latest.jsonl."
    )
    parser.add_argument("figures", nargs="*", help="words of figures' names; all without any")
    parser.add_argument("--rounds", type=int, help="rounds of each figure, instead of its own")
    parser.add_argument("--list", action="store_true", help="only name the figures")
    arguments = parser.parse_args(words)
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {arguments.rounds}")
    chosen = select(arguments.figures, figures())
    if not chosen:
        names = "; ".join(f.name for f in figures())
        print(f"no figure is called like {arguments.figures}; there are: {names}", file=sys.stderr)
        return 2
    if arguments.list:
        print("\n".join(f.name for f in chosen))
        return 0
    console = Console(stderr=True)
    load = busy()
    if load is not None:
        console.print(f"the machine is busy (load {load:.1f} a core): the figures will be unsteady")
    documents = []
    table = Table("figure", "ours", "peer", "unit", "ratio", "spread", "at least", "aim", "")
    failed = 0
    for figure in chosen:
        if arguments.rounds:
            figure = dataclasses.replace(figure, rounds=arguments.rounds)
        try:
            with console.status("") as status:
                documents.append(measure(figure, status.update).document())
        except SideFailed as error:
            failed += 1
            console.print(f"{figure.name}: {error}", markup=False)
            table.add_row(figure.name, *[""] * 7, "[red]failed[/]")
            continue
        table.add_row(*row(documents[-1]))
        save(documents)  # at once: a long measurement may be interrupted
    Console(width=max(Console().width, 150)).print(table)
    for document in documents:
        if document["note"]:
            print(f"{document['figure']}: {document['note']}")
    print(f"{machine()}{f'; written to {save(documents)}' if documents else ''}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
