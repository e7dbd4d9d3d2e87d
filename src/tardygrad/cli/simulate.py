"""Simulate a run in virtual time: the same configuration on the engine 'inline'.

Scheduler, servers and workers are those of a real run, and the model is trained for
real, but in one process and on a virtual clock: computing and travelling take as
long as 'simulation' says, and the faults listed there happen. The same seed gives
the same run, bit for bit.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tardygrad.cli.parser import (
    add_configuration,
    make_current_directory_importable,
    read_document,
)
from tardygrad.cli.train import start

SUMMARY = "run a configuration in virtual time"

EXAMPLES = (
    ("tardygrad simulate blobs", "a second long"),
    ("tardygrad simulate blobs --set workers=20", "twenty workers on one core"),
    ("tardygrad simulate blobs --set 'simulation.compute=[0.02, 0.02, 0.02, 0.1]'", "one slow"),
    (
        "tardygrad simulate blobs --set 'simulation.faults=[{kind: crash, target: worker-1}]'",
        "one dies",
    ),
    ("tardygrad simulate mnist-mlp --like runs/mine", "as fast as a real run was"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``tardygrad simulate``."""
    add_configuration(parser)
    parser.add_argument(
        "--like", type=Path, metavar="DIR", help="as many workers, and as fast, as in that run"
    )


def run(arguments: argparse.Namespace) -> int:
    """Simulate; returns the exit status."""
    make_current_directory_importable()
    document = read_document(arguments.recipe, "simulate")
    if arguments.like is not None:
        from tardygrad.documents import merge
        from tardygrad.fitting import simulation_like

        workers = _workers_asked_for(arguments.set)
        document = merge(document, simulation_like(arguments.like, workers))
    arguments.set = [*arguments.set, "engine=inline"]
    return start(arguments, document)


def _workers_asked_for(assignments: list[str]) -> int | None:
    """The ``workers`` of ``--set``, where it is a number of workers at all."""
    from tardygrad.documents import override

    named = [a for a in assignments if a.partition("=")[0].strip() == "workers"]
    count = override({}, named).get("workers")
    # What else it may be is told when the whole configuration is checked.
    return count if type(count) is int and count > 0 else None
