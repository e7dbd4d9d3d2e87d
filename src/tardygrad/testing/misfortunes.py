"""More that may befall a random run, and every method by its name.

Each kind is one function in ``KINDS``: it changes a schedule, by draws from a stream of its own, so
that a new kind moves nothing that an older seed has drawn. A schedule meets few kinds at a time.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

from tardygrad import methods
from tardygrad.config import merge
from tardygrad.errors import ConfigError
from tardygrad.testing.schedules import Schedule

Kind = Callable[[Schedule, random.Random], Schedule]


def with_misfortunes(schedule: Schedule, rng: random.Random) -> Schedule:
    """The schedule, and perhaps some kinds of misfortune more."""
    if rng.random() < 0.4:
        return schedule
    for name in rng.sample(sorted(KINDS), rng.choice((1, 1, 2, 3))):
        schedule = KINDS[name](schedule, random.Random(f"{name} of {schedule.seed}"))
    return schedule


def _more_faults(schedule: Schedule, *faults: dict[str, Any]) -> Schedule:
    before = schedule.settings["simulation"]["faults"]
    changes = {"simulation": {"faults": [*before, *faults]}}
    return dataclasses.replace(schedule, settings=merge(schedule.settings, changes))


def _moment(schedule: Schedule, rng: random.Random) -> float:
    settings = schedule.settings
    batches = settings["epochs"] * schedule.samples / settings["batch_size"]
    return rng.uniform(0, 0.015 * batches / settings["workers"] + 0.2)


def _member(schedule: Schedule, rng: random.Random) -> str:
    kind = rng.choice(("worker", "server"))
    return f"{kind}-{rng.randrange(schedule.settings[f'{kind}s'])}"


def _one_way(schedule: Schedule, rng: random.Random) -> Schedule:
    """A partition in one direction: a member that speaks and hears nothing, or the reverse."""
    lease_s = schedule.settings["failure"]["lease_s"]
    fault = {
        "kind": "blackout",
        "target": _member(schedule, rng),
        "way": rng.choice(("in", "out")),
        "at_s": _moment(schedule, rng),
        "for_s": rng.choice((0.3, 0.9, 1.5, 4.0)) * lease_s,
    }
    return _more_faults(schedule, fault)


def _jump(schedule: Schedule, rng: random.Random) -> Schedule:
    """A clock jumps ahead: a process's own, or, as when it slept, the whole machine's."""
    lease_s = schedule.settings["failure"]["lease_s"]
    by_s = rng.choice((0.1, 0.45, 1.0, 3.0, 1000.0)) * lease_s
    fault: dict[str, Any] = {"kind": "jump", "at_s": _moment(schedule, rng), "by_s": by_s}
    if rng.random() < 0.5:
        fault["target"] = _member(schedule, rng)
    return _more_faults(schedule, fault)


def _torn(schedule: Schedule, rng: random.Random) -> Schedule:
    """Snapshots that were written, and cannot be read."""
    return dataclasses.replace(schedule, torn=frozenset(rng.randrange(20) for _ in range(3)))


def _full(schedule: Schedule, rng: random.Random) -> Schedule:
    """No room for a manifest."""
    return dataclasses.replace(schedule, full=frozenset(rng.randrange(6) for _ in range(2)))


def _any_method(schedule: Schedule, rng: random.Random) -> Schedule:
    """A method by its name, as it is configured by itself."""
    if schedule.model == "counting":
        return schedule
    method: dict[str, Any] = {"name": rng.choice(methods.names())}
    period = rng.choice((1, 2, 3))
    try:
        methods.parse({**method, "exchange_period": period})
        method["exchange_period"] = period
    except ConfigError:
        pass  # it has one of its own
    return dataclasses.replace(schedule, settings={**schedule.settings, "method": method})


KINDS: dict[str, Kind] = {
    "any method": _any_method,
    "full": _full,
    "jump": _jump,
    "one way": _one_way,
    "torn": _torn,
}
"""Every kind; whoever adds one adds it here."""
