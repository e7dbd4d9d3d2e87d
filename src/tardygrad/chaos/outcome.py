"""What came of a run under chaos: figures, limits, and how they read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tardygrad.chaos.memory import Slope
from tardygrad.chaos.recovery import Fault
from tardygrad.chaos.redone import Redone, by_reason
from tardygrad.metrics import wording

LIMITS = {
    "goodput": "at least this share of what the live workers could have done",
    "accuracy": "at most so many points of the first metric below the undisturbed run",
    "others": "at most so many seconds from a worker's death to the others' next update",
    "replacement": "at most so many seconds from a worker's death to its replacement's update",
    "shard": "at most so many seconds from a server's death to the shard's next update",
    "scheduler": "at most so many seconds from the scheduler's death to its next lease",
    "memory": "at most so many MiB a minute that any process grows",
}
"""What can be demanded of an outcome, beside what always is."""

_SECONDS = {
    "others": ("kill", "others"),
    "replacement": ("kill", "replacement"),
    "shard": ("server", "shard"),
    "scheduler": ("scheduler", "leases"),
}
_SHOWN = 12


@dataclass(frozen=True)
class Outcome:
    """Everything that was found; see ``docs/chaos.md`` for the definitions.

    Shares are fractions (1 = all), times are seconds, ``speed`` is in samples/s. ``computed``
    counts batches. ``metrics`` and ``undisturbed`` are the final test metrics of the two runs.
    """

    run: Path
    seed: int
    planned_s: float
    chaos_s: float
    outcome: str
    reason: str
    faults: Sequence[Fault]
    skipped: int
    missing: Mapping[str, str]
    exact: bool
    verdict: str
    speed: float | None
    goodput: float | None
    of_undisturbed: float | None
    metrics: Mapping[str, float]
    undisturbed: Mapping[str, float]
    computed: int
    redone: Sequence[Redone]
    recoveries: Sequence[Mapping[str, Any]]
    unanswered: Sequence[str]
    leaks: Sequence[str]
    processes: int
    memory: Sequence[Slope]
    paused_s: float

    @property
    def metric(self) -> str | None:
        """The metric that is compared: the first that is not the loss."""
        return next((name for name in sorted(self.metrics) if name != "loss"), None)

    @property
    def points(self) -> float | None:
        """By how many hundredths the metric lies above the undisturbed run's; None without one."""
        name = self.metric
        if name is None or name not in self.undisturbed:
            return None
        return 100.0 * (self.metrics[name] - self.undisturbed[name])

    def failures(self, limits: Mapping[str, float]) -> list[str]:
        """What is not as it must be: what always is demanded, and the limits."""
        found = []
        if self.outcome != "done":
            found.append(f"the run is not done but {self.outcome}: {self.reason}")
        if not self.exact:
            found.append(f"the ledger: {self.verdict}")
        found += [f"left behind: {leak}" for leak in self.leaks]
        found += [f"never recovered: {fault}" for fault in self.unanswered]
        if not self.faults:
            found.append("nothing was done to the run: it ended before the first fault")
        for name, limit in limits.items():
            found += self._missed(name, limit)
        return found

    def _missed(self, name: str, limit: float) -> Iterator[str]:
        if name == "goodput":
            value = self.goodput
            if value is None or value < limit:
                said = "unknown" if value is None else f"{value:.1%}"
                yield f"goodput {said}, at least {limit:.1%} was demanded"
        elif name == "accuracy":
            points = self.points
            if points is None or points < -limit:
                said = "unknown" if points is None else f"{points:+.2f} points"
                yield f"{self.metric} {said} of undisturbed, at most {limit:g} less was demanded"
        elif name == "memory":
            for slope in self.memory:
                if slope.mebibytes_per_minute > limit:
                    yield (
                        f"{slope.name} (process {slope.pid}) grows by "
                        f"{slope.mebibytes_per_minute:.2f} MiB a minute, at most {limit:g} was "
                        "demanded"
                    )
        else:
            for row in self.recoveries:
                if (row["kind"], row["question"]) == _SECONDS[name] and row["max_s"] > limit:
                    yield f"{name}: {row['max_s']:.3f} s, at most {limit:g} s was demanded"

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for ``chaos.json``."""
        return {
            **asdict(self),
            "run": str(self.run),
            "redone": [item._asdict() for item in self.redone],
            "memory": [slope._asdict() for slope in self.memory],
        }

    def lines(self) -> Iterator[str]:
        """The outcome for people."""
        counts = Counter(fault.kind for fault in self.faults)
        kinds = ", ".join(f"{kind} {n}" for kind, n in sorted(counts.items()))
        skipped = f", {self.skipped} found nobody" if self.skipped else ""
        what = f"{len(self.faults)} faults in {self.chaos_s:.0f} s, seed {self.seed}"
        yield f"{what}: {kinds}{skipped}"
        if self.paused_s:
            yield _line("paused", f"{self.paused_s:.1f} s: times and goodput tell nothing")
        for kind, why in self.missing.items():
            yield f"  {'':<16}kind {kind!r} is not available: {why}"
        yield _line("outcome", f"{self.outcome}: {self.reason}" if self.reason else self.outcome)
        yield _line("ledger", self.verdict)
        yield _line("goodput", f"{_share(self.goodput)} of what the live workers could have done")
        of = f"{_share(self.of_undisturbed)} of the samples/s of the undisturbed run"
        yield _line("speed", of if self.speed is None else f"{of} ({self.speed:,.0f})")
        yield from self._metric_lines()
        again = sum(by_reason(self.redone).values())
        part = f" ({again / self.computed:.2%})" if self.computed else ""
        yield _line("redone", f"{again:,} of {self.computed:,} batches{part}")
        for why, batches in list(by_reason(self.redone).items())[:_SHOWN]:
            yield f"  {'':<16}{batches:>6,}  {why}"
        yield _line("recovery", f"{'kind':<11}{'until':<13}{'n':>4}{'p50':>9}{'p99':>9}{'max':>9}")
        for row in self.recoveries:
            times = "".join(f"{row[key]:>7.3f} s" for key in ("p50_s", "p99_s", "max_s"))
            yield f"  {'':<16}{row['kind']:<11}{row['question']:<13}{row['count']:>4}{times}"
        nothing = f"nothing of {self.processes} processes"
        yield _line("left behind", nothing if not self.leaks else f"{len(self.leaks)} things")
        for slope in sorted(self.memory, key=lambda s: -s.mebibytes_per_minute)[:_SHOWN]:
            yield _line(
                "memory",
                f"{slope.name:<12}{slope.mebibytes:>7.1f} MiB, {slope.mebibytes_per_minute:+.3f} "
                f"MiB a minute over {slope.seconds:.0f} s",
            )
        yield _line("run directory", str(self.run))

    def _metric_lines(self) -> Iterator[str]:
        name = self.metric
        if name is None:
            return
        said = wording.metric(name, self.metrics[name])
        if self.points is not None:
            other = wording.metric(name, self.undisturbed[name])
            said = f"{said}, undisturbed {other}: {self.points:+.2f} points"
        yield _line(name, said)


def _line(name: str, said: str) -> str:
    return f"  {name:<16}{said}"


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"
