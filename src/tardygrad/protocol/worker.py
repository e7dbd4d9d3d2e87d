"""The worker: takes leases, pulls, computes, pushes, and knows what is still unanswered.

Theory of operation. A worker is *idle*, *pulling* or *computing*; beside that it holds at most two
leases (the one at hand and the next, asked for early so that it never waits for the scheduler) and
its *outstanding* pushes, each with the shards that have not answered. It starts the next exchange
when at most ``in_flight`` pushes are outstanding: 0 waits for every answer (a single worker then
has no staleness), 1 overlaps the push with the next computation.

Whatever goes wrong (a lease overtaken by a newer one, a server restored from an older snapshot)
shows as a refused push, or, where the staleness policy ends what comes too late, as a computation
that was ended early. The worker then abandons all its leases, waits until every outstanding
push is answered, and goes on with the next lease under a new *session*, pulling afresh. Unanswered
messages are sent again; every receiver recognises what it had before.

Where workers average their updates among themselves, a session belongs to a *group* for its whole
life: the worker is *joining* until all ranks are connected, and *reducing* between computation and
push. Where it can take the servers' step itself it does not read their result: it *follows*, and
the next push only waits (*holding*) until the one before is answered. Whatever breaks the group
ends the session.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tardygrad.balancing import exchange
from tardygrad.consistency import NO_NEED
from tardygrad.errors import InvariantViolation
from tardygrad.protocol import events as ev
from tardygrad.protocol.clocks import NOBODY
from tardygrad.protocol.effects import (
    Compute,
    Effect,
    Follow,
    JoinGroup,
    Leave,
    LeaveGroup,
    Publish,
    Pull,
    Reduce,
    Release,
    Send,
)
from tardygrad.protocol.residuals import LIFE_BITS
from tardygrad.protocol.states import WORKER as LIFE
from tardygrad.protocol.worker_settings import WorkerSettings

IDLE = "idle"
PULLING = "pulling"
COMPUTING = "computing"
JOINING = "joining"
REDUCING = "reducing"
HOLDING = "holding"
GONE = "gone"

_NO_SESSION = 0
_JOIN_PATIENCE = 3
"""A group that has not come together after so many ``resend_s`` never will."""


class _Outstanding:
    __slots__ = ("again", "lost", "push", "sent", "waiting")

    def __init__(self, push: ev.Push, shards: tuple[int, ...], now: float) -> None:
        self.push = push
        self.waiting = set(shards)
        self.sent = now
        # Shards that have been sent it again, and those that have not taken it.
        self.again: set[int] = set()
        self.lost: set[int] = set()


class Worker:
    """The state machine of one worker's life; change it through :meth:`handle` alone."""

    def __init__(self, worker: int, settings: WorkerSettings, *, incarnation: int = 0) -> None:
        self.worker = worker
        self.incarnation = incarnation
        self.settings = settings
        self.phase = LIFE.start
        self.clock = 0
        self.session = _NO_SESSION
        self.lease: ev.Lease | None = None
        self.upcoming: ev.Lease | None = None
        self.outstanding: dict[int, _Outstanding] = {}
        self.stopping = ""
        self.group = self._next_group = ev.ALONE
        self._connected = True
        self._brought = 0
        # The replica is what the servers will come to with the push that is outstanding.
        self._ahead = False
        self._abandoned = ""
        self._given_up = _NO_SESSION
        self._fresh = True
        self._position = 0
        self._range_stop = 0
        self._computing: ev.Lease | None = None
        # Answers to an earlier life's pushes, pulls and asks must not be taken for this one's.
        self._seq = self._ask = incarnation << LIFE_BITS
        self._phase_since = 0.0
        self._reads: tuple[ev.Read, ...] = ()
        # For each shard the version that its last update will be a part of, if it is gathered.
        self._awaited = [NO_NEED] * len(settings.shards)
        # For each shard the version that an update of this session led to, gathered or not.
        self._reached = [0] * len(settings.shards)
        self._received = 0
        # What this process has computed and how long that took, the first range left out.
        self._warm = False
        self._samples, self._seconds = 0, 0.0
        self._asked: ev.LeaseAsked | None = None
        self._asked_at = 0.0
        self._handlers: dict[type, Callable[[Any, float], list[Effect]]] = {
            ev.Computed: self._computed,
            ev.Overtaken: self._overtaken,
            ev.Acked: self._acked,
            ev.Pulled: self._pulled,
            ev.Granted: self._granted,
            ev.Tick: self._tick,
            ev.Started: self._started,
            ev.StopAsked: self._stop,
            ev.SessionEnded: self._session_ended,
            ev.Joined: self._joined,
            ev.Reduced: self._reduced,
        }

    def handle(self, event: ev.Event, now: float) -> list[Effect]:
        """One event in, what is to be done out."""
        if self.phase == GONE:
            return []
        handler = self._handlers.get(type(event))
        if handler is None:
            raise InvariantViolation(f"worker {self.worker} got {event!r}, which no worker handles")
        return handler(event, now)

    # --- the cycle: lease, pull, compute, push ------------------------------------------------

    def _started(self, event: ev.Started, now: float) -> list[Effect]:
        ready = Send(ev.SCHEDULER, ev.WorkerReady(self.worker, self.incarnation))
        return [ready, *self._advance(now)]

    def _advance(self, now: float) -> list[Effect]:
        if self.phase != IDLE:
            return []
        if self.stopping:
            return [] if self.outstanding else self._leave()
        if self.lease is None and not self._take_up():
            return self._ask_for_lease(now, prefetch=False)
        if self._ahead:
            self._seq += 1
            return self._compute(now)
        if len(self.outstanding) > self.settings.in_flight:
            return []
        if not self._connected:
            self.phase = LIFE.after(self.phase, "joins")
            self._phase_since = now
            return [JoinGroup(self.group)]
        self._seq += 1
        self.phase = LIFE.after(self.phase, "pulls")
        self._phase_since = now
        return [self._pull_effect()]

    def _pull_effect(self) -> Pull:
        return Pull(self._seq, self._needs(), self._fresh)

    def _needs(self) -> tuple[int, ...]:
        if self.settings.awaits_commit:
            return () if self._fresh else tuple(self._awaited)
        need = self.settings.consistency.need(self.clock)
        return () if need == NO_NEED else (need,) * len(self.settings.shards)

    @property
    def reached_clock(self) -> int:
        """How far the servers know it to be, where others wait for that; else 0."""
        if self.settings.consistency.uses_clocks:
            return min((sent.push.clock for sent in self.outstanding.values()), default=self.clock)
        return sum(self._reached) if self.settings.awaits_commit else 0

    def _take_up(self) -> bool:
        lease = self.upcoming
        if lease is None:
            return False
        if lease.session != self.session:
            if self.outstanding:
                # The slots of the old session are still being read.
                return False
            self.session = lease.session
            self._reached = [0] * len(self.settings.shards)
            self._fresh = True
            self.group = self._next_group
            self._connected = self.group.size == 1
            # The clock by which the servers know this session.
            self.clock = lease.clock
        self.lease, self.upcoming = lease, None
        self._position = lease.first
        return True

    def _leave(self) -> list[Effect]:
        self.phase = LIFE.after(self.phase, "leaves")
        left = ev.WorkerLeft(self.worker, self.incarnation)
        return [*self._leave_group(), Send(ev.SCHEDULER, left), Leave(self.stopping)]

    def _pulled(self, event: ev.Pulled, now: float) -> list[Effect]:
        if self.phase != PULLING or event.seq != self._seq:
            return []
        if self.settings.consistency.uses_clocks and self.clock < event.clock < NOBODY:
            self.clock = event.clock
        self._reads = event.reads
        self._fresh = False
        return self._compute(now)

    def _compute(self, now: float) -> list[Effect]:
        lease = self.lease
        assert lease is not None
        self.phase = LIFE.after(self.phase, "computes")
        self._phase_since = now
        self._computing = lease
        self._range_stop = self._next_stop(lease)
        return [Compute(self._seq, lease, self._position, self._range_stop)]

    def _next_stop(self, lease: ev.Lease) -> int:
        consumed = self.settings.plan.position(lease.epoch, lease.fragment, self._position)
        batches = exchange(self.settings.exchange_period(consumed), lease.share)
        stop = min(self._position + self._between(batches), lease.stop)
        for cut in lease.cuts:
            if self._position < cut < stop:
                return cut
        return stop

    def _between(self, batches: int) -> int:
        """Batches between two pushes, for an exchange of so many."""
        return batches

    def _computed(self, event: ev.Computed, now: float) -> list[Effect]:
        if self.phase != COMPUTING or event.seq != self._seq:
            return []
        if self._warm:
            self._samples += event.samples
            self._seconds += now - self._phase_since
        self._warm = True
        lease, self._computing = self._computing, None
        if lease is None or lease is not self.lease:
            # Abandoned while it was computed: nobody would accept it.
            self.phase = LIFE.after(self.phase, "computed")
            return [Release(event.seq), *self._advance(now)]
        return self._trained(lease, event.samples, now)

    def _trained(self, lease: ev.Lease, samples: int, now: float) -> list[Effect]:
        if self.group.size > 1:
            self.phase, self._brought = LIFE.after(self.phase, "reduces"), samples
            return [Reduce(self._seq, self.group, samples)]
        self.phase = LIFE.after(self.phase, "computed")
        return self._push(self._seq, samples, lease, now)

    def _push(self, seq: int, samples: int, lease: ev.Lease, now: float) -> list[Effect]:
        push = self._make_push(lease, self._position, self._range_stop, samples)
        self._position = self._range_stop
        effects = self._publish(push, self.settings.shards, now)
        self._ahead = self.group.size > 1 and self.settings.follows
        if self._ahead:
            self._reads = tuple((incarnation, version + 1) for incarnation, version in self._reads)
            effects.append(Follow(seq))
        return [*effects, *self._go_on(lease, now)]

    def _make_push(self, lease: ev.Lease, first: int, stop: int, samples: int) -> ev.Push:
        return ev.Push(
            self.settings.lineage,
            self.worker,
            self.session,
            self._seq,
            lease.fence,
            lease.epoch,
            lease.fragment,
            first,
            stop,
            samples,
            self.clock,
            self._reads,
            self.group.generation,
            self.group.size,
        )

    def _publish(self, push: ev.Push, shards: tuple[int, ...], now: float) -> list[Effect]:
        self.outstanding[push.seq] = _Outstanding(push, shards, now)
        self.clock += 1
        return [Publish(push, shards)]

    def _go_on(self, lease: ev.Lease, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if self._position == lease.stop:
            self.lease = None
        elif 2 * self._position >= lease.first + lease.stop:
            effects = self._ask_for_lease(now, prefetch=True)
        return effects + self._advance(now)

    def _overtaken(self, event: ev.Overtaken, now: float) -> list[Effect]:
        if self.phase != COMPUTING or event.seq != self._seq:
            return []
        self.phase = LIFE.after(self.phase, "overtaken")
        lease, self._computing = self._computing, None
        effects: list[Effect] = [Release(event.seq)]
        if lease is self.lease:
            # What was begun has changed a state that nobody could compute again; and another
            # worker may be fast enough for these batches.
            effects += self._abandon(self.session, f"stopped: {event.reason}", now)
        return effects + self._advance(now)

    # --- groups -------------------------------------------------------------------------------

    def _joined(self, event: ev.Joined, now: float) -> list[Effect]:
        if self.phase != JOINING or event.generation != self.group.generation:
            return []
        if event.error:
            return self._break_up(f"its group did not come together: {event.error}", now)
        self.phase = LIFE.after(self.phase, "joined")
        self._connected = True
        return self._advance(now)

    def _reduced(self, event: ev.Reduced, now: float) -> list[Effect]:
        if self.phase != REDUCING or event.seq != self._seq:
            return []
        if event.error:
            return self._break_up(f"its group broke: {event.error}", now)
        self.phase = LIFE.after(self.phase, "reduced")
        return self._let_go(now)

    def _let_go(self, now: float) -> list[Effect]:
        if self.outstanding:
            return []
        self.phase = LIFE.after(self.phase, "pushes")
        assert self.lease is not None
        return self._push(self._seq, self._brought, self.lease, now)

    def _session_ended(self, event: ev.SessionEnded, now: float) -> list[Effect]:
        if event.session <= self.session:
            return []
        return self._break_up("the scheduler has ended the session", now)

    def _break_up(self, reason: str, now: float) -> list[Effect]:
        return [*self._abandon(self.session, reason, now), *self._advance(now)]

    def _leave_group(self) -> list[Effect]:
        group, self.group, self._connected = self.group, ev.ALONE, True
        self._ahead = False
        return [LeaveGroup(group.generation)] if group.size > 1 else []

    # --- answers ------------------------------------------------------------------------------

    def _acked(self, event: ev.Acked, now: float) -> list[Effect]:
        entry = self.outstanding.get(event.seq)
        if entry is None or event.shard not in entry.waiting:
            return []
        if event.session != entry.push.session:
            return []
        if event.outcome == ev.GAP:
            return self._gap(event, entry, now)
        effects: list[Effect] = []
        if event.outcome in (ev.REFUSED, ev.AGAIN):
            reason = f"{event.outcome}: {event.reason}"
            effects = self._abandon(entry.push.session, reason, now)
        return effects + self._answered(event, entry, now)

    def _answered(self, event: ev.Acked, entry: _Outstanding, now: float) -> list[Effect]:
        entry.waiting.discard(event.shard)
        gathered = event.outcome == ev.APPLIED
        # A duplicate of what was sent again is most likely the first one's.
        own = event.outcome == ev.DUPLICATE and event.shard in entry.again
        if not gathered and not own:
            entry.lost.add(event.shard)
        version = entry.push.reads[event.shard][1]
        self._awaited[event.shard] = version + 1 if gathered else NO_NEED
        if self.settings.awaits_commit:
            self._reached[event.shard] = max(self._reached[event.shard], version + 1)
        if entry.waiting:
            return []
        del self.outstanding[event.seq]
        next_ = self._let_go(now) if self.phase == HOLDING else self._advance(now)
        return [Release(event.seq, tuple(sorted(entry.lost))), *next_]

    def _gap(self, event: ev.Acked, entry: _Outstanding, now: float) -> list[Effect]:
        earlier = [
            o
            for o in self.outstanding.values()
            if event.shard in o.waiting
            and o.push.fence == entry.push.fence
            and o.push.seq <= event.seq
        ]
        if min(o.push.first for o in earlier) > event.next:
            # The server stands before anything that is still in these hands.
            reason = f"shard {event.shard} went back"
            effects = self._abandon(entry.push.session, reason, now)
            return effects + self._answered(event, entry, now)
        for o in earlier:
            o.sent = now
            o.again.add(event.shard)
        return [Publish(o.push, (event.shard,)) for o in earlier]

    def _abandon(self, session: int, reason: str, now: float) -> list[Effect]:
        if session <= self._given_up:
            return []
        effects = self._give_up(session)
        if self.upcoming is not None:
            return effects
        self._abandoned = reason
        self._asked = None
        return effects + self._ask_for_lease(now, prefetch=False)

    def _give_up(self, session: int) -> list[Effect]:
        self._given_up = session
        self.lease = None
        if self.upcoming is not None and self.upcoming.session <= session:
            self.upcoming = None
        reduced = self.phase in (REDUCING, HOLDING)
        if reduced or self.phase in (PULLING, JOINING):
            self.phase = LIFE.after(self.phase, "gives_up")
        return [*self._leave_group(), *([Release(self._seq)] if reduced else [])]

    # --- the scheduler ------------------------------------------------------------------------

    def _ask_for_lease(self, now: float, *, prefetch: bool) -> list[Effect]:
        if self.stopping or self.upcoming is not None:
            return []
        if self._asked is not None and (prefetch or not self._asked.prefetch):
            return []
        self._ask += 1
        self._asked = ev.LeaseAsked(
            self.worker,
            self.incarnation,
            self.session,
            self._ask,
            self._received,
            prefetch,
            bool(self._abandoned),
            self._abandoned,
            self.clock,
            self._samples,
            self._seconds,
        )
        self._asked_at = now
        return [Send(ev.SCHEDULER, self._asked)]

    def _granted(self, event: ev.Granted, now: float) -> list[Effect]:
        if self._asked is None or event.ask != self._ask:
            return []
        self._asked = None
        self._abandoned = ""
        self._received = event.lease.fence
        self.upcoming, self._next_group = event.lease, event.group
        effects: list[Effect] = []
        if event.lease.session > self.session > self._given_up:
            # A new session: the scheduler has ended all leases of the one at hand.
            effects = self._give_up(self.session)
        return effects + self._advance(now)

    def _stop(self, event: ev.StopAsked, now: float) -> list[Effect]:
        self.stopping = event.reason or "asked to stop"
        if self.phase in (PULLING, JOINING):
            # What it waits for is of no use any more, and may never come.
            self.phase = LIFE.after(self.phase, "stops")
        return self._advance(now)

    def _tick(self, event: ev.Tick, now: float) -> list[Effect]:
        effects: list[Effect] = []
        patience = self.settings.resend_s
        if self._asked is not None and now - self._asked_at >= patience:
            self._asked_at = now
            effects.append(Send(ev.SCHEDULER, self._asked))
        for entry in self.outstanding.values():
            if now - entry.sent >= patience:
                entry.sent = now
                entry.again |= entry.waiting
                effects.append(Publish(entry.push, tuple(sorted(entry.waiting))))
        if self.phase == PULLING and now - self._phase_since >= patience:
            self._phase_since = now
            effects.append(self._pull_effect())
        if self.phase == JOINING and now - self._phase_since >= _JOIN_PATIENCE * patience:
            effects += self._break_up("its group did not come together", now)
        return effects
