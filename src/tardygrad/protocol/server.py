"""The server: owns one shard, decides about each push, and never touches a tensor.

Theory of operation. Each push meets four questions, in this order:

1. *Lineage and fence.* Another run's push, one under a fence below the floor or below its
   fragment's fence, and one that read another incarnation of this shard, is refused.
2. *Ledger.* A range that is booked already is acknowledged and not applied; one that is ahead of
   its turn is a gap (something was lost: send it again, in order); one that lies across the border
   is refused, so that its samples are leased again with the border as a cut.
3. *Staleness.* Version at application minus version read; the policy scales, drops, or asks for
   the batches to be computed again.
4. Otherwise it is applied: the version grows by one and the ledger books it in the same event. Or,
   where the admission rule has rounds, it is booked and gathered; the commit that ends its round
   makes the next version.

What a group of workers has averaged comes as one push from each (``Parts``). It waits until all
are there, and then each meets the same questions; all are booked, and their mean is gathered, or
all are refused.

Reports to the scheduler (a fragment is whole) are repeated until they are seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tardygrad.admission import AtOnce
from tardygrad.consistency import ASP, SSP
from tardygrad.data.fragments import FragmentPlan
from tardygrad.errors import InvariantViolation
from tardygrad.protocol import events as ev
from tardygrad.protocol import trace
from tardygrad.protocol.clocks import NOBODY, ClockTable
from tardygrad.protocol.effects import (
    Apply,
    Commit,
    Effect,
    Gather,
    Include,
    Log,
    PublishClock,
    SaveSnapshot,
    Send,
    SendParameters,
)
from tardygrad.protocol.ledger import AHEAD, KNOWN, NEW, Ledger
from tardygrad.protocol.parts import Parts
from tardygrad.protocol.rounds import Round, Rule
from tardygrad.staleness import StalenessPolicy

WORKER = "worker"
_LEFT = "a rank has left"


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What a server must know of the run.

    ``workers`` there are at first. With ``linear_rate`` the learning rate follows their number.
    ``weigh`` says what an update counts: in the mean of its round (its samples, if None), or, at
    once, as a factor on the learning rate (1, if None). ``uses_peers``: divided by the members.
    """

    lineage: int
    plan: FragmentPlan
    workers: int
    staleness: StalenessPolicy
    consistency: ASP | SSP
    admission: Rule = field(default_factory=AtOnce)
    rule: str = ""
    round_of: str = ""
    weigh: Callable[[ev.Push], float] | None = None
    uses_peers: bool = False
    linear_rate: bool = False
    resend_s: float


class Server:
    """The state machine of one shard's owner; change it through :meth:`handle` alone."""

    def __init__(
        self,
        shard: int,
        settings: ServerSettings,
        *,
        incarnation: int = 0,
        floor: int = 0,
        restored_step: int = 0,
        snapshot: dict[str, Any] | None = None,
    ) -> None:
        self.shard = shard
        self.incarnation = incarnation
        self.lives: tuple[int, ...] = (incarnation,)
        self.settings = settings
        self.floor = floor
        self.version = 0
        self.ledger = Ledger(settings.plan)
        self.restored_step = restored_step
        if snapshot is not None:
            self.version = int(snapshot["version"])
            self.ledger = Ledger.from_state(settings.plan, snapshot["ledger"])
        self._gathers = settings.admission.gathers
        self.round = Round(settings.admission)
        if snapshot is not None and self._gathers and "round" in snapshot:
            self.round = Round.from_state(settings.admission, snapshot["round"])
        self._parts = Parts()
        self._clocks = ClockTable()
        # How many workers there are, by the newest word of the scheduler's.
        self._crew, self._crew_generation = settings.workers, 0
        self._published = 0
        self._waiting: list[ev.PullAsked] = []
        self._unseen: dict[int, tuple[float, ev.Booked]] = {}
        # An answer to what an earlier life reported must not be taken for one to this life's.
        self._booked_number = incarnation << 32
        self._seen = False
        self._snapshot_step = restored_step
        self._snapshot_answer: ev.Event | None = None
        self._keeps_clocks = settings.consistency.uses_clocks
        self._has_members = self._keeps_clocks or settings.admission.waits
        self._handlers: dict[type, Callable[[Any, float], list[Effect]]] = {
            ev.Push: self._push,
            ev.PullAsked: self._pull,
            ev.Started: self._started,
            ev.Tick: self._tick,
            ev.FenceAsked: self._fence,
            ev.BookedSeen: self._booked_seen,
            ev.ServerSeen: self._server_seen,
            ev.MembersChanged: self._members_changed,
            ev.CrewCounted: self._crew_counted,
            ev.SnapshotAsked: self._snapshot,
            ev.SnapshotWritten: self._snapshot_written,
        }

    def handle(self, event: ev.Event, now: float) -> list[Effect]:
        """One event in, what is to be done out."""
        handler = self._handlers.get(type(event))
        if handler is None:
            raise InvariantViolation(f"server {self.shard} got {event!r}, which no server handles")
        return handler(event, now)

    # --- pushes -------------------------------------------------------------------------------

    def _push(self, push: ev.Push, now: float) -> list[Effect]:
        return self._decide(push, now) if push.ranks == 1 else self._part(push, now)

    def _decide(self, push: ev.Push, now: float) -> list[Effect]:
        refusal = self._refusal(push)
        if refusal:
            return self._answer(push, ev.REFUSED, refusal, trace.REFUSED)
        place = self.ledger.place(push.epoch, push.fragment, push.first, push.stop)
        if place == NEW:
            return self._new(push, now)
        if place == KNOWN:
            return self._known(push, now)
        if place == AHEAD:
            # On record, because a worker's later steps may depend on this one, even if it is lost.
            reason = "earlier batches have not arrived"
            return self._answer(push, ev.GAP, reason, trace.REFUSED)
        return self._answer(push, ev.REFUSED, "part of the range is booked", trace.REFUSED)

    def _known(self, push: ev.Push, now: float) -> list[Effect]:
        member = (push.worker, push.session)
        gathered = self.round.knows(member, push.seq)
        if gathered:
            # It comes again: its worker waits for the commit, as it would have without the loss.
            return self._answer(push, ev.APPLIED, "", trace.DUPLICATE)
        effects = self._answer(push, ev.DUPLICATE, "booked before", trace.DUPLICATE)
        if gathered is None:
            self.round.passes(member, push.seq)
        return effects + self._end_round(now) + self._tell_clock(push)

    def _refusal(self, push: ev.Push) -> str:
        if push.lineage != self.settings.lineage:
            return "another run's update"
        if push.fence < self.floor:
            return f"fence {push.fence} is below the floor {self.floor}"
        if push.fence < self.ledger.fence(push.epoch, push.fragment):
            return f"fence {push.fence} was overtaken by a newer lease"
        incarnation, version = push.reads[self.shard]
        if incarnation not in self.lives or version > self.version:
            return f"it read incarnation {incarnation}, this is {self.incarnation}"
        return ""

    def _new(self, push: ev.Push, now: float) -> list[Effect]:
        staleness = self.version - push.reads[self.shard][1]
        verdict = self.settings.staleness.judge(staleness, self._crew)
        if not verdict.accepted and verdict.again:
            return self._answer(push, ev.AGAIN, verdict.reason, trace.REFUSED)
        consumed = self.ledger.consumed
        whole = self.ledger.book(
            push.epoch,
            push.fragment,
            push.stop,
            push.samples,
            push.fence,
            applied=verdict.accepted,
        )
        effects: list[Effect] = []
        if not verdict.accepted:
            effects.append(Log(self._record(push, trace.DROPPED, staleness, 0.0)))
            effects.append(self._ack(push, ev.DROPPED, verdict.reason))
            self.round.passes((push.worker, push.session), push.seq)
        elif self._gathers:
            member = (push.worker, push.session)
            weigh = self.settings.weigh
            weight = push.samples if weigh is None else weigh(push)
            self.round.take(member, push.seq, weight, verdict.scale, consumed)
            record = self._record(push, trace.GATHERED, staleness, verdict.scale)
            effects.append(Gather(push, verdict.scale * weight, record))
            effects.append(self._ack(push, ev.APPLIED, ""))
        else:
            self.version += 1
            weigh = self.settings.weigh
            scale = self._rate * (1.0 if weigh is None else weigh(push)) * verdict.scale
            if self.settings.uses_peers:
                scale /= self._clocks.count
            record = self._record(push, trace.APPLIED, staleness, scale)
            effects.append(Apply(push, scale, consumed, record))
            effects.append(self._ack(push, ev.APPLIED, ""))
        if self._gathers:
            epoch_over = whole and self.ledger.is_complete(push.epoch)
            effects += self._end_round(now, epoch_over=epoch_over)
        effects += self._tell_clock(push)
        if whole:
            effects.append(self._report(push.epoch, push.fragment, now))
        return effects

    # --- sums ---------------------------------------------------------------------------------

    def _part(self, push: ev.Push, now: float) -> list[Effect]:
        if self._parts.is_broken(push.generation):
            return self._answer(push, ev.REFUSED, "its group broke", trace.REFUSED)
        if push.lineage != self.settings.lineage:
            return []
        if self.round.knows((push.worker, push.session), push.seq):
            return self._decide(push, now)
        unfit = self._unfit(push)
        if unfit:
            effects = self._decide(push, now) if unfit != _LEFT else self._refuse(push, unfit)
            return effects + self._break_up(push.generation, unfit, now)
        older = self._parts.generation
        effects = []
        if older not in (0, push.generation):
            effects = self._break_up(min(older, push.generation), "another group came", now)
            if older > push.generation:
                return [*effects, *self._refuse(push, "another group came")]
        parts = self._parts.add(push)
        if not parts:
            return effects
        unfit = next(filter(None, map(self._unfit, parts)), "")
        if self.round.gathered:
            # Its ranks may have taken the step already, and of this sum alone.
            unfit = "another update is in the round"
        if unfit:
            broken = self._parts.break_up(push.generation)
            return effects + [e for p in (*parts, *broken) for e in self._refuse(p, unfit)]
        return effects + self._book_sum(parts, push, now)

    def _unfit(self, push: ev.Push) -> str:
        """Why a part cannot be booked and gathered now, or an empty string."""
        refusal = self._refusal(push)
        if refusal:
            return refusal
        if self.ledger.place(push.epoch, push.fragment, push.first, push.stop) != NEW:
            return "some batches are booked, or not in turn"
        staleness = self.version - push.reads[self.shard][1]
        if not self.settings.staleness.judge(staleness, self._crew).accepted:
            return "it is stale"
        return "" if self._clocks.is_member(push.worker, push.session) else _LEFT

    def _refuse(self, push: ev.Push, reason: str) -> list[Effect]:
        return self._answer(push, ev.REFUSED, reason, trace.REFUSED)

    def _break_up(self, generation: int, why: str, now: float) -> list[Effect]:
        waiting = self._parts.break_up(generation)
        return [effect for push in waiting for effect in self._refuse(push, f"group: {why}")]

    def _book_sum(self, parts: list[ev.Push], last: ev.Push, now: float) -> list[Effect]:
        """Book all parts and gather their mean, which ``last`` brought as well as the others."""
        effects: list[Effect] = []
        weight, epoch_over = 0.0, False
        weigh = self.settings.weigh
        reports: list[Effect] = []
        # The last one's bytes are at hand.
        for push in [*(p for p in parts if p is not last), last]:
            staleness = self.version - push.reads[self.shard][1]
            scale = self.settings.staleness.judge(staleness, self._crew).scale
            consumed = self.ledger.consumed
            whole = self.ledger.book(
                push.epoch, push.fragment, push.stop, push.samples, push.fence, applied=True
            )
            own = push.samples if weigh is None else weigh(push)
            self.round.take((push.worker, push.session), push.seq, own, scale, consumed)
            weight += scale * own
            if push is last:
                record = self._record(push, trace.GATHERED, staleness, scale)
                effects.append(Gather(push, weight, record))
            else:
                record = self._record(push, trace.INCLUDED, staleness, scale)
                effects.append(Include(push, record))
            effects.append(self._ack(push, ev.APPLIED, ""))
            if whole:
                epoch_over = epoch_over or self.ledger.is_complete(push.epoch)
                reports.append(self._report(push.epoch, push.fragment, now))
        return effects + self._end_round(now, epoch_over=epoch_over) + reports

    # --- rounds -------------------------------------------------------------------------------

    def _end_round(self, now: float, *, epoch_over: bool = False) -> list[Effect]:
        if not self.round.over(self._clocks.members, now, epoch_over=epoch_over):
            return []
        return [*self._commit(), *self._publish_clock()]

    def _commit(self) -> list[Effect]:
        self.version += 1
        closed = self.round.close()
        record = trace.Record(
            trace.COMMITTED,
            self.incarnation,
            self.version,
            seq=closed.gathered,
            scale=self._rate * closed.scale,
        )
        return [Commit(closed.consumed, record)]

    def _record(self, push: ev.Push, kind: int, staleness: int, scale: float) -> trace.Record:
        return trace.Record(
            kind,
            self.incarnation,
            self.version,
            *push[1:11],  # worker to clock
            staleness,
            scale,
            push.reads,
        )

    def _answer(self, push: ev.Push, outcome: str, reason: str, kind: int) -> list[Effect]:
        if push.lineage != self.settings.lineage:
            return []
        record = self._record(push, kind, 0, 0.0)
        return [Log(record), self._ack(push, outcome, reason)]

    def _ack(self, push: ev.Push, outcome: str, reason: str) -> Send:
        standing = self.ledger.next(push.epoch, push.fragment)
        return Send(
            (WORKER, push.worker),
            ev.Acked(self.shard, push.session, push.seq, outcome, standing, reason),
        )

    # --- clocks and pulls ---------------------------------------------------------------------

    def _tell_clock(self, push: ev.Push) -> list[Effect]:
        if not self._keeps_clocks:
            return []
        self._clocks.pushed(push.worker, push.session, push.clock + 1)
        return self._publish_clock()

    def _publish_clock(self) -> list[Effect]:
        if not self._has_members:
            return []
        clock = self._clocks.published
        if not self._keeps_clocks and clock != NOBODY:
            # Where workers wait for commits, the shard's clock counts those.
            clock = self.version
        if clock == self._published:
            return []
        self._published = clock
        ready = [p for p in self._waiting if p.need <= clock]
        self._waiting = [p for p in self._waiting if p.need > clock]
        return [PublishClock(clock), *map(self._parameters, ready)]

    def _parameters(self, pull: ev.PullAsked) -> SendParameters:
        read = (self.incarnation, self.version)
        return SendParameters(pull.worker, pull.seq, read, self._published)

    def _pull(self, pull: ev.PullAsked, now: float) -> list[Effect]:
        if pull.need <= self._published:
            return [self._parameters(pull)]
        self._waiting = [p for p in self._waiting if p.worker != pull.worker]
        self._waiting.append(pull)
        return []

    def _members_changed(self, event: ev.MembersChanged, now: float) -> list[Effect]:
        self._clocks.change(event)
        broken: list[Effect] = []
        if not all(self._clocks.is_member(*member) for member in self._parts.members):
            broken = self._break_up(self._parts.generation, _LEFT, now)
        seen = Send(ev.SCHEDULER, ev.MembersSeen(self.shard, event.generation))
        return [seen, *broken, *self._end_round(now), *self._publish_clock()]

    def _crew_counted(self, event: ev.CrewCounted, now: float) -> list[Effect]:
        if event.generation > self._crew_generation:
            self._crew, self._crew_generation = event.workers, event.generation
        return [Send(ev.SCHEDULER, ev.CrewSeen(self.shard, event.generation))]

    @property
    def _rate(self) -> float:
        """The factor on the learning rate that follows the number of workers."""
        return self._crew / self.settings.workers if self.settings.linear_rate else 1.0

    # --- the scheduler's wishes ---------------------------------------------------------------

    def _started(self, event: ev.Started, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if self.incarnation > 0:
            record = trace.Record(
                trace.RESTORED, self.incarnation, self.version, seq=self.restored_step
            )
            effects.append(Log(record))
        return [*effects, *self._publish_clock(), self._ready()]

    def _server_seen(self, event: ev.ServerSeen, now: float) -> list[Effect]:
        self._seen = self._seen or event.incarnation == self.incarnation
        return []

    def _ready(self) -> Send:
        return Send(
            ev.SCHEDULER,
            ev.ServerReady(
                self.shard,
                self.incarnation,
                self.version,
                self.ledger.complete(),
                self.ledger.nexts(),
            ),
        )

    def _fence(self, event: ev.FenceAsked, now: float) -> list[Effect]:
        self.ledger.raise_fence(event.epoch, event.fragment, event.fence)
        standing = self.ledger.next(event.epoch, event.fragment)
        answer = ev.Fenced(
            self.shard, self.incarnation, event.epoch, event.fragment, event.fence, standing
        )
        return [Send(ev.SCHEDULER, answer)]

    def _report(self, epoch: int, fragment: int, now: float) -> Send:
        self._booked_number += 1
        number = self._booked_number
        report = ev.Booked(self.shard, self.incarnation, number, epoch, fragment)
        self._unseen[number] = (now, report)
        return Send(ev.SCHEDULER, report)

    def _booked_seen(self, event: ev.BookedSeen, now: float) -> list[Effect]:
        self._unseen.pop(event.number, None)
        return []

    def _snapshot(self, event: ev.SnapshotAsked, now: float) -> list[Effect]:
        if event.incarnation != self.incarnation:
            return []
        if event.step <= self._snapshot_step:
            # Asked again: the answer may have been lost, or is still being written. What is asked
            # late must not change a checkpoint that is complete.
            answer = self._snapshot_answer if event.step == self._snapshot_step else None
            return [] if answer is None else [Send(ev.SCHEDULER, answer)]
        effects: list[Effect] = []
        if event.floor and self.round.gathered and self.round.rule.ends_with_run:
            # The run's last snapshot: nothing will come that could end this round.
            effects += self._commit()
        self.floor = max(self.floor, event.floor)
        self._snapshot_step, self._snapshot_answer = event.step, None
        record = trace.Record(trace.SNAPSHOT, self.incarnation, self.version, seq=event.step)
        state: dict[str, Any] = {"rule": self.settings.rule, "ledger": self.ledger.state()}
        if self._gathers:
            state["round"] = {**self.round.state(), "of": self.settings.round_of}
        saved = SaveSnapshot(event.step, self.version, self.ledger.consumed, state)
        return [*effects, Log(record), saved]

    def _snapshot_written(self, event: ev.SnapshotWritten, now: float) -> list[Effect]:
        message: ev.Event
        if event.error:
            message = ev.SnapshotFailed(self.shard, self.incarnation, event.step, event.error)
        else:
            message = ev.SnapshotTaken(
                self.shard,
                self.incarnation,
                event.step,
                event.version,
                event.samples,
                event.file,
            )
        if event.step == self._snapshot_step:
            # Of an earlier one nobody asks any more; it must not stand for the newest.
            self._snapshot_answer = message
        return [Send(ev.SCHEDULER, message)]

    def _tick(self, event: ev.Tick, now: float) -> list[Effect]:
        effects: list[Effect] = [] if self._seen else [self._ready()]
        effects += self._end_round(now)
        for number, (sent, report) in self._unseen.items():
            if now - sent >= self.settings.resend_s:
                self._unseen[number] = (now, report)
                effects.append(Send(ev.SCHEDULER, report))
        return effects
