"""The leasing desk: who gets which fragment, and what must happen before and after.

Theory of operation. Workers that ask stand in one of two queues: the *idle* have nothing to do, the
*provident* still hold a lease and ask for the next one early. A lease that ends before its fragment
is done goes through *fencing* (see ``WorkBook``), and its worker gets a new session: what it still
has on its way is refused, and it starts afresh with its next lease. Where the consistency rule uses
clocks, or servers count replicas, a lease that makes a worker a member is told only when all
servers know (see ``Roster``), and, where workers average among themselves, when its group is there
(see ``Groups``).
"""

from __future__ import annotations

from collections.abc import Sequence

from tardygrad.balancing import Balance
from tardygrad.data.fragments import FragmentPlan
from tardygrad.protocol import events as ev
from tardygrad.protocol.balancing import Balancer
from tardygrad.protocol.clocks import Roster
from tardygrad.protocol.effects import Decided, Effect, Send
from tardygrad.protocol.groups import Groups
from tardygrad.protocol.membership import WorkerEntry
from tardygrad.protocol.outbox import Outbox
from tardygrad.protocol.workbook import Fragment, WorkBook


class LeaseDesk:
    """A part of the scheduler, which alone uses it.

    Args:
        plan: how the data is cut.
        epochs: how many epochs are trained.
        shards: number of shards.
        workers: the scheduler's entries.
        outbox: where commands to servers are kept until they are answered.
        generation: how often the run was resumed; all numbers begin above the predecessors'.
        tells_members: whether servers must know who is a member.
        excuses: whether who has nothing to do is no member: others may wait for members.
        open_epochs: so many epochs may be worked on at a time.
        balance: what of a worker's exchanges follows its speed.
        group_patience_s: for so long a group's first members wait for the others; None where
            workers do not average among themselves.
    """

    def __init__(
        self, plan: FragmentPlan, epochs: int, shards: int, workers: Sequence[WorkerEntry],
        outbox: Outbox, *, generation: int, tells_members: bool, excuses: bool,
        open_epochs: int, balance: Balance,
        group_patience_s: float | None = None,
    ) -> None:  # fmt: skip
        self.book = WorkBook(plan, epochs, shards, (generation << 40) + 1, open_epochs)
        self._next_session = (generation << 20) + 1
        self._workers = workers
        self._outbox = outbox
        self._shards = range(shards)
        self._roster = Roster(shards) if tells_members else None
        self._excuses = excuses
        self._balancer = None if balance.name == "fixed" else Balancer(balance)
        self._groups: Groups | None = None
        if group_patience_s is not None:
            self._groups = Groups((generation << 20) + 1, group_patience_s)
        self._idle: dict[int, None] = {}
        self._provident: dict[int, None] = {}

    def new_session(self) -> int:
        """The next session number."""
        session = self._next_session
        self._next_session += 1
        return session

    # --- asking and granting ------------------------------------------------------------------

    def granted_before(self, entry: WorkerEntry, event: ev.LeaseAsked) -> list[Effect] | None:
        """The answer to a worker whose last lease has not reached it; None if that is not so."""
        lost = entry.granted
        if lost is None or lost.session != entry.session or lost.fence <= event.received:
            return None
        entry.last_ask = event.ask
        if self._roster is not None and self._roster.asks_again(entry.worker, event.ask):
            return []
        if self._groups is not None and self._groups.asks_again(entry.worker, event.ask):
            return []
        return [self._tell(event.ask, lost)]

    def _tell(self, ask: int, lease: ev.Lease) -> Send:
        group = ev.ALONE if self._groups is None else self._groups.place(lease.worker)
        return Send(("worker", lease.worker), ev.Granted(ask, lease, group))

    def overtaken(self, entry: WorkerEntry, event: ev.LeaseAsked) -> list[Effect]:
        """What a worker hears that asks under a session that is over, and may not know it.

        Without a group it learns that with its next push; with one, others may wait for it.
        """
        if self._groups is None or event.abandoned or event.session >= entry.session:
            return []
        return [Send(("worker", entry.worker), ev.SessionEnded(entry.session))]

    def queue(self, entry: WorkerEntry, event: ev.LeaseAsked) -> None:
        """A worker asks for a lease."""
        entry.last_ask, entry.asked = event.ask, event
        if self._balancer is not None:
            self._balancer.tell(event)
        self._provident.pop(entry.worker, None)
        (self._provident if event.prefetch else self._idle)[entry.worker] = None

    def forget(self, worker: int) -> None:
        """The worker does not want a lease any more."""
        self._idle.pop(worker, None)
        self._provident.pop(worker, None)
        self._workers[worker].asked = None

    def grant(self, now: float) -> list[Effect]:
        """Lease whatever can be leased to those who ask."""
        effects: list[Effect] = []
        while self._idle and self.book.available():
            effects += self._grant(next(iter(self._idle)), now)
        while self._provident and self.book.available():
            worker = next(iter(self._provident))
            if self._may_reserve():
                effects += self._grant(worker, now)
            else:
                # It will ask again when it has nothing left.
                self.forget(worker)
        return effects

    def _may_reserve(self) -> bool:
        # Near the end a fragment in reserve would lie idle with a slow worker.
        remaining, workers = self.book.remaining(), self._workers
        return remaining >= len(workers) or remaining >= sum(w.alive for w in workers)

    def _grant(self, worker: int, now: float) -> list[Effect]:
        entry = self._workers[worker]
        asked = entry.asked
        self.forget(worker)
        if asked is None:
            return []
        share, decisions = self._share(worker)
        lease = self.book.grant(worker, entry.session, asked.clock, share)
        if lease is None:
            return decisions
        entry.granted = lease
        # It may have waited long for this: only from now on must it move.
        entry.moved = now
        if self._roster is not None and not self._roster.join(asked.ask, lease):
            return decisions
        return [*decisions, self._tell(asked.ask, lease)]

    def _share(self, worker: int) -> tuple[float, list[Effect]]:
        if self._balancer is None:
            return 1.0, []
        present = [entry.worker for entry in self._workers if entry.alive]
        share, decisions = self._balancer.decide(worker, present)
        return share, [*decisions]

    # --- ending leases ------------------------------------------------------------------------

    def release(self, entry: WorkerEntry, now: float) -> list[Effect]:
        """End the worker's session and all its leases."""
        entry.session = self.new_session()
        entry.granted = None
        self.leaves(entry.worker)
        return self._fence(self.book.release(entry.worker), now)

    def restored(self, ready: ev.ServerReady, now: float) -> tuple[int, list[Effect]]:
        """A server came back with an older ledger: all leases end; how many fragments it lacks."""
        again = self.book.restored(ready)
        for worker in self._workers:
            worker.session = self.new_session()
            worker.granted = None
            self.leaves(worker.worker)
        if self._roster is not None:
            self._roster.clear()
        return len(again), self._fence(again, now)

    def _fence(self, fragments: list[Fragment], now: float) -> list[Effect]:
        asked = [ev.FenceAsked(*where, self.book.fencing[where].fence) for where in fragments]
        return [
            self._outbox.command(("fence", a.epoch, a.fragment, shard), shard, a, now)
            for a in asked
            for shard in self._shards
        ]

    def fenced(self, event: ev.Fenced) -> bool:
        """A server has answered; whether the fragment can now be leased again, or is done."""
        asked = ev.FenceAsked(event.epoch, event.fragment, event.fence)
        self._outbox.answered(("fence", event.epoch, event.fragment, event.shard), asked)
        return self.book.fenced(event.shard, (event.epoch, event.fragment), event.fence, event.next)

    # --- members ------------------------------------------------------------------------------

    def leaves(self, worker: int) -> None:
        """Nobody waits for this worker any more."""
        if self._roster is not None:
            self._roster.leave(worker)
        if self._groups is not None:
            self._groups.leaves(worker)

    def gone(self, worker: int) -> None:
        """It is there no more: nobody waits for it, and what it asked for is not for another."""
        self.forget(worker)
        self.leaves(worker)

    def excuse(self, worker: int) -> None:
        """Nobody waits for this worker if it has nothing to do."""
        if self._excuses and worker in self._idle and not self.book.holds_lease(worker):
            self.leaves(worker)

    def tell(self, now: float) -> list[Effect]:
        """Tell the servers about the members, if they have changed, and the workers of groups."""
        if self._roster is None:
            return []
        effects = [] if self._groups is None else self._look_at_group(self._groups, now)
        if not self._roster.changed:
            return effects
        told = self._roster.told()
        commands = [self._outbox.command(("members", s), s, told, now) for s in self._shards]
        return [*effects, *commands]

    def moved(self) -> None:
        """Something was booked."""
        if self._groups is not None:
            self._groups.moved()

    def _look_at_group(self, groups: Groups, now: float) -> list[Effect]:
        assert self._roster is not None
        effects: list[Effect] = []
        torn = self.book.torn
        why = groups.why_over(self._roster.sessions, torn=torn)
        if why:
            effects.append(Decided("a group of workers ends", why))
            for worker, session in groups.end():
                entry = self._workers[worker]
                # Others have given it up themselves, or are dead.
                if entry.session == session:
                    effects += self.release(entry, now)
                    over = ev.SessionEnded(entry.session)
                    effects.append(Send(("worker", worker), over))
        if groups.is_due(self._workers, now, excused=self._without_work()):
            begun = groups.begin(torn=torn)
            names = ", ".join(str(lease.worker) for _, lease, _ in begun)
            together = "together" if begun[0][2].size > 1 else "apart"
            effects.append(Decided(f"workers {names} begin", together))
            effects += [
                Send(("worker", lease.worker), ev.Granted(ask, lease, group))
                for ask, lease, group in begun
            ]
        return effects

    def _without_work(self) -> dict[int, None]:
        """Those that ask, and wait for what is not there nor about to be."""
        return {} if self.book.fencing or self.book.available() else self._idle

    def seen(self, event: ev.MembersSeen) -> list[Effect]:
        """A server knows the members: leases that waited for that are told."""
        if self._roster is None:
            return []
        if event.generation == self._roster.generation:
            self._outbox.forget(("members", event.shard))
        free = self._roster.seen(event.shard, event.generation)
        if self._groups is None:
            return [self._tell(ask, lease) for ask, lease in free]
        for ask, lease in free:
            self._groups.comes(ask, lease)
        return []
