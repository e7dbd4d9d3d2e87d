"""What is to be done to a run, and when: drawn beforehand, from a seed.

A fault falls at a random moment of each interval, so that faults are neither in step with the run
nor all at once. Kinds come in shuffled decks, each with every kind once: none is left out by
chance. Whom a fault meets is drawn as a number in [0, 1), since nobody knows beforehand who will be
there; who is there at the moment, in the order of their names, decides.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

KINDS = {
    "kill": "SIGKILL to a worker",
    "stop": "SIGSTOP to a worker for 0.8 to 1.6 leases, then SIGCONT",
    "slow": "a worker runs half of the time (SIGSTOP and SIGCONT in turn) for 1 to 4 s",
    "server": "SIGKILL to a server",
    "backup": "SIGKILL to a server's replica",
    "scheduler": "SIGKILL to the scheduler's process",
    "disk": "the run's folder of checkpoints refuses writes for 1 to 4 s",
}
"""Every kind of fault, and what is done."""

VICTIMS = {
    "kill": "worker",
    "stop": "worker",
    "slow": "worker",
    "server": "server",
    "backup": "backup",
    "scheduler": "scheduler",
}
"""Which processes a kind is aimed at, by the name that they have in ``ps``."""

_STOP_LEASES = (0.8, 1.6)
_WHILE_S = (1.0, 4.0)


class Planned(NamedTuple):
    """A fault to come.

    Attributes:
        number: counts from 0.
        at_s: seconds after the first moment of chaos.
        kind: one of ``KINDS``.
        pick: whom it meets, as a fraction of those who are there.
        length_s: for how long; 0 for a death.
    """

    number: int
    at_s: float
    kind: str
    pick: float
    length_s: float


def make_plan(
    kinds: Sequence[str], every_s: float, for_s: float, seed: int, lease_s: float
) -> list[Planned]:
    """The faults of ``for_s`` seconds, one in each interval of ``every_s``, in order.

    Args:
        kinds: of ``KINDS``, at least one.
        every_s: seconds, positive.
        for_s: seconds, not negative.
        seed: the same seed gives the same plan.
        lease_s: the run's ``failure.lease_s``, from which a stop takes its length.
    """
    generator = random.Random(seed)
    planned: list[Planned] = []
    deck: list[str] = []
    for number in range(int(for_s / every_s + 1e-9)):
        if not deck:
            deck = sorted(kinds)
            generator.shuffle(deck)
        kind = deck.pop()
        at_s = (number + generator.random()) * every_s
        pick, length = generator.random(), generator.random()
        planned.append(Planned(number, at_s, kind, pick, _length_s(kind, length, lease_s)))
    return planned


def _length_s(kind: str, fraction: float, lease_s: float) -> float:
    if kind == "stop":
        least, most = (bound * lease_s for bound in _STOP_LEASES)
    elif kind in ("slow", "disk"):
        least, most = _WHILE_S
    else:
        return 0.0
    return least + fraction * (most - least)
