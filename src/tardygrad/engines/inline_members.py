"""What workers and servers do in the simulator: their effects become later events of its world.

Theory of operation. A computation's tensors are made when it starts and its end comes later; a
server's pushes queue behind one another; a pull asks every shard and is done when all
have answered. A worker's time is accounted for in three parts: it computes; it communicates while
its pull or the parameters are on their way; else it waits. Where the staleness policy ends
computations that come too late, a server tells their workers as soon as its shard has moved on too
far.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch

from tardygrad.consistency import NO_NEED
from tardygrad.engines.base import Job, Snapshot, SnapshotStore
from tardygrad.engines.inline_board import SimulatedBoard
from tardygrad.engines.inline_disk import Disks
from tardygrad.engines.inline_groups import Collectives
from tardygrad.engines.inline_replicas import Replicas
from tardygrad.engines.inline_world import Computing, Member, Served, Stored, Watcher, World
from tardygrad.engines.shard_host import ShardHost
from tardygrad.engines.statistics import ServerCounters
from tardygrad.engines.worker_host import WorkerHost
from tardygrad.models.null import NullAdapter
from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev
from tardygrad.protocol import trace
from tardygrad.protocol.meetings import Met
from tardygrad.protocol.trace import Record


class Members(World):
    """The workers' and servers' side of the interpreter. ``events`` counts what was handled."""

    disks: Disks
    replicas: Replicas | None = None
    store: SnapshotStore

    def __init__(self, job: Job, watcher: Watcher | None) -> None:
        super().__init__(job)
        self.watcher = watcher
        self.events = 0
        self.shards = len(job.ranges)
        self.form = job.push_format
        self.coders = self.form.coders()
        self.server_addresses = [("server", shard) for shard in range(self.shards)]
        self.push_bytes = [job.push_bytes(shard) for shard in range(self.shards)]
        self.pull_bytes = [job.pull_bytes(shard) for shard in range(self.shards)]
        self.pulls_wait = job.method.workers_wait
        self.adapter = job.build_adapter()
        self.samples_in = functools.cache(job.plan.samples_in)
        self.real = not isinstance(self.adapter, NullAdapter)
        self.parameters = job.initial.clone()
        self.stop_at = job.method.staleness.stop_at
        self.steps_per_batch = job.method.steps_per_batch
        self.groups = Collectives(self, job.layout.parameters_size, job.config.seed)
        self.board: SimulatedBoard | None = None
        if job.method.uses_peers:
            self.board = SimulatedBoard(self, job.layout.parameters_size, self.met)
        self.effects: dict[type, Callable[[Any, ev.Address], None]] = {
            ef.Send: self._send,
            ef.Pull: self._pull,
            ef.Compute: self._compute,
            ef.JoinGroup: lambda e, source: self.groups.join(e, source, self.at(source)),
            ef.Reduce: lambda e, source: self.groups.reduce(e, source, self.at(source)),
            ef.Follow: self._follow,
            ef.LeaveGroup: lambda e, source: self.groups.leave(source),
            ef.Publish: self._publish,
            ef.Release: self._release,
            ef.Leave: self._leave,
            ef.Apply: self._apply,
            ef.Include: self._include,
            ef.Gather: self._gather,
            ef.Commit: self._commit,
            ef.Log: self._log,
            ef.SendParameters: self._send_parameters,
            ef.PublishClock: self._nothing,
        }

    @abstractmethod
    def met(self, entry: Met) -> None:
        """Two workers may have averaged their replicas; one of them is about to compute."""

    def handle(self, address: ev.Address, member: Member, event: Any) -> list[ef.Effect]:
        """A machine handles an event, and its effects are carried out; returns them."""
        self.events += 1
        effects: list[ef.Effect] = member.machine.handle(event, self.clock(address))
        if self.watcher is not None:
            self.watcher.handled(self.now, address, member.machine, event, effects)
        table = self.effects
        for effect in effects:
            table[type(effect)](effect, address)
        return effects

    # --- messages -----------------------------------------------------------------------------

    def _send(self, effect: ef.Send, source: ev.Address) -> None:
        if type(effect.message) is ev.WorkerLeft:
            member = self.at(source)
            if member.host is not None:
                packer = member.host.packer
                self.job.leave(source[1], member.incarnation, packer, self.store)
        elif type(effect.message) is ev.Acked and self._holds_back(source):
            return
        self.send(source, effect.to, effect.message)

    def _holds_back(self, source: ev.Address) -> bool:
        return self.replicas is not None and self.replicas.holds_back(source[1])

    def _publish(self, effect: ef.Publish, source: ev.Address) -> None:
        member = self.at(source)
        payload = self._packed(member, effect.push.seq, effect.shards)
        member.counters.pushed(self.form, effect.shards)
        for shard in effect.shards:
            count = self.push_bytes[shard]
            self.carry(source, self.server_addresses[shard], effect.push, payload, count)

    def _packed(self, member: Member, seq: int, shards: tuple[int, ...]) -> torch.Tensor | None:
        """The bytes of a push, packed when it is first published."""
        update = member.slots.get(seq)
        if update is None or update.dtype == torch.uint8:
            return update
        packer = member.host.packer
        push = update.view(torch.uint8)
        if packer is not None:
            push = torch.empty(self.form.nbytes, dtype=torch.uint8)
            packer.pack(seq, update, push, shards)
        member.slots[seq] = push
        return push

    def _release(self, effect: ef.Release, source: ev.Address) -> None:
        member = self.at(source)
        member.slots.pop(effect.seq, None)
        if self.replicas is not None:
            self.replicas.released(source[1], effect.seq, effect.lost)
        if member.host is not None and member.host.packer is not None:
            member.host.packer.answered(effect.seq, effect.lost)

    def _leave(self, effect: ef.Leave, source: ev.Address) -> None:
        self.ends(source, self.at(source))

    def ends(self, address: ev.Address, member: Member) -> None:
        if member.computing is not None:
            self._break_off(member, member.computing)
            member.computing = None
        super().ends(address, member)
        self.groups.leave(address)

    @abstractmethod
    def shard_host(self, shard: int, snapshot: Snapshot | None) -> ShardHost:
        """A shard's tensors where all read them, as they begin or as the snapshot has them."""

    def _crash(self, address: ev.Address, member: Member) -> None:
        if self.replicas is not None and address[0] == "server":
            self.replicas.dies(address, member)
        super()._crash(address, member)

    # --- workers ------------------------------------------------------------------------------

    def to_worker(self, address: ev.Address, member: Member, event: Any, payload: Any) -> None:
        if type(event) is ev.ShardPulled:
            pulled = self._assemble(member, event, payload)
            if pulled is None:
                return
            event = pulled
        elif type(event) is ev.Computed or type(event) is ev.Overtaken:
            computing = member.computing
            if computing is None or computing.seq != event.seq:
                return  # it has come to its other end before
            if type(event) is ev.Overtaken:
                self._break_off(member, computing)
            else:
                member.counters.computed(
                    computing.epoch, computing.samples, computing.batches, computing.loss,
                    computing.seconds,
                )  # fmt: skip
            member.computing = None
            member.steps += 1
        elif type(event) is ev.Reduced:
            event = self.groups.hears(address, member, event, payload)
            if event is None:
                return
            member.counters.communicating_s += max(self.now - member.since, 0.0)
            member.since = max(self.now, member.since)
        self.handle(address, member, event)

    def _pull(self, effect: ef.Pull, source: ev.Address) -> None:
        member = self.at(source)
        if member.pull is None or member.pull.seq != effect.seq:
            self.settle(member)
            member.pull, member.parts, member.held = effect, {}, {}
        needs = effect.needs or (NO_NEED,) * self.shards
        for shard in effect.shards or range(self.shards):
            asked = ev.PullAsked(source[1], effect.seq, needs[shard])
            self.send(source, self.server_addresses[shard], asked)

    def _assemble(
        self, member: Member, event: ev.ShardPulled, payload: torch.Tensor | None
    ) -> ev.Pulled | None:
        pull = member.pull
        if pull is None or event.seq != pull.seq:
            return None
        self.events += 1
        member.parts[event.shard] = (event, payload)
        wanted = pull.shards or range(self.shards)
        if len(member.parts) < len(wanted):
            return None
        self.settle(member)
        member.pull = None
        parts = {s: member.parts[s] for s in wanted}
        if self.board is not None and not pull.fresh:
            if member.host is not None:
                member.host.pulled(fresh=False, buffers=None)
        else:
            if member.host is not None:
                self._take_parameters(member.host, pull, {s: p for s, (_, p) in parts.items()})
            member.counters.pulled_bytes += sum(self.pull_bytes[s] for s in wanted)
        reads = dict(enumerate(member.reads)) | {s: part.read for s, (part, _) in parts.items()}
        member.reads = tuple(reads[s] for s in range(self.shards))
        return ev.Pulled(pull.seq, member.reads, min(part.clock for part, _ in parts.values()))

    def _take_parameters(
        self, host: WorkerHost, pull: ef.Pull, tensors: dict[int, torch.Tensor | None]
    ) -> None:
        target = host.pull_target(fresh=pull.fresh)
        buffers = None
        for shard, tensor in tensors.items():
            assert tensor is not None
            key_range = self.job.ranges[shard]
            target[key_range.slice] = tensor[: key_range.size]
            if shard == 0:
                buffers = tensor[key_range.size :]
        if not pull.shards:
            host.pulled(fresh=pull.fresh, buffers=buffers)

    def _compute(self, effect: ef.Compute, source: ev.Address) -> None:
        member = self.at(source)
        self.settle(member)
        member.pull = None
        worker = source[1]
        batches = effect.stop - effect.first
        seconds = self._steps_s(worker, batches * self.steps_per_batch)
        samples = self.samples_in(effect.lease.fragment, effect.first, effect.stop)
        loss = 0.0
        update: torch.Tensor | None = None
        before_s = 0.0
        if self.board is not None:
            before_s = self.board.meet(effect, source, member, self.job.config.seed)
            member.counters.communicating_s += before_s
        if member.host is not None:
            update = torch.empty(self.job.layout.size)
            member.host.arrived([self.job.ranges[shard] for shard in effect.arrived])
            loss = member.host.compute(effect, update).loss
            member.host.adapter.release()
        member.slots[effect.seq] = update
        begins = self.now + before_s
        member.since = begins + seconds
        member.computing = computing = Computing(
            effect.seq, member.reads, begins, seconds, effect.lease.epoch, samples, batches, loss
        )
        done = ev.Computed(effect.seq, samples)
        self.later(before_s + seconds, source, done, member.incarnation)
        if self.stop_at is not None:
            self._begun_late(worker, computing, self.stop_at)

    def _steps_s(self, worker: int, steps: int) -> float:
        """Seconds that a worker needs for its next steps."""
        draw = self.compute[worker]
        if not self.fate.ever_slow(worker):
            return draw() if steps == 1 else sum(draw() for _ in range(steps))
        seconds = 0.0
        for _ in range(steps):
            seconds += draw() * self.fate.slowness(worker, self.now + seconds)
        return seconds

    def _break_off(self, member: Member, computing: Computing) -> None:
        """What it computes comes to nothing, but for the time that it took."""
        member.counters.computing_s += computing.spent_s(self.now)
        member.since = min(member.since, self.now)

    def settle(self, member: Member) -> None:
        """Account for a worker's time up to now."""
        now, since = self.now, member.since
        if now <= since:
            return
        member.since = now
        if member.pull is None:
            member.counters.waiting_s += now - since
        elif not member.held:
            member.counters.communicating_s += now - since
        else:
            waits_since = max(since, min(member.held.values()))
            member.counters.communicating_s += waits_since - since
            member.counters.waiting_s += now - waits_since

    def _hold(self, shard: int, pull: ev.PullAsked) -> None:
        member = self.workers[pull.worker]
        if member is not None and member.pull is not None and member.pull.seq == pull.seq:
            member.held.setdefault(shard, self.now)

    def _let_go(self, shard: int, effect: ef.SendParameters) -> None:
        member = self.workers[effect.worker]
        if member is not None and member.pull is not None and member.pull.seq == effect.seq:
            self.settle(member)
            member.held.pop(shard, None)

    def _follow(self, effect: ef.Follow, source: ev.Address) -> None:
        member = self.at(source)
        mean = member.slots[effect.seq]
        if member.host is not None and mean is not None:
            member.host.follow(mean.view(torch.float32), self.job.ranges)

    # --- servers ------------------------------------------------------------------------------

    def to_server(self, address: ev.Address, member: Member, event: Any, payload: Any) -> None:
        if type(event) is ev.Push:
            seconds = self.apply_time()
            member.counters.pushes += 1
            member.counters.applying_s += seconds
            ready = max(self.now, member.busy_until) + seconds
            if ready > self.now:
                member.busy_until = ready
                delay = ready - self.now
                self.later(delay, address, Served(event), member.incarnation, payload)
                return
        elif type(event) is Served:
            event = event.push
        elif type(event) is ev.PullAsked and event.need != NO_NEED:
            self._hold(address[1], event)
        elif type(event) is Stored:
            event = self.disks.written(address[1], event)
        member.steps += 1
        member.slots[0] = payload
        if type(event) is ev.Push and event.ranks > 1:
            member.pushed[event.worker] = payload
        if self.replicas is None:
            self.handle(address, member, event)
        else:
            self.replicas.handle(address, member, event, payload)

    def to_backup(self, address: ev.Address, member: Member, event: Any) -> None:
        assert self.replicas is not None
        self.replicas.to_backup(address[1], member, event)

    def _apply(self, effect: ef.Apply, source: ev.Address) -> None:
        member = self.at(source)
        host: ShardHost = member.host
        counters: ServerCounters = member.counters
        host.trace.write(effect.record)
        counters.applied(effect.push.worker, effect.record.staleness)
        if counters.first_update_s is None:
            counters.first_update_s = self.now
        push = member.slots[0]
        if push is not None:
            host.apply(effect, *self.unpacked(push, source[1]))
        if self.stop_at is not None:
            self._overtake(source, effect.record, self.stop_at)

    def _include(self, effect: ef.Include, source: ev.Address) -> None:
        member = self.at(source)
        member.host.trace.write(effect.record)
        member.counters.applied(effect.push.worker, effect.record.staleness)
        push = member.pushed.get(effect.push.worker)
        if push is not None:
            member.host.include(effect, self.form.buffers(push))

    def _gather(self, effect: ef.Gather, source: ev.Address) -> None:
        member = self.at(source)
        member.host.trace.write(effect.record)
        member.counters.applied(effect.push.worker, effect.record.staleness)
        push = member.slots[0]
        if push is not None:
            member.host.gather(effect, *self.unpacked(push, source[1]))

    def unpacked(self, push: torch.Tensor, shard: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A shard's part of a push, and the buffers."""
        return self.coders[shard].decode(self.form.part(push, shard)), self.form.buffers(push)

    def _commit(self, effect: ef.Commit, source: ev.Address) -> None:
        member = self.at(source)
        member.host.trace.write(effect.record)
        if member.counters.first_update_s is None:
            member.counters.first_update_s = self.now
        if self.real:
            member.host.commit(effect)
        if self.stop_at is not None:
            self._overtake(source, effect.record, self.stop_at)

    def _overtake(self, server: ev.Address, record: Record, limit: int) -> None:
        """A shard has a new version: tell the workers whose computations are too old for it now."""
        for number, worker in enumerate(self.workers):
            if worker is None or worker.computing is None:
                continue
            incarnation, version = worker.computing.reads[server[1]]
            if incarnation == record.incarnation and record.version - version == limit:
                self._stop(server, number, worker.computing, limit)

    def _begun_late(self, worker: int, computing: Computing, limit: int) -> None:
        """A computation begins: shards that are too far ahead already tell its worker at once."""
        for address, (incarnation, version) in zip(
            self.server_addresses, computing.reads, strict=True
        ):
            server = self.member(address)
            if server is None or not server.alive or server.incarnation != incarnation:
                continue
            staleness = server.machine.version - version
            if staleness >= limit:
                self._stop(address, worker, computing, staleness)

    def _stop(self, server: ev.Address, worker: int, computing: Computing, staleness: int) -> None:
        reason = f"staleness {staleness} on shard {server[1]}, limit {self.stop_at}"
        self.send(server, ("worker", worker), ev.Overtaken(computing.seq, reason))

    def _log(self, effect: ef.Log, source: ev.Address) -> None:
        member = self.at(source)
        member.host.trace.write(effect.record)
        if effect.record.kind == trace.DROPPED:
            member.counters.dropped += effect.record.samples

    def _send_parameters(self, effect: ef.SendParameters, source: ev.Address) -> None:
        payload = None
        shard = source[1]
        whole = self.board is None or self._begins_session(effect)
        if self.real and whole:
            payload = self.parameters[self.job.ranges[shard].slice].clone()
            if shard == 0 and self.job.layout.buffers_size:
                payload = torch.cat([payload, self.parameters[self.job.layout.parameters_size :]])
        message = ev.ShardPulled(shard, effect.seq, effect.read, effect.clock)
        if self.pulls_wait:
            self._let_go(shard, effect)
        to = ("worker", effect.worker)
        self.carry(source, to, message, payload, self.pull_bytes[shard] if whole else 0)

    def _begins_session(self, effect: ef.SendParameters) -> bool:
        member = self.workers[effect.worker]
        pull = None if member is None else member.pull
        return pull is not None and pull.seq == effect.seq and pull.fresh

    def _nothing(self, effect: ef.Effect, source: ev.Address) -> None:
        """Pulls pass through the server's machine here, and nobody waits for other answers."""
