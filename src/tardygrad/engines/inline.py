"""The simulator: the production machines in one process, in virtual time, from one seed.

Theory of operation. Events reach a machine, its effects become later events of the world: a message
arrives after a drawn delay, a computation ends after a drawn time, a server applies one update at a
time. Tensors are real where the model is real: gradients are computed when a worker starts to
compute, at the very parameters that it pulled, so staleness has its true effect. Faults come from
the plan in the configuration.

Every trace record passes an independent auditor as it is written; a violated invariant ends the
simulation with the record that broke it.
"""

from __future__ import annotations

from typing import Any

import torch

from tardygrad.config import Duration
from tardygrad.engines.base import Job, Observer, RunEnd, Snapshot, SnapshotStore
from tardygrad.engines.entries import EntryLog
from tardygrad.engines.inline_disk import Disks
from tardygrad.engines.inline_members import Members
from tardygrad.engines.inline_replicas import Replicas
from tardygrad.engines.inline_scheduler import SimulatedScheduler
from tardygrad.engines.inline_world import Back, Crash, Member, WatchedTrace, Watcher
from tardygrad.engines.shard_host import ShardHost, TraceFile, TraceSink, digest
from tardygrad.engines.statistics import RunStatistics, ServerCounters, WorkerCounters
from tardygrad.engines.worker_host import WorkerHost
from tardygrad.errors import InvariantViolation
from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev
from tardygrad.protocol.invariants import Auditor
from tardygrad.protocol.meetings import Met
from tardygrad.protocol.residuals import Residual
from tardygrad.storage.traces import MEETINGS, RESIDUALS

_WAIT_LIMIT_S = 1e7
_INSTANT = Duration(mean_s=0.0)


class InlineEngine:
    """Runs a job in virtual time. ``events`` counts what the machines handled.

    Args:
        watcher: is told every event and every trace record.
        start_s: virtual seconds after which a process that does not come up counts as dead; the
            configuration's if None.
        linger_s: virtual seconds for which the world goes on after the end, so that a test can see
            that nothing happens any more.
        disk: virtual seconds that each snapshot and each manifest takes until it is there.
    """

    def __init__(
        self,
        watcher: Watcher | None = None,
        *,
        start_s: float | None = None,
        linger_s: float = 0.0,
        disk: Duration = _INSTANT,
    ) -> None:
        self.watcher = watcher
        self.start_s = start_s
        self.linger_s = linger_s
        self.disk = disk
        self._world: _Simulation | None = None

    @property
    def events(self) -> int:
        """What the machines have handled."""
        return 0 if self._world is None else self._world.events

    @property
    def now(self) -> float:
        """Virtual seconds since the simulation began."""
        return 0.0 if self._world is None else self._world.now

    def run(self, job: Job, observer: Observer, store: SnapshotStore) -> RunEnd:
        """Simulate until the run ends.

        Raises:
            InvariantViolation: the protocol broke one of its promises.
        """
        threads = torch.get_num_threads()
        # As in a worker of its own: sums depend on the number of threads to the bit.
        torch.set_num_threads(job.config.threads)
        try:
            self._world = _Simulation(self, job, observer, store)
            return self._world.run()
        finally:
            torch.set_num_threads(threads)


class _Simulation(Members):
    def __init__(
        self, engine: InlineEngine, job: Job, observer: Observer, store: SnapshotStore
    ) -> None:
        super().__init__(job, engine.watcher)
        self.engine, self.observer, self.store = engine, observer, store
        deaths = [f for f in self.fate.crashes if f.target == "scheduler"]
        self.scheduler = SimulatedScheduler(job, engine.start_s, deaths)
        self.auditor = Auditor(job.plan, self.shards, limit=job.method.staleness.limit)
        self.statistics = RunStatistics(job.config.workers, self.shards, job.plan.samples)
        self.statistics.begin(job.generation << 10, job.consumed_before, observer.now())
        self.disks = Disks(self, store, observer, engine.disk, job.config.seed)
        self.finished: ef.Finished | None = None
        self.residuals: EntryLog | None = None
        self.meetings: EntryLog | None = None
        if job.trace_directory is not None and job.method.codec.remembers:
            self.residuals = EntryLog(job.trace_directory / RESIDUALS)
        if job.trace_directory is not None and job.method.uses_peers:
            self.meetings = EntryLog(job.trace_directory / MEETINGS)
        self.next_progress = 0.5
        self.scheduler_restarts, self.scheduler_away_s = 0, 0.0
        self.effects |= {
            ef.SaveSnapshot: self._save_snapshot,
            ef.SpawnWorker: self._spawn_worker,
            ef.KillWorker: self._kill_worker,
            ef.SpawnServer: self._spawn_server,
            ef.KillServer: self._kill_server,
            ef.CommitCheckpoint: self.disks.manifest,
            ef.EpochEnded: self._epoch_ended,
            ef.MemberChanged: self._member_changed,
            ef.CrewAnswered: self._nothing,
            ef.Decided: self._decided,
            ef.Finished: self._finish,
        }
        self.next_progress = 0.5
        if job.config.replicas:
            self.replicas = replicas = Replicas(self, job, self.auditor)
            self.effects |= {
                ef.SpawnBackup: replicas.spawn,
                ef.KillBackup: replicas.kill,
                ef.Promote: replicas.promote,
            }

    # --- the loop -----------------------------------------------------------------------------

    def run(self) -> RunEnd:
        limit = self.job.config.simulation.limit_s or _WAIT_LIMIT_S
        self.to_scheduler(ev.Started())
        self.later(self.job.tick_s, ("clock", 0), ev.Tick())
        heap = self.heap
        while self.finished is None:
            if not heap or heap[0][0] > limit:
                raise self._endless()
            self.step()
        end = self.now
        self.disks.finish()
        if self.disks.lost and self.finished.outcome != "failed":
            reason = f"the last checkpoint could not be written: {self.disks.lost}"
            self.finished = ef.Finished("failed", reason)
        while heap and heap[0][0] <= end + self.engine.linger_s:
            self.step()
        return self._end(end)

    def _endless(self) -> InvariantViolation:
        machine = self.scheduler.machine
        book = machine.book
        return InvariantViolation(
            f"no end after {self.now:g} virtual seconds; the scheduler is {machine.phase}, "
            f"{book.remaining()} fragments remain, {len(book.leases)} are leased"
        )

    def to_scheduler(self, event: Any) -> None:
        self.events += 1
        if type(event) is Crash:
            self._scheduler_dies(event.for_s)
            return
        scheduler = self.scheduler
        if type(event) is Back:
            answers = scheduler.returns()
            self._tell_scheduler("ready", "")
        else:
            answers = scheduler.tell(event, self.clock(ev.SCHEDULER))
        for _, said, effects in answers:
            if self.watcher is not None:
                self.watcher.handled(self.now, ev.SCHEDULER, scheduler.machine, said, effects)
            for effect in effects:
                self.effects[type(effect)](effect, ev.SCHEDULER)

    def _scheduler_dies(self, for_s: float) -> None:
        if self.scheduler.up:
            self.scheduler.dies(self.now)
            self.scheduler_restarts += 1
            self.scheduler_away_s += for_s
            self._tell_scheduler("died", "killed by the fault plan")
            self.later(for_s, ev.SCHEDULER, Back())

    def _tell_scheduler(self, state: str, reason: str) -> None:
        incarnation = (self.job.generation << 10) + self.scheduler_restarts
        effect = ef.MemberChanged("scheduler", 0, incarnation, state, reason)
        self._member_changed(effect, ev.SCHEDULER)

    def tick(self) -> None:
        self.later(self.job.tick_s, ("clock", 0), ev.Tick())
        reason = self.observer.interrupted()
        if reason:
            self.to_scheduler(ev.Interrupted(reason))
        for add, remove in self.observer.wishes():
            self.to_scheduler(ev.CrewWanted(0, add, remove))
        self.beat()
        if self.scheduler.up:
            self.to_scheduler(ev.Tick())
        for address, member in self.everybody():
            if not self.frozen(address, member):
                self.deliver(address, member.incarnation, ev.Tick(), None)
        if self.now >= self.next_progress:
            self.next_progress = self.now + self.job.config.simulation.tick_s
            self._report()

    # --- birth and death ----------------------------------------------------------------------

    def _spawn_worker(self, effect: ef.SpawnWorker, source: ev.Address) -> None:
        member = Member(
            self.job.worker(effect.worker, effect.incarnation),
            effect.incarnation,
            self.now + effect.delay_s,
        )
        member.counters = WorkerCounters()
        if self.real:
            job = self.job
            packer = job.packer(effect.worker, effect.incarnation, self.store, self._residual)
            member.host = WorkerHost(job.method, job.build_adapter(), job.train, job.plan, packer)
        self.make_room(effect.worker + 1)
        self.workers[effect.worker] = member
        address = ("worker", effect.worker)
        self.later(effect.delay_s + self.control(), address, ev.Started(), effect.incarnation)

    def _residual(self, entry: Residual) -> None:
        if self.residuals is not None:
            self.residuals.write(entry)
        if self.watcher is not None:
            self.watcher.residual(entry)

    def met(self, entry: Met) -> None:
        if self.meetings is not None:
            self.meetings.write(entry)
        if self.watcher is not None:
            self.watcher.met(entry)

    def _spawn_server(self, effect: ef.SpawnServer, source: ev.Address) -> None:
        snapshot: Snapshot | None = None
        if effect.incarnation > 0:
            snapshot = self.store.newest(effect.shard)
        machine = self.job.server(effect.shard, effect.incarnation, effect.floor, snapshot)
        if snapshot is not None:
            standing = machine.ledger.standing()
            self.auditor.adopt(
                effect.shard, snapshot.step, machine.version, standing, machine.round.gathered
            )
        member = Member(machine, effect.incarnation, self.now)
        member.counters = ServerCounters()
        member.host = self.shard_host(effect.shard, snapshot)
        if self.replicas is not None:
            self.replicas.begins(effect.shard)
        self.servers[effect.shard] = member
        delay = self.control()
        self.later(delay, ("server", effect.shard), ev.Started(), effect.incarnation)

    def shard_host(self, shard: int, snapshot: Snapshot | None) -> ShardHost:
        job = self.job
        where = job.ranges[shard].slice
        parameters = self.parameters[where]
        parameters.copy_(job.initial[where])
        buffers = None
        if shard == 0:
            buffers = self.parameters[job.layout.parameters_size :]
            buffers.copy_(job.initial[job.layout.parameters_size :])
        sink: TraceSink | None = None
        if job.trace_directory is not None:
            sink = TraceFile(job.trace_directory / f"shard-{shard:03d}.trace", shard, self.shards)
        host = ShardHost(
            job.method, parameters, buffers, WatchedTrace(self.auditor, shard, sink, self.watcher)
        )
        if snapshot is not None:
            host.restore(snapshot.tensors, same_kind=snapshot.is_of(job.method))
        return host

    def _kill_worker(self, effect: ef.KillWorker, source: ev.Address) -> None:
        member = self.workers[effect.worker]
        if member is not None and member.incarnation == effect.incarnation:
            self.ends(("worker", effect.worker), member)

    def _kill_server(self, effect: ef.KillServer, source: ev.Address) -> None:
        member = self.servers[effect.shard]
        if member is not None and member.incarnation == effect.incarnation:
            self.ends(("server", effect.shard), member)

    def _save_snapshot(self, effect: ef.SaveSnapshot, source: ev.Address) -> None:
        member = self.at(source)
        self.disks.snapshot(effect, source, member)

    # --- the run ------------------------------------------------------------------------------

    def to_store(self) -> None:
        self.disks.next_manifest()

    def _refresh(self) -> None:
        for number, member in enumerate(self.workers):
            if member is not None:
                if member.alive and member.started:
                    self.settle(member)
                report = member.counters.report()
                if member.computing is not None:
                    # The rest is counted when it is done.
                    report["computing_s"] += member.computing.spent_s(self.now)
                self.statistics.worker_report(number, member.incarnation, report)
        for number, member in enumerate(self.servers):
            if member is not None:
                member.counters.consumed = member.machine.ledger.consumed
                report = member.counters.report()
                self.statistics.server_report(number, member.incarnation, report)

    def _report(self) -> None:
        self._refresh()
        fields = self.statistics.progress(self.now, self.job.method.learning_rate)
        self.observer.emit("progress", **fields)

    def _epoch_ended(self, effect: ef.EpochEnded, source: ev.Address) -> None:
        self._refresh()
        number = effect.epoch + 1
        loss = self.statistics.epoch_loss(effect.epoch)
        self.observer.emit("epoch", epoch=number, samples=self.statistics.consumed, loss=loss)
        every = self.job.config.evaluation.every_epochs
        # The last epoch's parameters are the final ones, which are measured at the end.
        if every and number % every == 0 and number < self.job.config.epochs:
            self._evaluate(number, final=False)

    def _evaluate(self, epoch: int, *, final: bool) -> dict[str, float]:
        if self.job.test is None or not self.real:
            return {}
        size = self.job.layout.parameters_size
        self.adapter.load(self.parameters[:size])
        self.adapter.load_buffers(self.parameters[size:])
        found = self.adapter.evaluate(self.job.test, self.job.config.evaluation.batch_size)
        at = self.observer.now()
        self.observer.emit(
            "evaluate",
            epoch=epoch,
            samples=self.statistics.consumed,
            at_s=at,
            final=final,
            **found,
        )
        return found

    def _member_changed(self, effect: ef.MemberChanged, source: ev.Address) -> None:
        self.statistics.member(*effect)
        self.observer.emit("member", **effect._asdict())

    def _decided(self, effect: ef.Decided, source: ev.Address) -> None:
        self.observer.decided(effect.decision, effect.reason)

    def _finish(self, effect: ef.Finished, source: ev.Address) -> None:
        self.finished = effect

    def _end(self, seconds: float) -> RunEnd:
        assert self.finished is not None
        for member in self.servers:
            if member is not None and member.host is not None:
                member.host.trace.close()
        if self.finished.outcome == "done":
            self.auditor.finished(self.job.config.epochs)
        self._refresh()
        self._report()
        statistics = self.statistics
        final = self._evaluate(statistics.consumed // self.job.plan.samples, final=True)
        return RunEnd(
            self.finished.outcome,
            self.finished.reason,
            self.parameters.clone(),
            {
                "seconds": seconds,
                "first_update_s": statistics.first_update_s,
                "digest": digest([self.parameters]),
                "final": final,
                "statistics": statistics,
                "scheduler": {
                    "restarts": self.scheduler_restarts,
                    "away_s": self.scheduler_away_s,
                },
            },
        )
