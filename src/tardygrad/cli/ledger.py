"""Prove that every sample was applied exactly once.

Per epoch and shard: samples applied, dropped by policy, missing, applied twice. Exit
status 1 if anything is missing or twice. An epoch that is still under way, because
the run was stopped in it, lacks nothing yet.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from tardygrad.cli.parser import add_run

if TYPE_CHECKING:
    from tardygrad.auditing import Audit, Row

SUMMARY = "prove that every sample was applied once"

EXAMPLES = (
    ("tardygrad ledger runs/mine", "the table and the verdict"),
    ("tardygrad ledger runs/mine --json", "the same for a program"),
)

_COLUMNS = ("epoch", "shard", "applied", "dropped", "missing", "twice")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``tardygrad ledger``."""
    add_run(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Print the books; returns the exit status."""
    from tardygrad.auditing import audit

    found = audit(arguments.run)
    print(_as_json(found) if arguments.json else _as_table(found))
    return 0 if found.exact else 1


def _as_json(audit: Audit) -> str:
    rows = [{name: getattr(row, name) for name in (*_COLUMNS, "complete")} for row in audit.rows]
    return json.dumps({"exact": audit.exact, "rows": rows})


def _as_table(audit: Audit) -> str:
    lines = ["".join(f"{name:>10}" for name in _COLUMNS)]
    for row in audit.rows:
        # What an epoch under way lacks is to come, and not missing.
        shown = row if row.complete else row._replace(missing=0)
        numbers = "".join(f"{getattr(shown, name):>10}" for name in _COLUMNS)
        lines.append(f"{numbers}  {_remark(row)}".rstrip())
    return "\n".join([*lines, audit.verdict()])


def _remark(row: Row) -> str:
    if row.twice or (row.complete and row.missing):
        return "<- not exact"
    return "" if row.complete else f"under way, {row.missing} to come"
