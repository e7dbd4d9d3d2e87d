"""The scheduler: leases fragments, watches over workers and servers, calls for checkpoints.

Theory of operation. The scheduler keeps three books: the work (``LeaseDesk``, ``WorkBook``), who
takes part (``Crew``, ``WorkerEntry``, ``ServerEntry``), and an ``Outbox`` of commands to servers
that are repeated until they are answered. A ``Watch`` says who must be taken for dead. A run is
*starting* until every shard is there, then *running*; it is *stopping* while workers finish what
they hold, *saving* while the last checkpoint is taken, and then *over*.

A lost worker costs its fragments a fencing round; a lost server is started again from its newest
snapshot, and meanwhile no lease is granted. Nothing here waits: each answer moves one thing on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from tardygrad.errors import InvariantViolation
from tardygrad.protocol import events as ev
from tardygrad.protocol import membership as mb
from tardygrad.protocol.backups import Backups
from tardygrad.protocol.checkpointing import CheckpointRound
from tardygrad.protocol.crew import Crew
from tardygrad.protocol.effects import (
    Decided,
    Effect,
    EpochEnded,
    Finished,
    KillServer,
    KillWorker,
    MemberChanged,
    Outcome,
    Send,
    SpawnServer,
)
from tardygrad.protocol.leasing import LeaseDesk
from tardygrad.protocol.outbox import Outbox
from tardygrad.protocol.scheduler_settings import SchedulerSettings
from tardygrad.protocol.states import RUN
from tardygrad.protocol.watch import Watch

STARTING = "starting"
RUNNING = "running"
STOPPING = "stopping"
SAVING = "saving"
OVER = "over"


class Scheduler:
    """The state machine that hands out the work; change it through :meth:`handle` alone."""

    def __init__(self, settings: SchedulerSettings) -> None:
        s = settings
        self.settings = s
        self.phase = RUN.start
        self.outcome: Outcome | Literal[""] = ""
        self.reason = ""
        first_incarnation = s.generation << 10
        self.workers = [mb.WorkerEntry(w, first_incarnation) for w in range(s.workers)]
        self.servers = [mb.ServerEntry(i, first_incarnation) for i in range(s.shards)]
        self.outbox = Outbox()
        self.round = CheckpointRound(s.shards, s.first_step, self.outbox)
        self._desk = LeaseDesk(
            s.plan, s.epochs, s.shards, self.workers, self.outbox,
            generation=s.generation, tells_members=s.tells_members, excuses=s.uses_clocks,
            open_epochs=s.open_epochs, balance=s.balance,
            group_patience_s=s.resend_s if s.uses_groups else None,
        )  # fmt: skip
        self.book = self._desk.book
        self.crew = Crew(s, self.workers, self._desk, self.outbox)
        self.restarts = self.crew.restarts
        self.book.forget_ended(s.epochs_reported)
        self._watch = Watch(
            self.workers, self.servers, self.book, self.outbox,
            silence=s.silence, lease_s=s.lease_s, start_s=s.start_s, uses_clocks=s.uses_clocks,
        )  # fmt: skip
        self.backups = Backups(self.servers, s, self._watch)
        self._last_checkpoint = 0.0
        self._stop_since = 0.0
        self._saved_in_vain = False
        self._handlers: dict[type, Callable[[Any, float], list[Effect]]] = {
            ev.Started: self._started,
            ev.Tick: self._tick,
            ev.Heartbeat: self._heartbeat,
            ev.WorkerReady: self._worker_ready,
            ev.LeaseAsked: self._lease_asked,
            ev.WorkerLeft: self._worker_left,
            ev.WorkerDied: self._worker_died,
            ev.ServerReady: self._server_ready,
            ev.ServerDied: self._server_died,
            ev.BackupDied: self._backup_died,
            ev.Fenced: self._fenced,
            ev.Booked: self._booked,
            ev.MembersSeen: self._members_seen,
            ev.SnapshotTaken: self._snapshot_answer,
            ev.SnapshotFailed: self._snapshot_answer,
            ev.CrewWanted: self._crew_wanted,
            ev.CrewSeen: self._crew_seen,
            ev.Interrupted: self._interrupted,
        }

    def handle(self, event: ev.Event, now: float) -> list[Effect]:
        """One event in, what is to be done out."""
        if self.phase == OVER:
            return []
        handler = self._handlers.get(type(event))
        if handler is None:
            raise InvariantViolation(f"the scheduler got {event!r}, which it does not handle")
        effects = handler(event, now)
        if self.phase in (STARTING, RUNNING):
            effects += self.crew.tell(now)
        return effects + self._desk.tell(now) if self.settings.tells_members else effects

    @property
    def serving(self) -> bool:
        """Every shard has a server that is ready."""
        return all(s.ready for s in self.servers)

    # --- beginning ----------------------------------------------------------------------------

    def _started(self, event: ev.Started, now: float) -> list[Effect]:
        effects: list[Effect] = []
        self._last_checkpoint = now
        self._watch.begin(now)
        floor = self.book.new_fence()
        for server in self.servers:
            effects.append(SpawnServer(server.shard, server.incarnation, floor))
            effects.append(server.changed("started", ""))
        for worker in self.workers:
            effects += self.crew.spawn(worker, worker.incarnation, 0.0, now)
        return effects

    # --- leases -------------------------------------------------------------------------------

    def _known(self, worker: int, incarnation: int) -> mb.WorkerEntry | None:
        entry = self.workers[worker] if 0 <= worker < len(self.workers) else None
        if entry is None or not entry.alive or entry.incarnation != incarnation:
            return None
        return entry

    def _worker_ready(self, event: ev.WorkerReady, now: float) -> list[Effect]:
        entry = self._known(event.worker, event.incarnation)
        return [] if entry is None else self._note_ready(entry, now)

    def _note_ready(self, entry: mb.WorkerEntry, now: float) -> list[Effect]:
        entry.heard = now
        if entry.state == mb.READY:
            return []
        entry.turn("ready")
        return [entry.changed("ready", "")]

    def _lease_asked(self, event: ev.LeaseAsked, now: float) -> list[Effect]:
        entry = self._known(event.worker, event.incarnation)
        if entry is None or event.ask < entry.last_ask:
            return []
        effects = self._note_ready(entry, now)
        if self.phase in (STOPPING, SAVING):
            return [*effects, Send(("worker", entry.worker), ev.StopAsked(self.reason))]
        if not entry.wanted:
            return [*effects, self.crew.ask_to_leave(entry)]
        if event.abandoned and event.session == entry.session:
            effects.append(Decided(f"leases of worker {entry.worker} end", event.reason))
            effects += self._desk.release(entry, now)
        effects += self._desk.overtaken(entry, event)
        before = self._desk.granted_before(entry, event)
        if before is not None:
            return effects + before
        self._desk.queue(entry, event)
        effects += self._grant_waiting(now)
        self._desk.excuse(entry.worker)
        return effects

    def _grant_waiting(self, now: float) -> list[Effect]:
        return self._desk.grant(now) if self.phase == RUNNING and self.serving else []

    # --- what servers say ---------------------------------------------------------------------

    def _shard(self, shard: int, incarnation: int, now: float) -> mb.ServerEntry | None:
        entry = self.servers[shard] if 0 <= shard < len(self.servers) else None
        if entry is None or entry.incarnation != incarnation:
            return None
        entry.spoke(now)
        return entry

    def _fenced(self, event: ev.Fenced, now: float) -> list[Effect]:
        entry = self._shard(event.shard, event.incarnation, now)
        if entry is None or not entry.ready:
            return []
        if self.book.gained((event.epoch, event.fragment), event.fence, event.next):
            self.restarts.moved()
            self._desk.moved()
        if not self._desk.fenced(event):
            return []
        return self._look_at_epochs(now) + self._grant_waiting(now)

    def _booked(self, event: ev.Booked, now: float) -> list[Effect]:
        entry = self._shard(event.shard, event.incarnation, now)
        if entry is None or not entry.ready:
            return []
        effects: list[Effect] = [Send(("server", event.shard), ev.BookedSeen(event.number))]
        self.restarts.moved()
        self._desk.moved()
        lease = self.book.booked(event.shard, event.epoch, event.fragment)
        effects += self._look_at_epochs(now) + self._grant_waiting(now)
        if lease is not None:
            worker = self.workers[lease.worker]
            worker.deaths = worker.in_vain = 0
            worker.booked = True
            self._desk.excuse(lease.worker)
        return effects

    def _look_at_epochs(self, now: float) -> list[Effect]:
        effects: list[Effect] = [EpochEnded(e) for e in self.book.newly_ended()]
        if self.book.finished and self.phase == RUNNING:
            effects += self._stop("done", "every sample of every epoch is booked", now)
        return effects

    def _members_seen(self, event: ev.MembersSeen, now: float) -> list[Effect]:
        return self._desk.seen(event)

    def _server_ready(self, event: ev.ServerReady, now: float) -> list[Effect]:
        entry = self._shard(event.shard, event.incarnation, now)
        if entry is None:
            return []
        seen = Send(("server", event.shard), ev.ServerSeen(event.incarnation))
        if entry.ready:
            return [seen]
        entry.turn("ready")
        effects: list[Effect] = [seen, entry.changed("ready", f"v{event.version}")]
        effects += self.crew.tell_again(event.shard, now)
        if event.incarnation > 0 and not entry.promoted:
            effects += self._restored(event, now)
        if self.phase == STARTING and self.serving:
            self.phase = RUN.after(self.phase, "serves")
            effects += self._look_at_epochs(now)
        if self.phase == SAVING and self.serving:
            effects += self._save(now)
        return effects + self._grant_waiting(now)

    def _restored(self, event: ev.ServerReady, now: float) -> list[Effect]:
        lacking, fencing = self._desk.restored(event, now)
        effects: list[Effect] = [
            Decided(
                f"shard {event.shard} goes on from version {event.version}",
                f"{lacking} fragments are looked at again",
            ),
            *fencing,
        ]
        if self.outcome == "done" and not self.book.finished:
            effects += self._reopen(now)
        return effects

    def _reopen(self, now: float) -> list[Effect]:
        # A server died after the last epoch: what its snapshot lacks is trained again.
        self.phase = RUN.after(self.phase, "reopens")
        self.outcome, self.reason = "", ""
        self.round.reopen()
        effects: list[Effect] = []
        dead = [w for w in self.workers if w.wanted and w.state == mb.DEAD]
        for worker in self.workers:
            if worker.wanted and (worker.state == mb.LEFT or worker.alive):
                effects.append(KillWorker(worker.worker, worker.incarnation, "work came back"))
                effects += self.crew.spawn(worker, worker.incarnation + 1, 0.0, now)
        for worker in dead:
            effects += self._replace(worker, "it had died before the work came back", now)
        return effects

    # --- death --------------------------------------------------------------------------------

    def _heartbeat(self, event: ev.Heartbeat, now: float) -> list[Effect]:
        if event.kind == "backup":
            return self.backups.beat(event, now)
        if event.kind == "server":
            server = self.servers[event.id] if 0 <= event.id < len(self.servers) else None
            if server is not None and server.incarnation == event.incarnation:
                server.beat(event.steps, now)
            return []
        entry = self._known(event.id, event.incarnation)
        if entry is not None:
            entry.beat(event.steps, event.session, event.clock, now)
        return []

    def _worker_died(self, event: ev.WorkerDied, now: float) -> list[Effect]:
        entry = self._known(event.worker, event.incarnation)
        if entry is None:
            return []
        effects: list[Effect] = [entry.changed("died", event.reason)]
        entry.turn("dies")
        hopeless = self.crew.died(entry, own=event.own)
        effects += self.crew.hand_back(entry, now)
        if self.phase in (STOPPING, SAVING):
            return effects + self._look_at_leaving(now)
        if event.fatal and not self.crew.others_work(entry):
            return effects + self._stop("failed", event.reason, now)
        if hopeless:
            reason = f"{hopeless}; the last: {event.reason}"
            return effects + self._stop("failed", reason, now)
        return effects + self._replace(entry, event.reason, now, fatal=event.fatal)

    def _replace(
        self, entry: mb.WorkerEntry, death: str, now: float, *, fatal: bool = False
    ) -> list[Effect]:
        if not entry.wanted:
            return []
        effects, hopeless = self.crew.replace(entry, death, now, fatal=fatal)
        return effects + self._stop("failed", hopeless, now) if hopeless else effects

    def _server_died(self, event: ev.ServerDied, now: float) -> list[Effect]:
        entry = self.servers[event.shard]
        if entry.incarnation != event.incarnation:
            return []
        effects: list[Effect] = [entry.changed("died", event.reason)]
        entry.turn("dies")
        self.round.abandon()
        effects += self.backups.replace(entry, now) if not event.fatal else []
        if entry.incarnation != event.incarnation:
            return effects
        if event.fatal or entry.restarts >= max(self.settings.restarts, 1):
            self.phase = RUN.after(self.phase, "fails")
            return [*effects, Finished("failed", f"server {event.shard}: {event.reason}")]
        entry.restarts += 1
        entry.succeeded(now, promoted=False)
        floor = self.book.new_fence()
        effects.append(SpawnServer(entry.shard, entry.incarnation, floor))
        effects.append(entry.changed("started", "from its newest snapshot"))
        return effects

    def _backup_died(self, event: ev.BackupDied, now: float) -> list[Effect]:
        return self.backups.died(event, now)

    def _tick(self, event: ev.Tick, now: float) -> list[Effect]:
        pause = self._watch.paused(now)
        if pause:
            self._stop_since += pause
            self.round.forgive(pause)
            self.backups.forgive(now)
            why = f"the scheduler itself paused {pause:.1f} s"
            return [Decided("all silence is forgiven", why)]
        effects = self._suspect(now)
        if self.phase == OVER:
            return effects
        effects += self.backups.look(now)
        effects += self.backups.fill(now) if self.phase == RUNNING else []
        effects += self.outbox.due(now, self.settings.resend_s)
        if self.phase in (STARTING, RUNNING):
            effects += self.crew.remind()
        return effects + self._look_at_deadlines(now)

    def _suspect(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for worker, why in self._watch.lost_workers(now):
            effects.append(worker.changed("suspected", why))
            effects.append(KillWorker(worker.worker, worker.incarnation, why))
            died = ev.WorkerDied(worker.worker, worker.incarnation, why, fatal=False)
            effects += self._worker_died(died, now)
        for server, why in self._watch.lost_servers(now):
            if self.phase == OVER:
                break
            effects += self._kill_server(server, why, now)
        return effects

    def _kill_server(self, entry: mb.ServerEntry, why: str, now: float) -> list[Effect]:
        killed = KillServer(entry.shard, entry.incarnation, why)
        died = ev.ServerDied(entry.shard, entry.incarnation, why, fatal=False)
        return [killed, *self._server_died(died, now)]

    # --- checkpoints and the end --------------------------------------------------------------

    def _look_at_deadlines(self, now: float) -> list[Effect]:
        s = self.settings
        if self.phase == RUNNING:
            due = now - self._last_checkpoint >= s.checkpoint_every_s
            return self._save(now) if due and self.serving and not self.round.active else []
        if self.phase == STOPPING:
            return self._look_at_stopping(now)
        if self.serving and self.round.due_again(now):
            return self._save(now)
        return self._give_up_saving(now) if self.round.late(now, s.stop_s) else []

    def _look_at_stopping(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        late = now - self._stop_since > self.settings.stop_s
        for entry in self.workers:
            if entry.alive and late:
                why = f"did not leave within {self.settings.stop_s:g} s"
                effects.append(KillWorker(entry.worker, entry.incarnation, why))
                effects.append(entry.changed("died", why))
                entry.turn("dies")
                self._desk.gone(entry.worker)
            elif entry.alive:
                effects.append(Send(("worker", entry.worker), ev.StopAsked(self.reason)))
        return effects + self._look_at_leaving(now)

    def _save(self, now: float) -> list[Effect]:
        self._last_checkpoint = now
        # What a dead worker left on its way must not change a shard after its last snapshot.
        floor = self.book.new_fence() if self.phase == SAVING else 0
        return [*self.round.begin(self.servers, floor, now)]

    def _give_up_saving(self, now: float) -> list[Effect]:
        late = self.round.lacking()
        names = ", ".join(f"server {shard}" for shard in late)
        why = f"no snapshot of {names} within {self.settings.stop_s:g} s"
        effects: list[Effect] = [Decided(f"checkpoint {self.round.step} is given up", why)]
        self.round.abandon()
        if self._saved_in_vain:
            self.phase = RUN.after(self.phase, "fails")
            reason = f"the last checkpoint could not be written: {why}, for the second time; "
            return [*effects, Finished("failed", reason + "resume the run when its disk answers")]
        self._saved_in_vain = True
        for shard in late:
            if self.phase == SAVING:
                effects += self._kill_server(self.servers[shard], why, now)
        return effects

    def _snapshot_answer(
        self, event: ev.SnapshotTaken | ev.SnapshotFailed, now: float
    ) -> list[Effect]:
        entry = self._shard(event.shard, event.incarnation, now)
        if entry is None or event.step != self.round.step:
            return []
        if not self.round.answered(event.shard):
            return []
        if isinstance(event, ev.SnapshotFailed):
            self.round.abandon()
            given_up = Decided(f"checkpoint {event.step} is given up", event.reason)
            if self.phase != SAVING or self.round.refused(now, self.settings.stop_s):
                return [given_up]
            self.phase = RUN.after(self.phase, "fails")
            reason = f"the last checkpoint could not be written: {event.reason}"
            return [given_up, Finished("failed", reason)]
        commit = self.round.take(event, self._state())
        if commit is None:
            return []
        if self.phase != SAVING:
            return [commit]
        self.phase = RUN.after(self.phase, "saved")
        assert self.outcome  # a run that is being saved has one
        return [commit, Finished(self.outcome, self.reason)]

    def _state(self) -> dict[str, object]:
        state: dict[str, object] = {
            "fragments_done": self.book.fragments_done(), "restarts_used": self.restarts.used,
        }  # fmt: skip
        if self.phase != SAVING:
            return state
        # What these keep of their own is whole, and as old as the last snapshots.
        left = [[w.worker, w.incarnation] for w in self.workers if w.wanted and w.state == mb.LEFT]
        return {**state, "left": left}

    def _crew_wanted(self, event: ev.CrewWanted, now: float) -> list[Effect]:
        stopping = self.phase in (STOPPING, SAVING)
        return self.crew.change(event, now, "the run is about to end" if stopping else "")

    def _crew_seen(self, event: ev.CrewSeen, now: float) -> list[Effect]:
        self.crew.seen(event)
        return []

    def _interrupted(self, event: ev.Interrupted, now: float) -> list[Effect]:
        if self.phase in (STOPPING, SAVING):
            return []
        return self._stop("preempted", event.reason, now)

    def _stop(self, outcome: Outcome, reason: str, now: float) -> list[Effect]:
        self.outcome, self.reason = outcome, reason
        self.phase = RUN.after(self.phase, "stops")
        self._stop_since = now
        effects: list[Effect] = [Decided(f"the run stops: {outcome}", reason)]
        for entry in self.workers:
            if entry.state == mb.STARTING and entry.due > now:
                # Nobody waits until it is started, only to be told that it may leave.
                effects.append(KillWorker(entry.worker, entry.incarnation, reason))
                effects.append(self._leaves(entry))
            elif entry.alive:
                effects.append(Send(("worker", entry.worker), ev.StopAsked(reason)))
        return effects + self._look_at_leaving(now)

    def _leaves(self, entry: mb.WorkerEntry) -> MemberChanged:
        entry.turn("leaves")
        self._desk.gone(entry.worker)
        return entry.changed("left", self.reason)

    def _worker_left(self, event: ev.WorkerLeft, now: float) -> list[Effect]:
        entry = self._known(event.worker, event.incarnation)
        if entry is None:
            return []
        if self.phase not in (STOPPING, SAVING):
            if not entry.wanted:
                return self.crew.gone(entry, now)
            # A wish to stop from before the work came back has reached a worker that came after.
            died = ev.WorkerDied(entry.worker, entry.incarnation, "it left unasked", fatal=False)
            return self._worker_died(died, now)
        return [self._leaves(entry), *self._look_at_leaving(now)]

    def _look_at_leaving(self, now: float) -> list[Effect]:
        if self.phase != STOPPING or any(w.alive for w in self.workers):
            return []
        self.phase = RUN.after(self.phase, "left")
        return self._save(now) if self.serving else []
