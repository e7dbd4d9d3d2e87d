"""Train while processes are killed, frozen and slowed and the disk refuses, and count.

RECIPE begins a new run (a recipe's name or a YAML file), RUN goes on with one that is
there. Beside it an undisturbed run is trained with the same seed and samples. Then:
goodput, recovery times, work that was done again, the ledger's verdict, the accuracy
beside the undisturbed run, and whether anything was left behind.

Exit status 1 if the run is not done, the ledger is not exact, something was left behind
or never recovered, or a --limit was missed.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path
from typing import Any

from tardygrad.cli.parser import make_current_directory_importable, read_document
from tardygrad.cli.train import switched
from tardygrad.errors import UsageError, unknown

SUMMARY = "train under kills, stops and a refusing disk, and count"

EXAMPLES = (
    ("tardygrad chaos mnist-async", "a minute of faults, one every 2 s"),
    ("tardygrad chaos mnist-async --kinds kill,server --every 500ms", "of two kinds, more often"),
    ("tardygrad chaos mnist-mlp --for 15m --every 10s --alone", "a soak, no undisturbed run"),
    ("tardygrad chaos runs/mine --seed 7", "to a run that goes on"),
    ("tardygrad chaos mnist-async --limit goodput=0.9 --limit others=0.1", "what is demanded"),
)

_UNITS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}
_USUAL = "kill,stop,slow,server,scheduler,disk"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``tardygrad chaos``."""
    parser.add_argument("what", nargs="?", metavar="RUN-OR-RECIPE", help="what to train")
    parser.add_argument("--every", default="2s", metavar="TIME", help="between faults (default 2s)")
    parser.add_argument(
        "--for", default="60s", metavar="TIME", dest="duration", help="of chaos (default 60s)"
    )
    parser.add_argument(
        "--kinds",
        default=_USUAL,
        metavar="A,B,C",
        help=f"of faults (default {_USUAL}; also backup)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the faults (default 0)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting; epochs are chosen to last as long as the chaos unless set",
    )
    parser.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="fail beyond: goodput, accuracy, others, replacement, shard, scheduler, memory",
    )
    parser.add_argument("--alone", action="store_true", help="train no undisturbed run beside it")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="run directory (default: runs/NAME-chaos-DATE-TIME)"
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but what failed")


def run(arguments: argparse.Namespace) -> int:
    """Train under chaos; returns the exit status."""
    make_current_directory_importable()
    kinds, limits = _kinds(arguments.kinds), _limits(arguments.limit)
    every_s = _seconds("--every", arguments.every)
    for_s = _seconds("--for", arguments.duration)
    if for_s < every_s:
        raise UsageError(f"--for {arguments.duration}: expected at least one --every")
    from tardygrad.chaos import processes

    if not processes.available():
        raise UsageError("chaos finds processes by /proc, which this system does not have")
    from tardygrad.chaos.conduct import Order, conduct

    config, out, resumed = _configuration(arguments)
    order = Order(
        config=config,
        out=out,
        resumed=resumed,
        kinds=kinds,
        every_s=every_s,
        for_s=for_s,
        seed=arguments.seed,
        fit_epochs=not resumed
        and not any(a.split("=")[0].strip() == "epochs" for a in arguments.set),
        alone=arguments.alone,
    )
    outcome = conduct(order, _silent if arguments.quiet else _say)
    from tardygrad.storage.atomic import write_json

    if outcome.run.is_dir():
        write_json(outcome.run / "chaos.json", {**outcome.as_dict(), "limits": limits})
    if not arguments.quiet:
        print("\n".join(outcome.lines()))
    failures = outcome.failures(limits)
    for failure in failures:
        print(f"tardygrad: failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _configuration(arguments: argparse.Namespace) -> tuple[dict[str, Any], Path, bool]:
    """The whole configuration, the run directory, and whether it is there already."""
    from tardygrad import training
    from tardygrad.config import BY_VALUE, override, parse_overrides, to_document
    from tardygrad.storage.run_directory import RunDirectory

    path = Path(arguments.what or "")
    resumed = arguments.what is not None and path.is_dir()
    if resumed:
        if arguments.out is not None:
            raise UsageError("a run is resumed in its own directory: leave out --out")
        if arguments.set:
            raise UsageError("a run that goes on has its configuration already: leave out --set")
        config = training.resumed_config(RunDirectory.open(path), parse_overrides([]))
    else:
        document = read_document(arguments.what, "chaos")
        config = training.resolve(override(*switched(document, arguments.set)))
    if config.engine != "processes":
        raise UsageError(
            f"engine {config.engine!r} has no processes to kill; expected 'processes' (faults of "
            "the simulator are settings: simulation.faults)"
        )
    document = to_document(config)
    if BY_VALUE in (config.model.factory, config.model.loss, config.data.source):
        raise UsageError(
            "a model or data handed over from Python cannot be trained by another process; "
            "expected names such as 'package.module:function'"
        )
    stamp = time.strftime("%Y%m%d-%H%M%S")
    out = path if resumed else arguments.out or Path("runs") / f"{config.name}-chaos-{stamp}"
    return document, out, resumed


def _kinds(text: str) -> list[str]:
    from tardygrad.chaos.plan import KINDS

    kinds = list(dict.fromkeys(kind.strip() for kind in text.split(",")))
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(f"--kinds: {unknown('kind', kind, KINDS)}")
    return kinds


def _limits(assignments: list[str]) -> dict[str, float]:
    from tardygrad.chaos.outcome import LIMITS

    found = {}
    for assignment in assignments:
        name, _, value = (part.strip() for part in assignment.partition("="))
        if name not in LIMITS:
            raise UsageError(f"--limit: {unknown('limit', name, LIMITS)}")
        try:
            found[name] = float(value)
        except ValueError:
            raise UsageError(f"--limit: expected {name}=NUMBER, got {assignment!r}") from None
    return found


def _seconds(option: str, text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|)", text.strip())
    value = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if value <= 0:
        raise UsageError(f"{option} {text}: expected a time such as 500ms, 2s or 15m")
    return value


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _silent(line: str) -> None:
    """Nobody wants to hear it."""
