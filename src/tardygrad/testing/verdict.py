"""Whether what happened to a run had a cause: deaths, failures, and the time that it took.

Progress is as much a promise as safety. A run that always ends after waking a stuck worker by
killing it would pass a mere time limit; so every suspicion must be explained by a fault of the
plan, every failure by an exhausted budget, and after the last fault a run may take no longer than
one worker alone would need for all the work again.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re

from tardygrad.config import Fault
from tardygrad.engines.base import Job
from tardygrad.engines.inline_links import links_of
from tardygrad.errors import InvariantViolation
from tardygrad.protocol import effects as ef
from tardygrad.staleness import CutOff


@dataclasses.dataclass
class Stretch:
    """One stretch of a run, from its start to its end or interruption."""

    seconds: float = 0.0
    changes: list[tuple[float, ef.MemberChanged]] = dataclasses.field(default_factory=list)
    finished: ef.Finished | None = None
    finished_s: float = 0.0
    closed: bool = False
    """The run has ended in good order: nothing may be applied any more."""

    def see(self, now: float, effect: ef.Effect) -> None:
        """Take in an effect of the scheduler."""
        if type(effect) is ef.MemberChanged:
            self.changes.append((now, effect))
        elif type(effect) is ef.Finished:
            if self.finished is not None:
                raise InvariantViolation(f"the run ends twice: {self.finished}, {effect}")
            self.finished, self.finished_s = effect, now
            self.closed = not effect.reason.startswith("server ")

    def deaths(self, kind: str, number: int | None = None) -> int:
        """How often members of a kind (or one of them) died."""
        return sum(
            c.state == "died" and c.kind == kind and number in (None, c.id) for _, c in self.changes
        )


def judge(job: Job, stretch: Stretch) -> None:
    """Check one stretch of a run.

    Raises:
        InvariantViolation: something happened without a cause, or took too long.
    """
    for now, change in stretch.changes:
        if change.state == "suspected":
            _explain(job, now, change)
    if stretch.finished is None:
        return
    if stretch.finished.outcome == "failed":
        _explain_failure(job, stretch, stretch.finished.reason)
    allowed = last_fault_s(job) + allowance_s(job)
    if stretch.finished_s > allowed:
        raise InvariantViolation(
            f"the run took {stretch.finished_s:.2f} virtual seconds, {allowed:.2f} are enough"
        )


def _explain(job: Job, now: float, change: ef.MemberChanged) -> None:
    name = f"{change.kind}-{change.id}"
    faults = [f for f in job.config.simulation.faults if f.at_s <= now]
    names = [name, *_partners(job, change)]
    silencing = [
        f
        for f in faults
        if (f.kind in ("hang", "blackout") and f.target in names)
        or (f.kind in ("loss", "delay") and f.target in (None, *names))
    ]
    lossy = any(f.kind in ("loss", "delay") and f.rate >= 0.1 for f in faults)
    lossy = lossy or any(_holds_up(job, f, change) for f in faults)
    silent = change.reason.startswith(("no sign of life", "not ready")) and silencing
    slowed = _product([f for f in faults if f.kind == "slow" and f.target == name])
    deaf = any(f.kind == "blackout" and f.way != "both" for f in faults)
    stuck = change.reason.startswith("no progress") and (lossy or deaf or slowed > 10)
    stuck = stuck or (deaf and change.reason.startswith("no answer"))
    if not silent and not stuck:
        raise InvariantViolation(
            f"at {now:.3f} s {name} is suspected without cause: {change.reason}"
        )


def _holds_up(job: Job, fault: Fault, change: ef.MemberChanged) -> bool:
    """Whether one message that this fault delays is late enough, where it is not sent again."""
    allowed = re.search(r"allowed: ([0-9.]+)", change.reason)
    if fault.kind != "delay" or allowed is None or not sends_once(job):
        return False
    target = str(fault.target)
    meets = fault.target is None or target.startswith("server-")
    way = job.config.simulation.network_of(change.id).mean_s
    # Three means of an exponential way are not rare in 20,000 runs.
    return (meets or target == f"worker-{change.id}") and 3 * fault.factor * way > float(allowed[1])


def _partners(job: Job, change: ef.MemberChanged) -> list[str]:
    """Whose misfortunes are this member's as well: a backup becomes what its server was."""
    replicas = job.config.replicas
    if change.kind == "backup":
        return [f"server-{change.id // replicas}"]
    if change.kind == "server":
        return [f"backup-{change.id * replicas + i}" for i in range(replicas)]
    return []


def _explain_failure(job: Job, stretch: Stretch, reason: str) -> None:
    restarts = job.config.failure.restarts
    server, _, _ = reason.removeprefix("server ").partition(":")
    if reason.startswith("server "):
        enough = stretch.deaths("server", int(server)) > max(restarts, 1)
    elif reason.startswith("no worker is left"):
        aside = sum((c.kind, c.state) == ("worker", "put_aside") for _, c in stretch.changes)
        enough = stretch.deaths("worker") >= restarts + aside
    elif "died in a row" in reason:
        # Some may have left, but no fewer than one stays.
        enough = stretch.deaths("worker") > 1 + 2
    elif "no snapshot of" in reason:
        faults = job.config.simulation.faults
        enough = any(f.kind in ("loss", "delay") or _cuts_off_a_server(f) for f in faults)
    else:
        enough = reason.startswith("the last checkpoint could not be written")
    if not enough:
        deaths = {k: stretch.deaths(k) for k in ("worker", "server")}
        raise InvariantViolation(f"the run fails ({reason}) after these deaths: {deaths}")


def _cuts_off_a_server(fault: Fault) -> bool:
    return fault.kind == "blackout" and str(fault.target).startswith("server-")


def last_fault_s(job: Job) -> float:
    """When the last fault or change of the plan is over; what has no end counts when it begins."""
    sim = job.config.simulation
    ends = [f.at_s + (f.for_s or 0.0) for f in sim.faults] + [c.at_s for c in sim.changes]
    return max(ends, default=0.0)


def crew_max(job: Job) -> int:
    """As many workers as there can be at a time in the simulation."""
    return job.config.workers + sum(change.add for change in job.config.simulation.changes)


def allowance_s(job: Job) -> float:
    """Virtual seconds that suffice for a whole run by its slowest worker, alone."""
    config, sim, failure = job.config, job.config.simulation, job.config.failure
    slowest = max(sim.compute_of(w).mean_s for w in range(config.workers))
    slowest *= _product([f for f in sim.faults if f.kind == "slow" and _lasts(f)])
    batches = config.epochs * job.plan.batches_per_epoch
    way = max(sim.network_of(w).mean_s for w in range(config.workers))
    exchange = 6 * way + len(job.ranges) * sim.apply.mean_s
    exchange += _transfer_s(job)
    if any(f.kind in ("loss", "delay") for f in sim.faults):
        # A pull and a push, each answered by all shards, each way lost or late now and then.
        exchange += 2 * max(6, tries(job)) * job.resend_s
    if sends_once(job):
        exchange += 2 * len(job.ranges) * way * _lateness(job)
    policy = job.method.staleness
    times = 1
    if isinstance(policy, CutOff) and policy.again:
        times = crew_max(job) * len(job.ranges) + job.method.in_flight
    work = batches * times * (slowest * 2 + exchange)
    recovery = failure.lease_s + failure.backoff_max_s + failure.stop_s + 20 * job.resend_s
    return work + 4 * recovery


def tries(job: Job) -> float:
    """How often a worker asks, in the mean, until each shard's answer has come through.

    Half of what passes each way makes four tries; of two shards the later one is waited for.

    >>> from tardygrad.testing.simulation import null_job
    >>> lossy = {"faults": [{"kind": "loss", "rate": 0.5, "target": "worker-0"}]}
    >>> [round(tries(null_job(workers=1, servers=s, simulation=lossy)), 2) for s in (1, 2)]
    [4.0, 5.71]
    """
    faults = job.config.simulation.faults
    losses = [f for f in faults if f.kind == "loss" and _lasts(f) and f.rate < 1.0]
    shards = len(job.ranges)
    ways = itertools.product(range(crew_max(job)), range(shards))
    passes = min(
        math.prod(1.0 - f.rate for f in losses if f.target in (None, f"worker-{w}", f"server-{s}"))
        for w, s in ways
    )
    # The mean of the largest of some geometric numbers. What is asked must pass, and the answer.
    found, some_miss, missed = 0.0, 1.0, 1.0
    while some_miss > 1e-6:
        found += some_miss
        missed *= 1.0 - passes**2
        some_miss = 1.0 - (1.0 - missed) ** shards
    return found


def sends_once(job: Job) -> bool:
    """Whether there are links: what is late on one is not sent again as long as it travels."""
    sim = job.config.simulation
    return links_of(sim.bandwidth, crew_max(job), len(job.ranges)) is not None


def _lateness(job: Job) -> float:
    """The factor on the mean time of a message's way, for the delays of the plan."""
    delays = [f for f in job.config.simulation.faults if f.kind == "delay" and _lasts(f)]
    return math.prod(1.0 + f.rate * (f.factor - 1.0) for f in delays)


def _lasts(fault: Fault) -> bool:
    return fault.for_s is None or fault.every_s is not None


def _transfer_s(job: Job) -> float:
    """Virtual seconds of an exchange of every worker over the narrowest link there is."""
    bandwidth, workers = job.config.simulation.bandwidth, crew_max(job)
    shards = len(job.ranges)
    counts = {"worker": workers, "server": shards}
    limits = [
        limit
        for kind, count in counts.items()
        for way in ("up", "down")
        for limit in bandwidth.of(kind, way, count)
        if limit is not None
    ]
    size = sum(job.push_bytes(s) + job.pull_bytes(s) for s in range(shards))
    return workers * size / min(limits) if limits else 0.0


def _product(faults: list[Fault]) -> float:
    factor = 1.0
    for fault in faults:
        factor *= max(fault.factor, 1.0)
    return factor
