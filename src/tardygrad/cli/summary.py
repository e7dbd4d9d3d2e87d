"""What ``train`` and ``simulate`` say at the end: the figures that count, and where to go on."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tardygrad.errors import TardygradError
from tardygrad.metrics import wording

if TYPE_CHECKING:
    from tardygrad.training import Result


def summarize(result: Result) -> list[str]:
    """The lines to print at the end of a run."""
    summary, run = result.summary, result.run_directory
    reason = summary.get("reason")
    head = f"{result.outcome}: {reason}" if reason else result.outcome
    lines = ["", f"{head}, after {wording.duration(summary.get('seconds'))} of {_kind(result)}"]
    lines += [f"  {name:<15}{value}" for name, value in _figures(summary)]
    verdict, exact = _verdict_of(run)
    lines.append(f"  {'ledger':<15}{verdict}")
    if result.curves is not None:
        lines.append(f"  {'curves':<15}{result.curves}")
    lines.append(f"  {'run directory':<15}{run}")
    lines.append("next:")
    command = _command()
    if result.outcome != "done":
        lines.append(f"  {command} train --resume {run}   goes on from the last checkpoint")
    else:
        lines.append(f"  {command} ledger {run}   proves that every sample counted once")
        if exact and _is_repeatable(run):
            lines.append(f"  {command} replay {run}   repeats the run, bit for bit")
    return lines


def _command() -> str:
    """What starts this program from here: its environment may not be activated."""
    if shutil.which("tardygrad"):
        return "tardygrad"
    installed = Path(sys.executable).parent / "tardygrad"
    if not installed.exists():
        return "python -m tardygrad"
    here = Path.cwd()
    return str(installed.relative_to(here) if installed.is_relative_to(here) else installed)


def _kind(result: Result) -> str:
    """What the seconds and the speed are of."""
    start = result.start
    kind = "simulated training (virtual time)" if start.get("engine") == "inline" else "training"
    return f"{kind} since it was resumed" if start.get("incarnation") else kind


def _figures(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    final: Mapping[str, Any] = summary.get("final") or {}
    figures = [
        (
            f"test {name}",
            wording.loss(value) if name == "loss" else wording.metric(name, value),
        )
        for name, value in sorted(final.items(), key=lambda item: item[0] == "loss")
    ]
    figures.append(("speed", f"{wording.rate(summary.get('samples_per_s'))} samples/s"))
    staleness: Mapping[str, Any] = summary.get("staleness") or {}
    spread = ", ".join(
        f"{name} {wording.number(staleness[name], 'g')}"
        for name in ("p50", "p99", "max")
        if staleness.get(name) is not None
    )
    mean = f"mean {wording.number(staleness.get('mean'), '.2f')}"
    figures.append(("staleness", f"{mean} ({spread})" if spread else mean))
    pushed, unencoded = summary.get("bytes_pushed"), summary.get("bytes_unencoded")
    if pushed and unencoded and pushed != unencoded:
        times = f"{unencoded / pushed:.3g} times as much"
        said = f"{wording.size(pushed)} (without the codec {wording.size(unencoded)}, {times})"
        figures.append(("pushed", said))
    if summary.get("first_update_s") is not None:
        first = wording.number(summary["first_update_s"], ".1f")
        figures.append(("first update", f"{first} s after the command"))
    return figures


def _verdict_of(run: Path) -> tuple[str, bool]:
    from tardygrad.auditing import audit

    try:
        found = audit(run)
    except TardygradError as error:
        return f"not readable: {error}", False
    return found.verdict(), found.exact


def _is_repeatable(run: Path) -> bool:
    from tardygrad.replaying import check_repeatable
    from tardygrad.storage.run_directory import RunDirectory

    try:
        check_repeatable(RunDirectory.open(run))
    except TardygradError:
        return False
    return True
