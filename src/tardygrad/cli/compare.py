"""Run one job by several methods and seeds, and write one page about it.

Each method gets the recipe's model, data and settings, and of its method what means
the same to both (see 'tardygrad train --set method=NAME'); '--own' changes one method
alone. Seeds give all methods the same first parameters and samples. The runs lie in the
comparison's folder; the same command again takes up one that was interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tardygrad.cli.parser import make_current_directory_importable, read_document
from tardygrad.errors import UsageError

if TYPE_CHECKING:
    from tardygrad.comparing import Told
    from tardygrad.metrics.comparison import Target, Trial

SUMMARY = "run several methods on one job, side by side"

EXAMPLES = (
    ("tardygrad compare mnist-mlp --methods sync_sgd,async_sgd,local_sgd", "three runs"),
    ("tardygrad compare blobs --methods all --engine inline", "every method, in virtual time"),
    (
        "tardygrad compare mnist-mlp --methods ssp,easgd --seeds 3 --target accuracy=0.97",
        "how soon",
    ),
    ("tardygrad compare mnist-mlp --methods diloco,ssp --own diloco.exchange_period=50", "tuned"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``tardygrad compare``."""
    parser.add_argument(
        "recipe", nargs="?", metavar="RECIPE", help="name of a recipe, or a YAML file"
    )
    parser.add_argument(
        "--methods", required=True, metavar="A,B,C", help="names of methods, or 'all'"
    )
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="runs of each method (default: 1)"
    )
    parser.add_argument("--target", metavar="METRIC=VALUE", help="say when each run reached it")
    parser.add_argument("--engine", choices=("processes", "inline"), help="for real, or simulated")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the job",
    )
    parser.add_argument(
        "--own",
        action="append",
        default=[],
        metavar="METHOD.KEY=VALUE",
        help="a setting of one method",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder (default: runs/comparison-NAME)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Compare; returns the exit status."""
    make_current_directory_importable()
    document = read_document(arguments.recipe, "compare")
    if arguments.seeds < 1:
        raise UsageError(f"--seeds: expected at least 1, got {arguments.seeds}")
    target = _target(arguments.target)
    from tardygrad.documents import override, parse_overrides

    for assignment in arguments.set:
        if assignment.split("=")[0].split(".")[0].strip() == "method":
            raise UsageError(
                f"--set {assignment}: --methods names the methods, and a setting of one is "
                "--own METHOD.KEY=VALUE"
            )
    if arguments.engine is not None:
        document = {**document, "engine": arguments.engine}
    document = override(document, arguments.set)
    for assignment in arguments.own:
        path, equals, _ = assignment.partition("=")
        if not equals or "." not in path:
            raise UsageError(f"--own {assignment}: expected METHOD.KEY=VALUE")
    own = parse_overrides(arguments.own)
    from tardygrad import methods
    from tardygrad.comparing import documents_of

    wanted = methods.names() if arguments.methods == "all" else arguments.methods.split(",")
    documents = documents_of(document, [name.strip() for name in wanted], own)
    name = str(document.get("name", "run"))
    _check_metric(target, next(iter(documents.values())))
    directory = arguments.out or Path("runs") / f"comparison-{name}"
    return _compare(documents, arguments.seeds, directory, target, name)


def _compare(
    documents: dict[str, dict[str, Any]], seeds: int, directory: Path, target: Target | None,
    name: str,
) -> int:  # fmt: skip
    from tardygrad.comparing import compare
    from tardygrad.metrics.comparison import FILE_NAME, write_page

    with _told(len(documents) * seeds) as tell:
        trials = list(compare(documents, range(seeds), directory, tell))
    metrics = [metric for trial in trials for metric in trial.history.metric_names()]
    metric = target.metric if target else next(iter(metrics), "loss")
    _print_table(trials, target, metric)
    try:
        print(write_page(directory / FILE_NAME, f"{name}: methods", trials, target, metric))
    except ImportError:
        print("the page needs the extra 'report': pip install 'tardygrad[report]'")
    return 0


def _target(text: str | None) -> Target | None:
    from tardygrad.metrics.comparison import Target

    if text is None:
        return None
    metric, _, value = text.partition("=")
    try:
        return Target(metric.strip(), float(value))
    except ValueError:
        raise UsageError(f"--target: expected METRIC=VALUE, got {text!r}") from None


def _check_metric(target: Target | None, document: dict[str, Any]) -> None:
    from tardygrad.errors import unknown
    from tardygrad.training import resolve

    measured = ("loss", *resolve(document).model.metrics)
    if target is not None and target.metric not in measured:
        raise UsageError(f"--target: {unknown('metric', target.metric, measured)}")


@contextlib.contextmanager
def _told(runs: int) -> Iterator[Told]:
    """A bar of the runs that are done where somebody looks at a terminal, else a line for each."""
    if not sys.stderr.isatty():
        yield _tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=runs)

        def tell(method: str, seed: int, number: int, total: int) -> None:
            said = f"{method}, seed {seed}"
            progress.update(task, completed=number - 1, total=total, description=said)

        yield tell
        progress.update(task, completed=runs, description="done")


def _tell(method: str, seed: int, number: int, total: int) -> None:
    print(f"{number}/{total} {method}, seed {seed}", file=sys.stderr, flush=True)


def _print_table(trials: list[Trial], target: Target | None, metric: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from tardygrad.metrics.comparison import COLUMNS, rows

    found = rows(trials, target, metric)
    table = Table(box=None, header_style="bold")
    shown = [i for i, name in enumerate(COLUMNS) if any(row.cells[i] for row in found)]
    for i in shown:
        table.add_column(metric if COLUMNS[i] == "final" else COLUMNS[i])
    for row in found:
        table.add_row(*(row.cells[i] for i in shown))
    # Where nobody looks at a terminal, nothing is folded.
    Console(width=None if sys.stdout.isatty() else 200).print(table)
