"""What happened to workers' residuals that no server knows of, for those who repeat a run.

Theory of operation. With error feedback a worker adds to each push what its earlier ones left out.
A push that a shard has not taken (too stale, say) is trained again, or never; so its worker undoes
what the push did to the residual of that shard. When it does so depends on when the answer came,
and a worker that goes on after a stop takes up what its predecessor left. Both are facts that the
shards' traces do not hold: workers write them down here, before the push that follows from them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

LIFE_BITS = 32
"""A push's ``seq`` is its process's incarnation above so many bits."""


class Returned(NamedTuple):
    """Before push ``at``, the worker undid what push ``seq`` had done to these shards' residual."""

    worker: int
    at: int
    seq: int
    shards: tuple[int, ...]


class Inherited(NamedTuple):
    """The process began with the residual that an earlier one of the same slot left."""

    worker: int
    incarnation: int
    before: int


Residual: TypeAlias = Returned | Inherited

Life: TypeAlias = tuple[int, int]
"""One process in a worker's slot: the slot and the incarnation; a chain goes by its first one."""


def life_of(worker: int, seq: int) -> Life:
    """The process that made a push."""
    return worker, seq >> LIFE_BITS


class Chains:
    """Which processes went on with whose residual, and what was undone in each such chain.

    A run that is resumed, killed, and resumed from the same checkpoint again has two processes that
    went on with one residual. Nothing that the first of them did is left of the run.
    """

    def __init__(self, residuals: Iterable[Residual] = ()) -> None:
        self._before: dict[Life, Life] = {}
        self._returned: dict[Life, list[Returned]] = {}
        entries = list(residuals)
        for entry in entries:
            if isinstance(entry, Inherited):
                life = (entry.worker, entry.incarnation)
                self._before[life] = (entry.worker, entry.before)
        for entry in entries:
            if isinstance(entry, Returned):
                self._returned.setdefault(self.of(entry.worker, entry.seq), []).append(entry)

    def before(self, life: Life) -> Life | None:
        """The process whose residual this one went on with."""
        return self._before.get(life)

    def of(self, worker: int, seq: int) -> Life:
        """The chain that a worker's push belongs to."""
        life = life_of(worker, seq)
        while life in self._before:
            life = self._before[life]
        return life

    def returned(self, chain: Life) -> list[Returned]:
        """What was undone in a chain, in order."""
        return self._returned.get(chain, [])
