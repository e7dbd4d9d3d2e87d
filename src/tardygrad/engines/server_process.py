"""A server's process: interprets the server machine's effects over shared memory.

It looks at every slot's stamp, handles what is new in the order in which each worker published it,
and sleeps when there is nothing. Snapshots are copied at once and written by a thread, so that
updates go on meanwhile.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import zmq

from tardygrad.engines.base import Job, Snapshot, Tensors
from tardygrad.engines.bells import Bell, Ringer
from tardygrad.engines.child import Link, ask_for_short_slices, explain, live
from tardygrad.engines.shard_host import ShardHost, TraceFile
from tardygrad.engines.shared_memory import Answer, arena_of, fence
from tardygrad.engines.statistics import ServerCounters
from tardygrad.engines.stores import DirectoryStore
from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev
from tardygrad.protocol import trace

_IDLE_MS = 10
_LISTEN_EVERY_S = 0.005
_TORN_S = 0.2
_NAP_S = 0.00005
_NAP_MOST_S = 0.0005
_NAP_SHARE = 0.5
_NAP_SHARE_AWAITED = 0.05
_NAP_FOR_S = 0.02
_NOT_FOR_US = Answer(0, ev.DUPLICATE, 0, "it is for other shards")


def main(shard: int, incarnation: int, floor: int) -> int:
    """Play a server until the run ends; returns the exit status."""

    def life(link: Link, job: Job, directory: Path) -> None:
        ask_for_short_slices()
        counters = ServerCounters()
        # What the run's first server cannot begin with, its successors cannot either.
        link.starting = incarnation == job.generation << 10
        # To read and check a large snapshot takes time: it lives meanwhile.
        link.beat(job.config.failure.heartbeat_s, lambda: counters.updates, counters.report)
        process = _ServerProcess(job, directory, link, counters, shard, incarnation, floor)
        link.starting = False
        process.run()

    return live("server", shard, incarnation, life)


class _ServerProcess:
    def __init__(
        self, job: Job, directory: Path, link: Link, counters: ServerCounters, shard: int,
        incarnation: int, floor: int,
    ) -> None:  # fmt: skip
        self.job, self.link, self.counters, self.shard = job, link, counters, shard
        self.incarnation = incarnation
        self.arena = arena_of(
            directory, job.layout, job.ranges, job.config.workers, job.method.outstanding,
            push_bytes=job.push_format.nbytes,
        )  # fmt: skip
        self.bell = Bell(directory, f"server-{shard}")
        self.ringer = Ringer(directory)
        assert job.run_directory is not None and job.trace_directory is not None
        self.store = DirectoryStore(job.run_directory, job.layout, job.ranges, run=job.run)
        self.where = job.ranges[shard].slice
        self.buffers_at = job.layout.parameters_size
        snapshot = self.store.newest(shard) if incarnation > 0 else None
        self.machine = job.server(shard, incarnation, floor, snapshot)
        counters.consumed = self.machine.ledger.consumed
        self.trace = TraceFile(
            job.trace_directory / f"shard-{shard:03d}.trace", shard, len(job.ranges)
        )
        self.host = self._host(snapshot)
        g = self.arena.geometry
        self.slots = [(w, s) for w in range(g.workers) for s in range(g.slots)]
        form = job.push_format
        pushes = {at: self.arena.push(*at) for at in self.slots}
        self.parts = {
            at: (form.part(push, shard), form.buffers(push)) for at, push in pushes.items()
        }
        self.coder = form.coder(shard)
        self.updates: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        if form.codec.is_plain:
            self.updates = {at: (self.coder.decode(p), b) for at, (p, b) in self.parts.items()}
        self.stamp_words = [g.slot(*at) // 8 for at in self.slots]
        self.seen = [0] * len(self.slots)
        self.current: tuple[int, int] = (0, 0)
        self.stamp = 0
        # Parts of a sum are answered when the last one is there: where they lie, and their stamps.
        self.waiting: dict[tuple[int, int], tuple[tuple[int, int], int]] = {}
        self.busy_at = time.monotonic()
        self.interval = 0.0
        # A worker that overlaps its pushes with computation has time for the answer.
        waits = job.method.workers_wait and not job.method.follows
        overlaps = job.method.in_flight > 0 and not waits
        self.nap_share = _NAP_SHARE if overlaps else _NAP_SHARE_AWAITED
        self.unreadable: dict[tuple[int, int], float] = {}
        self.writer = ThreadPoolExecutor(max_workers=1)
        self.written: deque[ev.Event] = deque()
        self.listened = self.ticked = 0.0
        self.poller = zmq.Poller()
        self.poller.register(link.socket, zmq.POLLIN)
        self.poller.register(self.bell.fileno(), zmq.POLLIN)
        self.actions: dict[type, Callable[[Any], None]] = {
            ef.Send: self._send,
            ef.Apply: self._apply,
            ef.Include: self._include,
            ef.Gather: self._gather,
            ef.Commit: self._commit,
            ef.Log: self._log,
            ef.PublishClock: self._publish_clock,
            ef.SaveSnapshot: self._save_snapshot,
        }

    def _host(self, snapshot: Snapshot | None) -> ShardHost:
        """Put the shard's state into shared memory, whatever a predecessor left there."""
        job, arena, shard = self.job, self.arena, self.shard
        copy = arena.begin_write(shard)
        initial = job.initial
        if arena.geometry.copies > 1:
            # Several copies: the shard itself lives here, where the processor's cache keeps it.
            initial = job.initial.clone()
        else:
            arena.copies[0][self.where].copy_(initial[self.where])
            if shard == 0:
                arena.copies[0][self.buffers_at :].copy_(initial[self.buffers_at :])
            initial = arena.copies[0]
        buffers = initial[self.buffers_at :] if shard == 0 else None
        host = ShardHost(job.method, initial[self.where], buffers, self.trace)
        if snapshot is not None:
            host.restore(snapshot.tensors, same_kind=snapshot.is_of(job.method))
        self.targets = [(c[self.where], c[self.buffers_at :]) for c in arena.copies]
        if arena.geometry.copies > 1:
            parameters, mean = self.targets[copy]
            parameters.copy_(host.parameters)
            if host.buffers is not None and mean.numel():
                mean.copy_(host.buffers)
        arena.publish_clock(shard, 0)
        machine = self.machine
        arena.end_write(shard, copy, self.incarnation, machine.version, machine.ledger.consumed)
        return host

    def run(self) -> None:
        """Serve until the process is ended."""
        self._handle(ev.Started())
        while True:
            busy = self._serve_pushes()
            now = time.monotonic()
            if busy:
                self.interval = 0.9 * self.interval + 0.1 * (now - self.busy_at)
                self.busy_at = now
            self._listen(now)
            if not busy:
                self._sleep()

    def _listen(self, now: float) -> None:
        if now - self.listened < _LISTEN_EVERY_S:
            return
        self.listened = now
        for message in self.link.receive():
            self._handle(message)
        while self.written:
            self._handle(self.written.popleft())
        if now - self.ticked >= self.job.tick_s:
            self.ticked = now
            self._handle(ev.Tick())

    def _serve_pushes(self) -> bool:
        words, seen = self.arena.words, self.seen
        new = [
            (self.slots[i][0], words[at], i)
            for i, at in enumerate(self.stamp_words)
            if words[at] != seen[i]
        ]
        if not new:
            return False
        served = False
        # In the order in which each worker published them.
        for worker, stamp, i in sorted(new):
            at = self.slots[i]
            found = self.arena.descriptor(worker, at[1], stamp)
            if found is None and not self._is_torn(i, stamp):
                continue
            self.seen[i] = stamp
            self.current, self.stamp = at, stamp
            served = True
            if found is not None and not self._is_for_us(found[1]):
                # Its worker does not ask for this; a successor of it would.
                self.arena.answer(worker, at[1], self.shard, _NOT_FOR_US._replace(stamp=stamp))
            elif found is not None:
                push = found[0]
                if push.ranks > 1:
                    self.waiting[(worker, push.seq)] = (at, stamp)
                began = time.monotonic()
                self._handle(push)
                self.counters.pushes += 1
                self.counters.applying_s += time.monotonic() - began
            else:
                answer = Answer(stamp, ev.REFUSED, 0, "its worker died while publishing it")
                self.arena.answer(worker, at[1], self.shard, answer)
        return served

    def _is_for_us(self, shard: int) -> bool:
        """Whether a push for that shard is for this one as well."""
        turns = self.job.method.turns
        return turns is None or turns.stripe(shard) == turns.stripe(self.shard)

    def _is_torn(self, i: int, stamp: int) -> bool:
        # Being rewritten takes microseconds; what stays unreadable was left so by a dead worker.
        first = self.unreadable.setdefault((i, stamp), time.monotonic())
        return time.monotonic() - first > _TORN_S

    def _sleep(self) -> None:
        # While pushes come fast, short naps: to be woken costs the worker more than naps cost here.
        nap_s = self.nap_share * self.interval
        if nap_s <= _NAP_MOST_S and time.monotonic() - self.busy_at < _NAP_FOR_S:
            time.sleep(max(nap_s, _NAP_S))
            return
        self.arena.set_sleeping(self.shard, True)
        fence()
        words = self.arena.words
        if all(words[at] == n for at, n in zip(self.stamp_words, self.seen, strict=True)):
            for source, _ in self.poller.poll(_IDLE_MS):
                if source == self.bell.fileno():
                    self.bell.hush()
                else:
                    # Left unread it would end every poll at once.
                    self.listened = 0.0
        self.arena.set_sleeping(self.shard, False)

    def _handle(self, event: ev.Event) -> None:
        actions = self.actions
        for effect in self.machine.handle(event, time.monotonic()):
            actions[type(effect)](effect)

    # --- effects ------------------------------------------------------------------------------

    def _send(self, effect: ef.Send) -> None:
        message = effect.message
        if type(message) is not ev.Acked:
            self.link.send(message)
            return
        at, stamp = self.current, self.stamp
        if self.waiting:
            at, stamp = self.waiting.pop((effect.to[1], message.seq), (at, stamp))
        worker, slot = at
        answer = Answer(stamp, message.outcome, message.next, message.reason)
        self.arena.answer(worker, slot, self.shard, answer)
        if self.arena.worker_sleeps(worker):
            self.ringer.ring(f"worker-{worker}")

    def _update(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The update at hand and its buffers; without a codec the slot's own memory."""
        found = self.updates.get(self.current)
        if found is None:
            part, buffers = self.parts[self.current]
            found = self.coder.decode(part), buffers
        return found

    def _apply(self, effect: ef.Apply) -> None:
        self.trace.write(effect.record)
        update = self._update()
        self._write(effect.record, lambda out: self.host.apply(effect, *update, out=out))
        self.counters.applied(effect.push.worker, effect.record.staleness)

    def _include(self, effect: ef.Include) -> None:
        self.trace.write(effect.record)
        at, _ = self.waiting[(effect.push.worker, effect.push.seq)]
        self.host.include(effect, self.parts[at][1])
        self.counters.applied(effect.push.worker, effect.record.staleness)

    def _gather(self, effect: ef.Gather) -> None:
        self.trace.write(effect.record)
        self.host.gather(effect, *self._update())
        self.counters.consumed = self.machine.ledger.consumed
        self.counters.applied(effect.push.worker, effect.record.staleness)

    def _commit(self, effect: ef.Commit) -> None:
        self.trace.write(effect.record)
        self._write(effect.record, lambda out: self.host.commit(effect, out=out))

    def _write(self, record: trace.Record, change: Callable[[torch.Tensor | None], object]) -> None:
        arena, shard, host = self.arena, self.shard, self.host
        copy = arena.begin_write(shard)
        if arena.geometry.copies == 1:
            change(None)
        else:
            parameters, buffers = self.targets[copy]
            change(parameters)
            if host.buffers is not None and buffers.numel():
                buffers.copy_(host.buffers)
        counters, consumed = self.counters, self.machine.ledger.consumed
        arena.end_write(shard, copy, self.incarnation, record.version, consumed)
        counters.consumed = consumed
        if counters.first_update_s is None:
            counters.first_update_s = time.monotonic()

    def _log(self, effect: ef.Log) -> None:
        self.trace.write(effect.record)
        if effect.record.kind == trace.DROPPED:
            self.counters.dropped += effect.record.samples
            self.counters.consumed = self.machine.ledger.consumed

    def _publish_clock(self, effect: ef.PublishClock) -> None:
        self.arena.publish_clock(self.shard, effect.clock)
        for worker in range(self.arena.geometry.workers):
            if self.arena.worker_sleeps(worker):
                self.ringer.ring(f"worker-{worker}")

    def _save_snapshot(self, effect: ef.SaveSnapshot) -> None:
        tensors = self.host.snapshot()

        def write() -> None:
            self.written.append(keep_snapshot(effect, self.shard, tensors, self.trace, self.store))
            self.ringer.ring(f"server-{self.shard}")

        self.writer.submit(write)


def keep_snapshot(
    effect: ef.SaveSnapshot, shard: int, tensors: Tensors, trace_file: TraceFile,
    store: DirectoryStore,
) -> ev.SnapshotWritten:  # fmt: skip
    """Write a snapshot, the trace up to it first. Whatever goes wrong is said: it is awaited."""
    state = {"version": effect.version, **effect.state}
    file, error = ("", 0, ""), ""
    try:
        trace_file.sync()
        file = store.write(effect.step, shard, tensors, state)
    except Exception as failure:
        error = explain(failure)
    return ev.SnapshotWritten(effect.step, effect.version, effect.samples, file, error)
