"""What a worker's machine must know of its run."""

from __future__ import annotations

from collections.abc import Callable

from tardygrad.consistency import ASP, SSP
from tardygrad.data.fragments import FragmentPlan
from tardygrad.turns import Turns


class WorkerSettings:
    """What a worker must know of the run.

    ``exchange_period`` gives the batches of an exchange that begins after so many samples.
    ``follows``: a rank of a group takes the servers' step itself. With ``turns`` shards are
    exchanged in turns (see ``protocol.striped``).
    """

    def __init__(
        self,
        *,
        lineage: int,
        shards: int,
        exchange_period: Callable[[int], int],
        plan: FragmentPlan,
        in_flight: int,
        consistency: ASP | SSP,
        awaits_commit: bool = False,
        follows: bool = False,
        turns: Turns | None = None,
        resend_s: float,
    ) -> None:
        self.lineage = lineage
        self.shards = tuple(range(shards))
        self.exchange_period = exchange_period
        self.plan = plan
        # A read must include the worker's own writes where clocks bound the staleness.
        together = consistency.uses_clocks or (awaits_commit and turns is None)
        self.in_flight = 0 if together else in_flight
        self.consistency = consistency
        self.awaits_commit = awaits_commit
        self.follows = follows
        self.turns = turns
        self.resend_s = resend_s

    @property
    def slots(self) -> int:
        """Updates that may be there at a time: those that are unanswered, and one to compute."""
        return max(self.in_flight, int(self.follows)) + 1
