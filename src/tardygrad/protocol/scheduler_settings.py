"""What the scheduler is told of a run before it begins."""

from __future__ import annotations

from dataclasses import dataclass, field

from tardygrad.balancing import Balance, Fixed
from tardygrad.data.fragments import FragmentPlan
from tardygrad.protocol.silence import SilenceLimits


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulerSettings:
    """What the scheduler must know of the run; times in seconds.

    ``workers`` there are at first, ``workers_max`` there can be. With ``counts_crew`` servers
    are told the live number.

    A resumed run (``generation`` above 0) numbers everything above whatever its predecessors can
    have used.
    """

    plan: FragmentPlan
    epochs: int
    workers: int
    workers_max: int
    shards: int
    lease_s: float
    silence: SilenceLimits
    start_s: float
    stop_s: float
    resend_s: float
    restarts: int
    put_aside_after: int
    backoff_s: float
    backoff_max_s: float
    checkpoint_every_s: float
    uses_clocks: bool
    balance: Balance = field(default_factory=Fixed)
    uses_groups: bool = False
    uses_peers: bool = False
    counts_crew: bool = False
    open_epochs: int = 2
    replicas: int = 0
    generation: int = 0
    first_step: int = 1
    epochs_reported: int = 0

    @property
    def tells_members(self) -> bool:
        """Whether servers must know who is a member."""
        return self.uses_clocks or self.uses_peers
