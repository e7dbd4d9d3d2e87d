"""A worker's process: interprets the worker machine's effects over shared memory.

One thread does everything but the signs of life. It computes straight into a push slot, so that a
push is one pass over the gradient, and looks for answers and messages between two exchanges.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zmq

from tardygrad.engines.base import Job
from tardygrad.engines.bells import Bell, Ringer
from tardygrad.engines.child import Link, live, open_source
from tardygrad.engines.entries import EntryLog
from tardygrad.engines.gate import REPORT
from tardygrad.engines.gloo import CONNECTING_S, Ring
from tardygrad.engines.peers import Peer
from tardygrad.engines.shared_board import SharedBoard
from tardygrad.engines.shared_memory import Arena, arena_of
from tardygrad.engines.statistics import WorkerCounters
from tardygrad.engines.stores import DirectoryStore
from tardygrad.engines.worker_host import WorkerHost, batch_seed
from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev
from tardygrad.protocol.residuals import Residual
from tardygrad.storage.traces import MEETINGS, RESIDUALS

_IDLE_MS = 10
_LISTEN_EVERY_S = 0.01
_READ_PATIENCE_S = 0.05


def main(worker: int, incarnation: int) -> int:
    """Play a worker until it may leave; returns the exit status."""
    os.environ["TARDYGRAD_WORKER"] = str(worker)

    def life(link: Link, job: Job, directory: Path) -> None:
        counters = WorkerCounters()
        link.beat(job.config.failure.heartbeat_s, lambda: counters.batches, counters.report)
        # torch is seeded for every batch; what draws from numpy must at least differ by worker.
        np.random.seed(batch_seed(job.config.seed, (incarnation << 16) + worker) & 0xFFFFFFFF)
        # A worker that cannot even begin would fail the same way again.
        link.starting = True
        source = open_source(job, directory, "train")
        store = _store(job)
        packer = job.packer(worker, incarnation, store, _residual_log(job))
        host = WorkerHost(job.method, job.build_adapter(), source, job.plan, packer)
        link.starting = False
        _WorkerProcess(job, directory, link, host, counters, worker, incarnation, store).run()
        link.send_data(REPORT, counters.report())

    return live("worker", worker, incarnation, life)


def _store(job: Job) -> DirectoryStore:
    assert job.run_directory is not None
    return DirectoryStore(job.run_directory, job.layout, job.ranges, run=job.run)


def _residual_log(job: Job) -> Callable[[Residual], None]:
    assert job.trace_directory is not None
    if not job.method.codec.remembers:
        return _nothing
    return EntryLog(job.trace_directory / RESIDUALS).write


def _peer(job: Job, directory: Path, worker: int) -> Peer | None:
    if not job.method.uses_peers:
        return None
    assert job.trace_directory is not None
    board = SharedBoard(directory, job.layout.parameters_size, job.config.workers_max)
    log = EntryLog(job.trace_directory / MEETINGS).write
    return Peer(board, worker, job.config.workers_max, job.config.seed, log)


def _nothing(entry: Residual) -> None:
    """Without a memory nothing happens to it."""


class _Slot:
    """What was computed lies in ``update``; with a codec it is packed into ``push`` for others."""

    __slots__ = ("packed", "published_at", "push", "seq", "stamp", "update", "waiting")

    def __init__(self, update: torch.Tensor, push: torch.Tensor, stamp: int) -> None:
        self.update = update
        self.push = push
        self.packed = False
        self.stamp = stamp
        self.seq = 0
        self.waiting: list[int] = []
        # Only while nothing was computed since.
        self.published_at = 0.0


class _WorkerProcess:
    def __init__(
        self, job: Job, directory: Path, link: Link, host: WorkerHost, counters: WorkerCounters,
        worker: int, incarnation: int, store: DirectoryStore,
    ) -> None:  # fmt: skip
        self.store = store
        self.job, self.link, self.host, self.counters = job, link, host, counters
        self.worker = worker
        self.machine = job.worker(worker, incarnation)
        settings = self.machine.settings
        self.arena: Arena = arena_of(
            directory, job.layout, job.ranges, job.config.workers, job.method.outstanding,
            workers_max=job.config.workers_max, push_bytes=job.push_format.nbytes,
        )  # fmt: skip
        self.bell = Bell(directory, f"worker-{worker}")
        self.ringer = Ringer(directory)
        self.shards = range(len(job.ranges))
        self.buffers = torch.empty(job.layout.buffers_size)
        self.parts: dict[bool, list[list[tuple[torch.Tensor, list[torch.Tensor]]]]] = {}
        self.names = [f"server-{s}" for s in range(len(job.ranges))]
        size = job.layout.parameters_size
        self.lent = [(c[:size], c[size:]) for c in self.arena.copies]
        # A shard of its own is whole in every copy: the model can compute with it in place.
        self.borrows = (
            len(job.ranges) == 1
            and self.arena.geometry.copies > 1
            and not settings.follows
            and host.borrow(self.lent[0][0], buffers=None)
        )
        self.packer = host.packer
        self.slots = self._slots(settings.slots)
        self.next_stamp = 1 + max(
            self.arena.stamp(worker, i) for i in range(self.arena.geometry.slots)
        )
        self.used: dict[int, int] = {}
        self.free = list(range(len(self.slots)))
        self.directory = directory
        self.peer = _peer(job, directory, worker)
        self.ring: Ring | None = None
        self.joining = False
        self.pull: ef.Pull | None = None
        self.pulled_seq = 0
        self.reads: tuple[ev.Read, ...] = ()
        self.stop_at = job.method.staleness.stop_at
        self.events: deque[ev.Event] = deque()
        self.gone = False
        self.began = time.monotonic()
        self.listened = 0.0
        self.ticked = 0.0
        self.pull_bytes = [job.pull_bytes(shard) for shard in self.shards]
        self.poller = zmq.Poller()
        self.poller.register(link.socket, zmq.POLLIN)
        self.poller.register(self.bell.fileno(), zmq.POLLIN)
        self.actions: dict[type, Callable[[Any], None]] = {
            ef.Send: self._send,
            ef.Pull: self._pull,
            ef.Compute: self._compute,
            ef.JoinGroup: self._join_group,
            ef.Reduce: self._reduce,
            ef.Follow: self._follow,
            ef.LeaveGroup: self._leave_group,
            ef.Publish: self._publish,
            ef.Release: self._release,
            ef.Leave: self._leave,
        }

    def _slots(self, count: int) -> list[_Slot]:
        own = None if self.packer is None else torch.zeros(self.job.layout.size)
        return [
            _Slot(
                self.arena.update(self.worker, i) if own is None else own,
                self.arena.push(self.worker, i),
                self.arena.stamp(self.worker, i),
            )
            for i in range(count)
        ]

    def run(self) -> None:
        """Work until the machine leaves."""
        self._wait_for_predecessor()
        self._handle(ev.Started())
        while not self.gone:
            if self.pull is not None:
                self._try_pull()
            elif self.joining:
                self._try_join()
            if not self.events:
                self._collect()
            if self.events:
                self._handle(self.events.popleft())
            elif not self.gone:
                self._wait()

    def _wait_for_predecessor(self) -> None:
        # What a dead predecessor published must be answered before its slots are written again.
        g = self.arena.geometry
        for slot in range(g.slots):
            stamp = self.arena.stamp(self.worker, slot)
            for shard in range(g.shards):
                while stamp and self.arena.answered(self.worker, slot, shard) != stamp:
                    self.ringer.ring(self.names[shard])
                    time.sleep(0.002)

    def _handle(self, event: ev.Event) -> None:
        actions = self.actions
        effects = self.machine.handle(event, time.monotonic())
        # Before a computation, which takes its time.
        self.link.clock = (self.machine.session, self.machine.reached_clock)
        for effect in effects:
            actions[type(effect)](effect)

    # --- what comes in ------------------------------------------------------------------------

    def _collect(self) -> None:
        for index in self.used.values():
            slot = self.slots[index]
            if slot.waiting:
                self._collect_answers(index, slot)
        now = time.monotonic()
        if now - self.listened >= _LISTEN_EVERY_S:
            self.listened = now
            self.events.extend(self.link.receive())
            if now - self.ticked >= self.job.tick_s:
                self.ticked = now
                self.events.append(ev.Tick())

    def _collect_answers(self, index: int, slot: _Slot) -> None:
        for shard in slot.waiting:
            if self.arena.answered(self.worker, index, shard) == slot.stamp:
                slot.waiting = [s for s in slot.waiting if s != shard]
                if slot.published_at and not slot.waiting:
                    self.counters.answers += 1
                    self.counters.answering_s += time.monotonic() - slot.published_at
                answer = self.arena.read_answer(self.worker, index, shard)
                self.events.append(
                    ev.Acked(
                        shard, self.machine.session, slot.seq, answer.outcome, answer.next,
                        answer.reason,
                    )
                )  # fmt: skip

    def _wait(self) -> None:
        began = time.monotonic()
        self.arena.set_worker_sleeping(self.worker, True)
        # Whatever came while the flag was being set rang no bell.
        self.listened = 0.0
        self._collect()
        if not self.events and not self._may_read():
            for source, _ in self.poller.poll(_IDLE_MS):
                if source == self.bell.fileno():
                    self.bell.hush()
                self.listened = 0.0
        self.arena.set_worker_sleeping(self.worker, False)
        self.counters.waiting_s += time.monotonic() - began

    # --- effects ------------------------------------------------------------------------------

    def _send(self, effect: ef.Send) -> None:
        if type(effect.message) is ev.WorkerLeft:
            # Once that is told, the last checkpoint may be written.
            self.job.leave(self.worker, self.machine.incarnation, self.packer, self.store)
        self.link.send(effect.message)

    def _pull(self, effect: ef.Pull) -> None:
        # Asked again because its report still waits in the queue: it is done all the same.
        if effect.seq != self.pulled_seq:
            self.pull = effect

    def _may_read(self) -> bool:
        if self.pull is None:
            return False
        needs = self.pull.needs
        wanted = (self.pull.shards or self.shards) if needs else ()
        return all(self.arena.clock(s) >= needs[s] for s in wanted)

    def _try_pull(self) -> None:
        pull = self.pull
        if pull is None or not self._may_read():
            return
        began = time.monotonic()
        # Read before the parameters: a clock that is too old only makes the worker more patient.
        wanted = pull.shards or self.shards
        clock = min(map(self.arena.clock, wanted)) if pull.needs else 0
        reads = dict(enumerate(self.reads))
        if self.peer is not None and not pull.fresh:
            self.host.pulled(fresh=False, buffers=None)
            self._pulled(pull, tuple(map(self.arena.version, self.shards)), clock, began, 0)
            return
        size = sum(self.pull_bytes[shard] for shard in wanted)
        if self.borrows:
            pinned = self.arena.pin(0, self.worker)
            if pinned is None:
                return
            self._borrow(pinned[0], fresh=pull.fresh)
            self._pulled(pull, (pinned[1],), clock, began, size)
            return
        parts = self._parts(fresh=pull.fresh)
        for shard in wanted:
            read = self.arena.read(shard, parts[shard], self.worker, _READ_PATIENCE_S)
            if read is None:
                return
            reads[shard] = read
        if not pull.shards:
            self.host.pulled(fresh=pull.fresh, buffers=self.buffers)
        self._pulled(pull, tuple(reads[s] for s in self.shards), clock, began, size)

    def _pulled(
        self, pull: ef.Pull, reads: tuple[ev.Read, ...], clock: int, began: float, size: int
    ) -> None:
        self.pull, self.pulled_seq = None, pull.seq
        self.reads = reads
        self.counters.communicating_s += time.monotonic() - began
        self.counters.pulled_bytes += size
        self.events.append(ev.Pulled(pull.seq, reads, clock))

    def _borrow(self, copy: int, *, fresh: bool) -> None:
        parameters, buffers = self.lent[copy]
        self.host.borrow(parameters, buffers=buffers if fresh else None)

    def _parts(self, *, fresh: bool) -> list[list[tuple[torch.Tensor, list[torch.Tensor]]]]:
        """For each shard what to copy from shared memory where; views are made once."""
        if fresh not in self.parts:
            target = self.host.pull_target(fresh=fresh)
            copies = self.arena.copies
            self.parts[fresh] = [
                [(target[r.slice], [c[r.slice] for c in copies])] for r in self.job.ranges
            ]
            if fresh and self.buffers.numel():
                size = self.job.layout.parameters_size
                self.parts[fresh][0].append((self.buffers, [c[size:] for c in copies]))
        return self.parts[fresh]

    def _compute(self, effect: ef.Compute) -> None:
        self.pull = None
        if effect.seq not in self.used:
            self.used[effect.seq] = self.free.pop()
        slot = self.slots[self.used[effect.seq]]
        slot.seq, slot.waiting, slot.packed = effect.seq, [], False
        for other in self.slots:
            other.published_at = 0.0
        if self.peer is not None:
            self._meet(self.peer, effect)
        began = time.monotonic()
        stops = None if self.stop_at is None else lambda: bool(self._too_stale())
        self.host.arrived([self.job.ranges[shard] for shard in effect.arrived])
        outcome = self.host.compute(effect, slot.update, stops)
        now = time.monotonic()
        self.counters.elapsed_s = now - self.began
        lease, done = effect.lease, effect.first + outcome.batches
        samples = self.job.plan.samples_in(lease.fragment, effect.first, done)
        self.counters.computed(lease.epoch, samples, outcome.batches, outcome.loss, now - began)
        # A shard that was too far ahead may be restored by now: what is unfinished stays so.
        reason = self._too_stale() or ("" if done == effect.stop else "a shard was too far ahead")
        ended = ev.Overtaken(effect.seq, reason) if reason else ev.Computed(effect.seq, samples)
        self.events.append(ended)

    def _meet(self, peer: Peer, effect: ef.Compute) -> None:
        began = time.monotonic()
        if peer.meet(effect, self.reads, self.host.replica) is not None:
            self.counters.met(4 * self.job.layout.parameters_size)
        self.counters.communicating_s += time.monotonic() - began

    def _too_stale(self) -> str:
        """Why a shard would refuse what is computed from the newest reads; empty if none would."""
        if self.stop_at is None:
            return ""
        for shard, (incarnation, version) in enumerate(self.reads):
            alive, newest = self.arena.version(shard)
            if alive == incarnation and newest - version >= self.stop_at:
                return f"staleness {newest - version} on shard {shard}, limit {self.stop_at}"
        return ""

    def _join_group(self, effect: ef.JoinGroup) -> None:
        size = self.job.layout.parameters_size
        patience_s = min(self.job.config.failure.lease_s, CONNECTING_S)
        self.ring = Ring(self.directory, effect.group, size, patience_s)
        self.joining = True

    def _try_join(self) -> None:
        ring = self.ring
        if ring is None or not ring.complete():
            return
        self.joining = False
        self.events.append(ev.Joined(ring.group.generation, ring.connect()))

    def _reduce(self, effect: ef.Reduce) -> None:
        assert self.ring is not None
        began = time.monotonic()
        update = self.slots[self.used[effect.seq]].update[: self.job.layout.parameters_size]
        self.events.append(ev.Reduced(effect.seq, self.ring.average(update, effect.samples)))
        self.counters.communicating_s += time.monotonic() - began

    def _follow(self, effect: ef.Follow) -> None:
        began = time.monotonic()
        self.host.follow(self.slots[self.used[effect.seq]].update, self.job.ranges)
        self.counters.communicating_s += time.monotonic() - began

    def _leave_group(self, effect: ef.LeaveGroup) -> None:
        self.ring, self.joining = None, False

    def _publish(self, effect: ef.Publish) -> None:
        began = time.monotonic()
        index = self.used[effect.push.seq]
        slot = self.slots[index]
        if self.packer is not None and not slot.packed:
            self.packer.pack(effect.push.seq, slot.update, slot.push, effect.shards)
            slot.packed = True
        slot.stamp = self.next_stamp
        self.next_stamp += 1
        slot.waiting = sorted({*slot.waiting, *effect.shards}) if slot.waiting else [*effect.shards]
        slot.published_at = began
        self.arena.publish(index, slot.stamp, effect.push, effect.shards[0])
        for shard in effect.shards:
            if self.arena.sleeps(shard):
                self.ringer.ring(self.names[shard])
        self.counters.pushed(self.job.push_format, effect.shards)
        self.counters.communicating_s += time.monotonic() - began

    def _release(self, effect: ef.Release) -> None:
        self.free.append(self.used.pop(effect.seq))
        if self.packer is not None:
            self.packer.answered(effect.seq, effect.lost)

    def _leave(self, effect: ef.Leave) -> None:
        self.gone = True
