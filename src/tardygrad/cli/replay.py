"""Repeat a run from its trace and compare the parameters, bit for bit.

A run records in which order each shard applied the updates, and which versions each
step read. Executing that once more, in one process, must give the same digest of the
parameters. Exit status 1 if it does not.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tardygrad.cli.parser import add_run, make_current_directory_importable

if TYPE_CHECKING:
    from tardygrad.replaying import ReplayReport

SUMMARY = "repeat a run from its trace, bit for bit"

_TELL_EVERY_S = 5.0

EXAMPLES = (
    (
        "tardygrad replay runs/mnist-async-20250131-120000",
        "as long as one worker would take for all of it",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``tardygrad replay``."""
    add_run(parser)
    parser.add_argument("--quiet", action="store_true", help="print nothing unless it differs")


def run(arguments: argparse.Namespace) -> int:
    """Replay; returns the exit status."""
    make_current_directory_importable()
    report = _replay(arguments.run, quiet=arguments.quiet)
    if report.matches:
        if not arguments.quiet:
            print(
                f"same parameters, bit for bit: {report.updates} updates repeated in "
                f"{report.seconds:.1f} s, digest {report.found}"
            )
        return 0
    print(
        f"NOT the same parameters after {report.updates} updates: the run has digest "
        f"{report.expected}, its replay {report.found}"
    )
    return 1


def _replay(directory: Path, quiet: bool) -> ReplayReport:
    from tardygrad.replaying import replay

    if quiet:
        return replay(directory)
    if not sys.stderr.isatty():
        return replay(directory, progress=_Lines())
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("replaying", total=None)
        return replay(
            directory,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


class _Lines:
    """A line now and then, where nobody looks at a terminal."""

    def __init__(self) -> None:
        self._told = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._told < _TELL_EVERY_S:
            return
        self._told = now
        percent = 100 * done // max(total, 1)
        print(f"replaying: {done:,} of {total:,} steps ({percent} %)", file=sys.stderr, flush=True)
