"""``python -m benchmarks [FIGURE ...]``: measure, print a table, write results/latest.jsonl."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import tables
from benchmarks.figures import figures
from benchmarks.harness import Figure, SideFailed, busy, load, machine, measure, save, select


def main(words: list[str] | None = None) -> int:
    """Measure the figures that were asked for, or show what was measured before.

    Returns:
        0; 1 if a figure could not be measured, or none was; 2 if none is called as asked. How large
        a figure is does not matter: that is for people to judge.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure, print a table, and put the figures into results/latest.jsonl.",
    )
    parser.add_argument("figures", nargs="*", help="words of figures' names; all without any")
    parser.add_argument("--rounds", type=int, help="rounds of each figure, instead of its own")
    parser.add_argument("--list", action="store_true", help="only name the figures")
    parser.add_argument(
        "--markdown", action="store_true", help="only print results/latest.jsonl as Markdown"
    )
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
    if arguments.markdown:
        return _show(chosen)
    if arguments.rounds:
        chosen = [dataclasses.replace(figure, rounds=arguments.rounds) for figure in chosen]
    return _measure(chosen)


def _show(chosen: Sequence[Figure]) -> int:
    names = [f.name for f in chosen]
    documents = [d for d in load() if d["figure"] in names]
    if not documents:
        print("none of these figures was measured yet; make bench measures", file=sys.stderr)
        return 1
    print(tables.markdown(documents))
    return 0


def _measure(chosen: Sequence[Figure]) -> int:
    console = Console(stderr=True)
    share = busy()
    if share is not None:
        console.print(
            f"the machine is busy (load {share:.1f} a core): the figures will be unsteady"
        )
    names = [f.name for f in figures()]
    table = Table(*tables.HEADINGS, "")
    documents: list[dict[str, Any]] = []
    for figure in chosen:
        try:
            with console.status("") as status:
                documents.append(measure(figure, status.update).document())
        except SideFailed as error:
            console.print(f"{figure.name}: {error}", markup=False)
            table.add_row(figure.name, *[""] * (len(tables.HEADINGS) - 1), "[red]failed[/]")
            continue
        tables.add_row(table, documents[-1])
        path = save(documents[-1], names)  # at once: a long measurement may be interrupted
    Console(width=max(Console().width, 150)).print(table)
    for document in documents:
        if document["note"]:
            print(f"{document['figure']}: {document['note']}")
    print(f"{machine()}{f'; written to {path}' if documents else ''}")
    return 0 if len(documents) == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
