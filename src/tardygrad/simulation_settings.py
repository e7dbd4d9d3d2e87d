"""What a simulation pretends: how long things take, how wide links are, and what goes wrong.

Theory of operation. The cost of a step, of an exchange and of an update is a sum of few parts. A
worker computes for a ``Duration``, drawn for each step. Whatever is sent travels for a ``Duration``
too, its latency. What carries parameters or updates has bytes besides, and those occupy two links
at the same time: that of who sends and that of who receives, each for bytes / bandwidth. A server's
link serves all workers, so their transfers queue there. A server applies one update at a time, for
a ``Duration`` each. Faults stretch, cut and kill all this by plan. The engine ``inline``
draws every number from the run's seed.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from tardygrad.sections import Section

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Bandwidth", "Change", "Duration", "Fault", "SimulationConfig"]

Distribution = Literal["constant", "uniform", "exponential", "lognormal", "shifted_exponential"]


class Duration(Section):
    """A distribution of seconds, sampled by the simulator with a seeded generator.

    ``mean_s`` is always the mean.  ``spread`` is in seconds too: half the width of ``uniform``,
    the standard deviation of ``lognormal`` and of ``shifted_exponential`` (a fixed part of
    ``mean_s - spread`` and an exponential one of mean ``spread``).  ``constant`` and
    ``exponential`` have none.  In a document a bare number is a constant duration.
    """

    distribution: Distribution = "constant"
    mean_s: float = Field(ge=0)
    spread: float = Field(0.0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _bare_number(cls, value: Any) -> Any:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return {"mean_s": value}
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.distribution in ("constant", "exponential"):
            if self.spread:
                raise ValueError(f"a duration that is {self.distribution} has no spread")
        elif self.distribution != "lognormal" and self.spread > self.mean_s:
            raise ValueError(f"spread {self.spread:g} exceeds mean_s {self.mean_s:g}")
        return self

    def sample(self, rng: np.random.Generator) -> float:
        """One duration in seconds, never negative; ``constant`` draws nothing from ``rng``."""
        kind, mean_s, spread = self.distribution, self.mean_s, self.spread
        if kind == "constant" or mean_s == 0.0:
            return mean_s
        if kind == "exponential":
            return float(rng.exponential(mean_s))
        if kind == "uniform":
            return float(rng.uniform(mean_s - spread, mean_s + spread))
        if kind == "shifted_exponential":
            return mean_s - spread + float(rng.exponential(spread))
        variance = math.log1p((spread / mean_s) ** 2)
        return float(rng.lognormal(math.log(mean_s) - variance / 2, math.sqrt(variance)))


FaultKind = Literal["crash", "hang", "slow", "loss", "duplicate", "delay", "blackout", "jump"]

_TARGET = re.compile(r"scheduler|(worker|server|backup)-(0|[1-9][0-9]*)")
_OF_PROCESSES = ("crash", "hang", "slow")
_OF_MESSAGES = ("loss", "duplicate", "delay")


class Fault(Section):
    """One fault that the simulator injects, from ``at_s`` on and for ``for_s`` seconds.

    ``crash`` kills the target at ``at_s``, the scheduler for ``for_s`` seconds; ``hang`` freezes
    it; ``slow`` makes its computing ``factor`` times as long.  ``loss``, ``duplicate`` and
    ``delay`` meet a message of the target with probability ``rate``; ``delay`` makes its way
    ``factor`` times as long.  ``blackout`` cuts the target off from all messages, or, one ``way``,
    from those that come in or go out.  ``jump`` sets the target's clock ``by_s`` ahead, or that of
    the whole machine.  With ``every_s`` it comes back: from ``at_s`` on a phase of ``for_s``
    seconds begins every ``every_s`` seconds.
    """

    kind: FaultKind
    target: str | None = None
    """``worker-N``, ``server-N``, ``backup-N``, or ``scheduler`` (crash only); None = every link
    (faults of messages) or clock (jumps)."""
    at_s: float = Field(0.0, ge=0)
    for_s: float | None = Field(None, gt=0)
    """How long it lasts; None = to the end of the run.  Only the scheduler's crash has one."""
    every_s: float | None = Field(None, gt=0)
    """Seconds between two beginnings of its phases; None = it has one.  Not of crash and hang."""
    rate: float = Field(0.0, ge=0, le=1)
    factor: float = Field(1.0, gt=0)
    way: Literal["both", "in", "out"] = "both"
    """Which messages a blackout cuts off."""
    by_s: float = Field(0.0, ge=0)
    """Seconds by which a clock jumps ahead; it stays ahead."""

    @field_validator("target")
    @classmethod
    def _target(cls, value: str | None) -> str | None:
        if value is None or _TARGET.fullmatch(value):
            return value
        raise ValueError("expected 'worker-N', 'server-N', 'backup-N', 'scheduler' or nothing")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kind in _OF_PROCESSES and self.target is None:
            raise ValueError(f"a fault of kind {self.kind} needs a target, such as 'worker-1'")
        if self.kind in _OF_MESSAGES and self.rate == 0:
            raise ValueError(f"a fault of kind {self.kind} needs a rate above 0")
        if (self.kind == "jump") != (self.by_s > 0):
            raise ValueError("a jump needs a by_s above 0, and no other fault has one")
        if self.way != "both" and self.kind != "blackout":
            raise ValueError(f"a fault of kind {self.kind} has no way; a blackout has one")
        if self.kind == "jump" and self.for_s is not None:
            raise ValueError("a jump has no for_s: a clock that is ahead stays ahead")
        if self.target == "scheduler":
            if self.kind != "crash" or self.for_s is None:
                raise ValueError(
                    "the scheduler's fault is a crash with for_s, the seconds until it is back"
                )
        elif self.kind == "crash" and self.for_s is not None:
            raise ValueError("a crash has no for_s: the target is replaced, or not, by the run")
        if self.every_s is not None:
            self._check_phases(self.every_s)
        return self

    def _check_phases(self, every_s: float) -> None:
        if self.kind in ("crash", "hang", "jump"):
            raise ValueError(f"a {self.kind} has no every_s: list one fault for each {self.kind}")
        if self.for_s is None or self.for_s >= every_s:
            raise ValueError(
                f"every_s {every_s:g} needs a shorter for_s, got {self.for_s}: it comes back only "
                "after it has ended"
            )

    def on(self, now: float) -> bool:
        """Whether it is at work at virtual time ``now``, in seconds."""
        if now < self.at_s:
            return False
        if self.every_s is not None and self.for_s is not None:
            return (now - self.at_s) % self.every_s < self.for_s
        return self.for_s is None or now < self.at_s + self.for_s


class Change(Section):
    """Workers that join or leave at ``at_s``, as if somebody had asked for it."""

    at_s: float = Field(ge=0)
    add: int = Field(0, ge=0)
    remove: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _changes(self) -> Self:
        if not self.add and not self.remove:
            raise ValueError("a change adds or removes workers; give add or remove")
        return self


def _one_or_list(value: Any) -> str:
    return "list" if isinstance(value, list | tuple) else "one"


Durations = Annotated[
    Annotated[tuple[Duration, ...], Field(strict=False, min_length=1), Tag("list")]
    | Annotated[Duration, Tag("one")],
    Discriminator(_one_or_list),
]


Rate = Annotated[float, Field(gt=0)]
Rates = Annotated[
    Annotated[tuple[Rate | None, ...], Field(strict=False, min_length=1), Tag("list")]
    | Annotated[Rate | None, Tag("one")],
    Discriminator(_one_or_list),
]


class Bandwidth(Section):
    """Bytes per second of each link, up (sending) and down (receiving); None = without limit.

    One number for all workers (or servers), or a list with one for each.
    """

    worker_up_bytes_per_s: Rates = None
    """Of a worker's own link: updates that it pushes."""
    worker_down_bytes_per_s: Rates = None
    """Of a worker's own link: parameters that it pulls."""
    server_up_bytes_per_s: Rates = None
    """Of the link of a server, which all workers share: parameters."""
    server_down_bytes_per_s: Rates = None
    """Of the link of a server, which all workers share: updates."""

    def of(self, kind: str, way: str, count: int) -> list[float | None]:
        """Bytes per second of the ``count`` members of a kind; a list begins anew after its end.

        Args:
            kind: ``worker`` or ``server``.
            way: ``up`` or ``down``.
            count: how many members there are.
        """
        given = getattr(self, f"{kind}_{way}_bytes_per_s")
        given = given if isinstance(given, tuple) else (given,)
        return [given[index % len(given)] for index in range(count)]


class SimulationConfig(Section):
    """What the ``inline`` engine pretends: how long things take and what goes wrong."""

    compute: Durations = Duration(mean_s=0.01)
    """Seconds per step: one distribution for all workers, or a list with one for each."""
    network: Durations = Duration(mean_s=0.0002)
    """Seconds that parameters and updates travel, one way; a list gives each worker its link."""
    bandwidth: Bandwidth = Bandwidth()
    """Bytes per second of the workers' and servers' links; without limit unless it is set."""
    control: Duration = Duration(mean_s=0.0002)
    """Seconds that control messages travel, one way."""
    apply: Duration = Duration(mean_s=0.0001)
    """Seconds that a server needs to apply one update."""
    faults: Annotated[tuple[Fault, ...], Field(strict=False)] = ()
    changes: Annotated[tuple[Change, ...], Field(strict=False)] = ()
    """Workers that join and leave; what others have is theirs too, lists begin anew for them."""
    tick_s: float = Field(0.5, gt=0)
    """Virtual seconds between two ticks of the clock (leases, heartbeats, progress)."""
    limit_s: float | None = Field(None, gt=0)
    """Virtual seconds after which the simulation gives up; None = ten million."""

    def compute_of(self, worker: int) -> Duration:
        """The compute time of worker ``worker`` (0 ..); a list begins anew for those who join."""
        given = self.compute
        return given[worker % len(given)] if isinstance(given, tuple) else given

    def network_of(self, worker: int) -> Duration:
        """The delay between worker ``worker`` (0 ..) and any server; likewise."""
        given = self.network
        return given[worker % len(given)] if isinstance(given, tuple) else given

    def check(self, workers: int, servers: int, backups: int = 0) -> None:
        """See that lists have an entry for each member, and that faults meet somebody.

        Raises:
            ValueError: they do not.
        """
        for key in ("compute", "network"):
            _check_length(key, getattr(self, key), "duration", "worker", workers)
        for key in Bandwidth.model_fields:
            kind = key.partition("_")[0]
            count = workers if kind == "worker" else servers
            _check_length(f"bandwidth.{key}", getattr(self.bandwidth, key), "number", kind, count)
        for number, fault in enumerate(self.faults):
            kind, _, index = (fault.target or "").partition("-")
            count = {"worker": workers, "backup": backups}.get(kind, servers)
            if index and int(index) >= count:
                there = f"{kind}s are numbered 0 to {count - 1}" if count else "replicas is 0"
                raise ValueError(
                    f"simulation.faults.{number}.target: {fault.target!r} does not exist; {there}"
                )


def _check_length(key: str, given: Any, what: str, kind: str, count: int) -> None:
    if isinstance(given, tuple) and len(given) != count:
        raise ValueError(
            f"simulation.{key}: expected one {what} for all, or a list of {count} (one for each "
            f"{kind}), got a list of {len(given)}"
        )
