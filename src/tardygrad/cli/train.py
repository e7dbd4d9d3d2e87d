"""Train a model by a recipe or by a YAML file of your own.

RECIPE is the name of a recipe ('tardygrad recipes' lists them) or a YAML file with
the same keys. Everything about the run lands in its run directory: configuration,
metrics, checkpoints, ledger, trace and pictures.

Ctrl-C or SIGTERM: finish the step, write a checkpoint, leave with exit status 75;
--resume goes on from there. A second Ctrl-C stops at once.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tardygrad.cli.parser import (
    add_configuration,
    make_current_directory_importable,
    read_document,
)
from tardygrad.cli.summary import summarize
from tardygrad.errors import RunDirectoryError, TardygradError, UsageError

if TYPE_CHECKING:
    from tardygrad.training import Result

SUMMARY = "train a model, or go on with a run"

EXAMPLES = (
    ("tardygrad train mnist-async", "the first run"),
    ("tardygrad train mnist-async --set epochs=1 --set workers=2", "with other settings"),
    ("tardygrad train mnist-async --set method.optimizer.arguments.lr=0.05", "of the method"),
    ("tardygrad train mnist-mlp --set method=local_sgd", "by another method"),
    ("tardygrad train my.yaml --out runs/mine", "a configuration of your own"),
    ("tardygrad train my.yaml --dry-run", "what would run, every default included"),
    ("tardygrad train --resume runs/mine", "go on after a stop"),
    ("tardygrad train --resume", "go on with the newest unfinished run"),
)

RUNS = Path("runs")
_NEWEST = Path()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``tardygrad train``."""
    add_configuration(parser)
    parser.add_argument(
        "--resume",
        nargs="?",
        type=Path,
        const=_NEWEST,
        metavar="RUN",
        help="go on with this run (default: the newest unfinished one in runs/); no RECIPE then",
    )


def run(arguments: argparse.Namespace) -> int:
    """Train or resume; returns the exit status."""
    make_current_directory_importable()
    if arguments.resume is not None:
        return _resume(arguments)
    return start(arguments, read_document(arguments.recipe, "train"))


def start(arguments: argparse.Namespace, document: dict[str, Any]) -> int:
    """Begin a new run of ``document`` as the options say; returns the exit status."""
    from tardygrad.config import RunConfig, override

    # Says what is wrong before torch is imported, which is slow; methods need it.
    others = [a for a in arguments.set if not a.strip().startswith("method")]
    checked = RunConfig.model_validate(override(document, others))
    from tardygrad.engines import nursery

    if checked.engine == "processes" and not arguments.dry_run:
        # The parent of all processes imports torch while this one does.
        nursery.prestart(checked.threads)
    try:
        return _start(arguments, document)
    finally:
        nursery.discard()


def _start(arguments: argparse.Namespace, document: dict[str, Any]) -> int:
    from tardygrad import training
    from tardygrad.config import override, to_yaml

    config = training.resolve(override(*switched(document, arguments.set)))
    if arguments.dry_run:
        print(to_yaml(config), end="")
        return 0
    result = training.run(
        config,
        out=arguments.out,
        quiet=arguments.quiet,
        command_started=arguments.command_started,
    )
    return _finish(result, arguments.quiet)


def _names_a_method(assignment: str) -> bool:
    """Whether it is ``method=NAME`` or ``method.name=NAME``."""
    path, _, name = assignment.partition("=")
    return path.strip() in ("method", "method.name") and name.strip().isidentifier()


def switched(
    document: dict[str, Any], assignments: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """Carry out what of the assignments names another method; returns the others too."""
    from tardygrad import methods
    from tardygrad.config import DEFAULT_METHOD

    others = []
    section = document.get("method", DEFAULT_METHOD)
    section = {"name": section} if isinstance(section, str) else dict(section)
    for assignment in assignments:
        if _names_a_method(assignment):
            name = assignment.partition("=")[2].strip()
            section = methods.switch({"name": DEFAULT_METHOD, **section}, name)
        else:
            others.append(assignment)
    return {**document, "method": section}, others


def _resume(arguments: argparse.Namespace) -> int:
    if arguments.recipe is not None:
        raise UsageError(
            f"a run that is resumed has its configuration already: leave out "
            f"{arguments.recipe!r}, or leave out --resume"
        )
    if arguments.out is not None:
        raise UsageError("a run is resumed in its own directory: leave out --out")
    directory = newest_run(RUNS) if arguments.resume == _NEWEST else arguments.resume
    from tardygrad.config import parse_overrides, to_yaml
    from tardygrad.storage.run_directory import RunDirectory

    # Whether it is another method, the run's own configuration tells.
    assignments = [
        a.replace("method", "method.name", 1) if a.split("=")[0].strip() == "method" else a
        for a in arguments.set
        if _names_a_method(a)
    ]
    assignments += [a for a in arguments.set if not _names_a_method(a)]
    overrides = parse_overrides(assignments)
    from tardygrad import training

    if arguments.dry_run:
        config = training.resumed_config(RunDirectory.open(directory), overrides)
        print(to_yaml(config), end="")
        return 0
    result = training.resume(
        directory,
        overrides=overrides,
        quiet=arguments.quiet,
        command_started=arguments.command_started,
    )
    return _finish(result, arguments.quiet)


def newest_run(runs: Path) -> Path:
    """The run in ``runs`` that was written to last, of those that are not done.

    Raises:
        RunDirectoryError: no such run is there.
    """
    from tardygrad.storage.run_directory import RunDirectory

    written: dict[Path, int] = {}
    for metrics in sorted(runs.glob("*/metrics.jsonl")):
        with contextlib.suppress(TardygradError):  # half made or damaged: not for resuming
            if RunDirectory.open(metrics.parent).record.outcome != "done":
                written[metrics.parent] = metrics.stat().st_mtime_ns
    if not written:
        raise RunDirectoryError(
            f"there is no unfinished run in {str(runs)!r} to resume: name its directory, "
            "tardygrad train --resume RUN"
        )
    return max(written, key=lambda run: written[run])


def _finish(result: Result, quiet: bool) -> int:
    if quiet:
        if result.outcome == "failed":
            print(f"tardygrad: error: {result.reason}", file=sys.stderr)
        print(result.run_directory)
    else:
        print("\n".join(summarize(result)))
    return result.exit_code
