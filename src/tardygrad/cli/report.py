"""Draw a run's pictures and tables again from its metrics.

Everything shown derives from metrics.jsonl, so that this works while the run goes on
and after it was killed. Needs the extra 'report'.
"""

from __future__ import annotations

import argparse

from tardygrad.cli.parser import add_run

SUMMARY = "draw a run's pictures again"

EXAMPLES = (("tardygrad report runs/mine", "writes curves.png and metrics.mat there"),)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``tardygrad report``."""
    add_run(parser)


def run(arguments: argparse.Namespace) -> int:
    """Draw; returns the exit status."""
    from tardygrad.metrics.report import report

    for path in report(arguments.run):
        print(path)
    return 0
