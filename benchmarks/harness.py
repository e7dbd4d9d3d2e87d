"""How a figure is measured: in pairs, ours and the peer in turn, and the ratio pair by pair.

A machine's speed drifts; two numbers taken minutes apart say little. So each round measures both
sides one after the other (and swaps their order), the ratio is formed within the round, and the
median over the rounds is the figure. Every side runs in a fresh process of its own.

What was measured last stands in results/latest.jsonl, one line a figure, until the same figure is
measured again.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
LATEST = "latest.jsonl"
BUSY = 0.25
"""Load for each core above which other work on the machine would spoil the figures."""


class SideFailed(Exception):
    """One side could not be measured; the message says why."""


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    ``ours`` and ``peer`` take the number of the round and return one value in ``unit``; ``peer`` is
    None where there is nothing to compare with. ``at_least`` and ``aim`` are for what is *judged*:
    the "ratio", the "difference" (ours minus peer), or, without a peer, ours; over all rounds the
    median, or the ``worst`` one. Where smaller is better (seconds, bytes), the ratio is peer over
    ours, so that a larger ratio is always better; for differences and values ``at_least`` and
    ``aim`` are then upper limits. A ``note`` that depends on what was measured is a function.
    """

    name: str
    unit: str
    ours: Callable[[int], float]
    peer: Callable[[int], float] | None
    at_least: float | None
    aim: float | None
    judged: str = "ratio"
    worst: bool = False
    smaller_is_better: bool = False
    rounds: int = 5
    note: str | Callable[[], str] = ""


@dataclass
class Measurement:
    """What a figure came to, round by round."""

    figure: Figure
    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """Ours against the peer, round by round; none without a peer."""
        if not self.peer:
            return []
        if self.figure.smaller_is_better:
            return [p / o for o, p in zip(self.ours, self.peer, strict=True)]
        return [o / p for o, p in zip(self.ours, self.peer, strict=True)]

    def document(self) -> dict[str, Any]:
        """The object that goes into latest.jsonl; ``value`` and ``spread`` are of what is judged.

        Of a figure that is judged by its worst round, all values are that round's.
        """
        figure, ratios = self.figure, self.ratios
        judged = figure.judged if self.peer else "ours"
        differences = [o - p for o, p in zip(self.ours, self.peer, strict=False)]
        values = {"ours": self.ours, "ratio": ratios, "difference": differences}[judged]
        upper = figure.smaller_is_better and judged != "ratio"
        worst = values.index(max(values) if upper else min(values))

        def over_rounds(side: list[float]) -> float | None:
            if not side:
                return None
            return side[worst] if figure.worst else statistics.median(side)

        return {
            "figure": figure.name,
            "unit": figure.unit,
            "ours": over_rounds(self.ours),
            "peer": over_rounds(self.peer),
            "ratio": over_rounds(ratios),
            "spread": [min(values), max(values)],
            "at_least": figure.at_least,
            "aim": figure.aim,
            "judged": judged,
            "value": over_rounds(values),
            "upper_limits": upper,
            "rounds_ours": self.ours,
            "rounds_peer": self.peer or None,
            "note": figure.note if isinstance(figure.note, str) else figure.note(),
        }


def measure(figure: Figure, tell: Callable[[str], None]) -> Measurement:
    """Measure one figure, alternating which side begins.

    Raises:
        SideFailed: a side could not be measured.
    """
    result = Measurement(figure)
    for number in range(figure.rounds):
        sides = ["ours"] if figure.peer is None else ["ours", "peer"]
        for side in sides if number % 2 == 0 else reversed(sides):
            tell(f"{figure.name}: round {number + 1} of {figure.rounds}, {side}")
            if side == "ours":
                result.ours.append(figure.ours(number))
            elif figure.peer is not None:
                result.peer.append(figure.peer(number))
    return result


def verdict(document: dict[str, Any]) -> str:
    """``aim``, ``ok``, ``below`` or nothing, for the table."""
    value, at_least, aim = document["value"], document["at_least"], document["aim"]
    if at_least is None:
        return ""
    sign = -1 if document["upper_limits"] else 1
    if aim is not None and sign * value >= sign * aim:
        return "aim"
    return "ok" if sign * value >= sign * at_least else "below"


def select(words: Sequence[str], available: Sequence[Figure]) -> list[Figure]:
    """Figures by whole names, or those whose names hold any of the words (also given as ``a,b``).

    All without a word.
    """
    names = [f.name for f in available]
    parts = [word for word in words if word in names]
    parts += [part for word in words if word not in names for part in word.split(",") if part]
    wanted = [part.lower() for part in parts]
    return [f for f in available if not wanted or any(word in f.name.lower() for word in wanted)]


def machine() -> str:
    """What the figures were measured on, in words."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{platform.machine()}, {cores} cores, Python {platform.python_version()}, "
        f"torch {importlib.metadata.version('torch')}"
    )


def busy() -> float | None:
    """The machine's load for each core over the last minute, if that is too much; else None."""
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    return load if load > BUSY else None


def load(path: Path | None = None) -> list[dict[str, Any]]:
    """The objects of latest.jsonl, but for those of an older shape; none without the file."""
    source = RESULTS / LATEST if path is None else path
    if not source.exists():
        return []
    found = map(json.loads, source.read_text(encoding="utf-8").splitlines())
    return [document for document in found if "judged" in document]


def save(document: dict[str, Any], names: Sequence[str], path: Path | None = None) -> Path:
    """Put a figure into latest.jsonl, with the machine and the day, in place of its last one.

    Args:
        document: from :meth:`Measurement.document`.
        names: of all figures, in the order of the lines; what is called otherwise is dropped.
        path: instead of results/latest.jsonl.
    """
    target = RESULTS / LATEST if path is None else path
    day = datetime.now(UTC).date().isoformat()
    found = {d["figure"]: d for d in load(target)}
    found[document["figure"]] = {**document, "machine": machine(), "date": day}
    lines = [json.dumps(found[n], allow_nan=False) + "\n" for n in names if n in found]
    target.parent.mkdir(parents=True, exist_ok=True)
    whole = target.with_suffix(".new")
    whole.write_text("".join(lines), encoding="utf-8")
    whole.replace(target)
    return target


def run_side(module: str, *arguments: object, timeout_s: float = 600.0) -> dict[str, Any]:
    """Run ``python -m benchmarks.MODULE ARGUMENTS`` and read the JSON object it prints last.

    Raises:
        SideFailed: it failed, took longer than ``timeout_s``, or printed something else.
    """
    found = run_command(
        [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)], timeout_s
    )
    # The machine calms down before the other side begins.
    time.sleep(0.3)
    return found


def run_command(command: Sequence[str], timeout_s: float) -> dict[str, Any]:
    """Run a command, one compute thread, and read the JSON object in its last line.

    Raises:
        SideFailed: it failed, took longer than ``timeout_s``, or printed something else.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    what = " ".join(command)
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise SideFailed(f"{what} took longer than {timeout_s:g} s") from None
    finally:
        if process.poll() is None:
            # With everything that it started itself: a session of its own is a group of its own.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode:
        raise SideFailed(f"{what} ended with status {process.returncode}:\n{errors[-2000:]}")
    try:
        found: dict[str, Any] = dict(json.loads(output.strip().splitlines()[-1]))
    except (IndexError, ValueError, TypeError):
        raise SideFailed(f"{what} printed no JSON object, but: {output[-200:]!r}") from None
    return found
