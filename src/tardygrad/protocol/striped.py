"""The worker that exchanges its shards in turns, a stripe at a time (see ``tardygrad.turns``).

Theory of operation. A lease is trained in *segments*; a segment's end is one stripe's turn. What a
turn pushes is all that the stripe came since its own last push: every stripe has a position of its
own in the lease. A stripe that was pushed is *away* until it was pulled again, ``delay`` batches
later; meanwhile the worker trains on. Before it pulls, every push must be answered, and each shard
must have committed, as in ``protocol.worker``; and it pulls all that is away at once, as soon as it
can: parameters may travel while it trains.

A *step* is what one push asks for: batches, perhaps a pull on the way, then the push, all under one
``seq``. No push reaches across the end of a lease, nor across one of its cuts: there all stripes
are pushed, one after another, by steps without batches. So are they when the worker is to stop.
Since a stripe is never pushed while it is away, nothing is pushed twice.

Who waits for whom. Rounds end shard by shard, and a worker that waits for one stripe gives nothing
to the others. If two workers were out of step, each could wait for a round that lacks the other.
They keep step, as each finds its turn in the versions that it has read. And whoever waits for long
pushes all other stripes too, as far as they came, and trains on for ``delay`` batches. Let everyone
wait, all stripes being away, and let T be when a worker last had all of them back. Who waits for a
shard has read its newest commit, so its T is later than that; whom the shard lacks had pushed
before that commit, so its T is earlier. Nobody's T is earlier than its own: someone goes on.

A replay finds the pulls in the records: a step took in those shards of which it had read another
version than the step before it.
"""

from __future__ import annotations

from tardygrad.protocol import events as ev
from tardygrad.protocol.effects import Compute, Effect, Pull, Release
from tardygrad.protocol.states import WORKER as LIFE
from tardygrad.protocol.worker import COMPUTING, HOLDING, IDLE, PULLING, Worker
from tardygrad.protocol.worker_settings import WorkerSettings
from tardygrad.turns import Turns

__all__ = ["StripedWorker"]


class StripedWorker(Worker):
    """The state machine of a worker with ``turns``; change it through :meth:`handle` alone."""

    def __init__(self, worker: int, settings: WorkerSettings, *, incarnation: int = 0) -> None:
        super().__init__(worker, settings, incarnation=incarnation)
        assert settings.turns is not None
        self._turns: Turns = settings.turns
        # For each stripe the first batch of the lease that it has not pushed.
        self._since = [0] * self._turns.stripes
        self._away: dict[int, None] = {}
        # Stripes to be pushed as they are now, before anything else is trained.
        self._due: list[int] = []
        self._turn: int | None = None
        # Of the step at hand: its number is taken; its slot is; where its computation goes.
        self._begun = self._has_slot = False
        self._train_to = 0
        # What is away is being pulled; what that read, if it came while the worker still trained.
        self._pulling = False
        self._back: tuple[ev.Read, ...] | None = None

    # --- steps --------------------------------------------------------------------------------

    def _advance(self, now: float) -> list[Effect]:
        if self.phase != IDLE:
            return []
        if self.stopping and not self._due:
            self._due = self._unpushed()
        if self._due:
            return self._push_next(now)
        if self.stopping:
            dropped = self._drop_step()
            return dropped if self.outstanding else [*dropped, *self._leave()]
        if self.lease is None and not self._take_up():
            return self._ask_for_lease(now, prefetch=False)
        if len(self.outstanding) > self.settings.in_flight:
            return []
        self._begin()
        if not self._fresh:
            return self._segment(now)
        self._turn_to("pulls", now)
        return [self._pull_effect()]

    def _turn_to(self, cause: str, now: float) -> None:
        self.phase = LIFE.after(self.phase, cause)
        self._phase_since = now

    def _begin(self) -> None:
        self._seq += 1
        self._begun = True

    def _drop_step(self) -> list[Effect]:
        taken, self._has_slot, self._begun = self._has_slot, False, False
        return [Release(self._seq)] if taken else []

    def _take_up(self) -> bool:
        if not super()._take_up():
            return False
        self._since = [self._position] * self._turns.stripes
        self._turn = None
        if self._fresh:
            self._away.clear()
        return True

    def _between(self, batches: int) -> int:
        return self._turns.segment(batches)

    def _segment(self, now: float) -> list[Effect]:
        lease = self.lease
        assert lease is not None
        self._range_stop = stop = self._next_stop(lease)
        if self._away:
            stop = self._turns.returns_at(self._position, stop)
        if stop > self._position:
            return self._compute_to(stop, (), now)
        return self._await(now)

    def _compute_to(self, stop: int, arrived: tuple[int, ...], now: float) -> list[Effect]:
        lease = self.lease
        assert lease is not None
        self._turn_to("computes", now)
        self._computing, self._train_to, self._has_slot = lease, stop, True
        self._pulling, self._back = False, None
        return [Compute(self._seq, lease, self._position, stop, arrived)]

    def _trained(self, lease: ev.Lease, samples: int, now: float) -> list[Effect]:
        self.phase = LIFE.after(self.phase, "computed")
        self._position = self._train_to
        if not self._due:
            if self._away and self._position < self._range_stop and not self.stopping:
                return self._await(now) if self._back is None else self._take_in(self._back, now)
            self._due = self._unpushed()
            at_end = self._position == lease.stop or self._position in lease.cuts
            if not (at_end or self.stopping):
                del self._due[1:]
        return self._push_stripe(lease, now) if self._due else self._advance(now)

    # --- pushes -------------------------------------------------------------------------------

    def _unpushed(self) -> list[int]:
        """The stripes at hand of which something is not pushed, in the order of their turns."""
        stripes = self._turns.stripes
        if self.lease is None or all(since == self._position for since in self._since):
            return []
        turn = self._turn
        if turn is None:
            turn = self._turns.next_after([version for _, version in self._reads])
        order = [(turn + further) % stripes for further in range(stripes)]
        return [s for s in order if s not in self._away and self._since[s] < self._position]

    def _push_next(self, now: float) -> list[Effect]:
        if not self._begun:
            if len(self.outstanding) > self.settings.in_flight:
                return []
            self._begin()
        return self._compute_to(self._position, (), now)

    def _push_stripe(self, lease: ev.Lease, now: float) -> list[Effect]:
        stripe = self._due.pop(0)
        first, self._since[stripe] = self._since[stripe], self._position
        samples = self.settings.plan.samples_in(lease.fragment, first, self._position)
        push = self._make_push(lease, first, self._position, samples)
        self._away[stripe] = None
        self._turn = (stripe + 1) % self._turns.stripes
        self._begun = self._has_slot = False
        shards = self._turns.shards(stripe, of=len(self.settings.shards))
        effects = self._publish(push, shards, now)
        return effects + (self._advance(now) if self._due else self._go_on(lease, now))

    # --- pulls --------------------------------------------------------------------------------

    def _await(self, now: float) -> list[Effect]:
        if self._pulling:
            self._turn_to("pulls", now)
            return []
        self._turn_to("waits", now)
        return self._let_go(now)

    def _let_go(self, now: float) -> list[Effect]:
        if self.outstanding:
            return []
        self._turn_to("pulls", now)
        self._pulling = True
        return [self._pull_effect()]

    def _acked(self, event: ev.Acked, now: float) -> list[Effect]:
        effects = super()._acked(event, now)
        trains_on = self.phase == COMPUTING and self._computing is self.lease
        on_the_way = trains_on and self._train_to < self._range_stop and not self.stopping
        if on_the_way and self._away and not (self.outstanding or self._due or self._pulling):
            self._pulling = True
            effects.append(self._pull_effect())
        return effects

    def _pull_effect(self) -> Pull:
        shards = () if self._fresh else self._shards_away()
        return Pull(self._seq, self._needs(), self._fresh, shards)

    def _shards_away(self) -> tuple[int, ...]:
        return tuple(s for s in self.settings.shards if self._turns.stripe(s) in self._away)

    def _pulled(self, event: ev.Pulled, now: float) -> list[Effect]:
        if event.seq != self._seq:
            return []
        if self.phase == COMPUTING and self._pulling:
            self._back = event.reads
        if self.phase != PULLING:
            return []
        if self._fresh:
            self._fresh, self._reads = False, event.reads
            return self._segment(now)
        return self._take_in(event.reads, now)

    def _take_in(self, reads: tuple[ev.Read, ...], now: float) -> list[Effect]:
        before, self._reads = self._reads, reads
        arrived = tuple(s for s in self._shards_away() if reads[s] != before[s])
        self._away.clear()
        return self._compute_to(self._range_stop, arrived, now)

    # --- endings ------------------------------------------------------------------------------

    def _give_up(self, session: int) -> list[Effect]:
        effects: list[Effect] = []
        if self.phase in (HOLDING, PULLING):
            self.phase = LIFE.after(self.phase, "gives_up")
            effects = self._drop_step()
        self._begun = self._has_slot = self._pulling = False
        self._back = None
        self._due.clear()
        return effects + super()._give_up(session)

    def _stop(self, event: ev.StopAsked, now: float) -> list[Effect]:
        if self.phase == HOLDING:
            self.phase = LIFE.after(self.phase, "stops")
        return super()._stop(event, now)

    def _tick(self, event: ev.Tick, now: float) -> list[Effect]:
        effects: list[Effect] = []
        waits = self.phase == PULLING and not self._fresh
        if waits and now - self._phase_since >= self.settings.resend_s:
            self._due = self._unpushed()
            if self._due:
                self.phase = LIFE.after(self.phase, "trains_on")
                effects = self._advance(now)
        return effects + super()._tick(event, now)
