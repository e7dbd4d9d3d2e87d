"""Remove what dead runs left behind: shared memory and sockets, never run directories.

A run that ends, however it fails, cleans up after itself; one whose main process was
killed cannot. The next run does it too. What living runs use is left alone.
"""

from __future__ import annotations

import argparse

SUMMARY = "remove what dead runs left behind"

EXAMPLES = (
    ("tardygrad clean --dry-run", "what would go"),
    ("tardygrad clean", "remove it"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``tardygrad clean``."""
    parser.add_argument("--dry-run", action="store_true", help="list, but remove nothing")


def run(arguments: argparse.Namespace) -> int:
    """Clean up; returns the exit status."""
    from tardygrad.engines.runtime_directory import clean

    removed = clean(dry_run=arguments.dry_run)
    for leftover in removed:
        print(leftover)
    verb = "would be removed" if arguments.dry_run else "removed"
    print(f"{len(removed)} {verb}" if removed else "nothing was left behind")
    return 0
