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
from tardygrad.engines.replication import Heir, Replication, State
from tardygrad.engines.shard_host import ShardHost, TraceFile
from tardygrad.engines.shared_memory import Answer, arena_of, fence
from tardygrad.engines.slot_views import At, SlotViews
from tardygrad.engines.statistics import ServerCounters
from tardygrad.engines.stores import DirectoryStore
from tardygrad.errors import InvariantViolation
from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev
from tardygrad.protocol import trace
from tardygrad.protocol.trace import record_size

_IDLE_MS = 10
_LISTEN_EVERY_S = 0.005
_TORN_S = 0.2
_NAP_S = 0.00005
_NAP_MOST_S = 0.0005
_NAP_SHARE = 0.5
_NAP_SHARE_AWAITED = 0.05
_NAP_FOR_S = 0.02
_NO_SLOT = (-1, -1)
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
        process = ServerProcess(job, directory, link, counters, shard, incarnation, floor)
        link.starting = False
        process.run()

    return live("server", shard, incarnation, life)


class ServerProcess:
    """One server's life. ``heir``: it was a backup, and goes on from what it has."""

    def __init__(
        self, job: Job, directory: Path, link: Link, counters: ServerCounters, shard: int,
        incarnation: int, floor: int, heir: Heir | None = None,
    ) -> None:  # fmt: skip
        self.job, self.link, self.counters, self.shard = job, link, counters, shard
        self.incarnation, self.begins = incarnation, heir is None
        self.arena = arena_of(
            directory, job.layout, job.ranges, job.config.workers, job.method.outstanding,
            workers_max=job.config.workers_max, push_bytes=job.push_format.nbytes,
        )  # fmt: skip
        self.bell = Bell(directory, f"server-{shard}")
        self.ringer = Ringer(directory)
        assert job.run_directory is not None and job.trace_directory is not None
        self.store = DirectoryStore(job.run_directory, job.layout, job.ranges, run=job.run)
        self.where = job.ranges[shard].slice
        self.buffers_at = job.layout.parameters_size
        if heir is None:
            snapshot = self.store.newest(shard) if incarnation > 0 else None
            self.machine = job.server(shard, incarnation, floor, snapshot)
        else:
            snapshot, self.machine = Snapshot(0, heir.tensors, {}), heir.machine
        counters.consumed = self.machine.ledger.consumed
        self.trace = TraceFile(
            job.trace_directory / f"shard-{shard:03d}.trace", shard, len(job.ranges)
        )
        self.replication: Replication | None = None
        if job.config.replicas:
            self.replication = Replication(
                directory, shard, job.config.replicas, incarnation, self.ringer
            )
        self.views = SlotViews(self.arena, job.push_format, shard)
        self.stamp_words: list[int] = []
        self.seen: list[int] = []
        self._look_at_new_places()
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
        if heir is not None:
            self._inherit(heir)
        self.host = self._host(snapshot)
        if heir is not None:
            for at, answer in heir.state.answers.items():
                self._answer(at, answer)

    def _inherit(self, heir: Heir) -> None:
        """Take up what the predecessor had begun; then it is on record that this one goes on."""
        state = heir.state
        self.seen[: len(state.seen)], self.waiting = state.seen, state.waiting
        lacking, odd = divmod(
            state.trace_bytes - self.trace.size(), record_size(len(self.job.ranges))
        )
        if odd or not 0 <= lacking <= len(heir.records):
            raise InvariantViolation(
                f"shard {self.shard}: the trace has {self.trace.size()} bytes, and by what the "
                f"backup has it must have {state.trace_bytes}"
            )
        # What the predecessor decided last and did not live to write.
        for record in heir.records[len(heir.records) - lacking :]:
            self.trace.write(record)
        self._handle(ev.Promoted(self.incarnation))

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
        if self.begins:
            arena.publish_clock(shard, 0)
        machine = self.machine
        arena.end_write(shard, copy, self.incarnation, machine.version, machine.ledger.consumed)
        return host

    def _look_at_new_places(self) -> None:
        """Look at the slots of workers that have joined as well, from now on."""
        new = self.views.grow()
        self.stamp_words += [self.arena.geometry.slot(*at) // 8 for at in new]
        self.seen += [0] * len(new)

    def run(self) -> None:
        """Serve until the process is ended."""
        if self.begins:
            self._handle(ev.Started())
        while True:
            busy = self._serve_pushes()
            if self.replication is not None:
                self.replication.flush(self._give)
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
        if self.replication is not None and self.replication.log.wishes():
            state = State([*self.seen], dict(self.waiting), {}, self.trace.size(), 0)
            self.replication.fill(self.machine, self.host.image, state, self.writer)

    def _serve_pushes(self) -> bool:
        if not self.views.complete:
            self._look_at_new_places()
        words, seen, slots = self.arena.words, self.seen, self.views.all
        new = [
            (slots[i][0], words[at], i)
            for i, at in enumerate(self.stamp_words)
            if words[at] != seen[i]
        ]
        if not new:
            return False
        served = False
        # In the order in which each worker published them.
        for worker, stamp, i in sorted(new):
            at = slots[i]
            found = self.arena.descriptor(worker, at[1], stamp)
            if found is None and not self._is_torn(i, stamp):
                continue
            self.seen[i] = stamp
            self.current, self.stamp = at, stamp
            served = True
            if found is not None and not self._is_for_us(found[1]):
                # Its worker does not ask for this; a successor of it would.
                self._answer(at, _NOT_FOR_US._replace(stamp=stamp))
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
                self._answer(at, answer)
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
        new = any(words[at] != n for at, n in zip(self.stamp_words, self.seen, strict=True))
        if not new and (self.replication is None or not self.replication.due):
            for source, _ in self.poller.poll(_IDLE_MS):
                if source == self.bell.fileno():
                    self.bell.hush()
                else:
                    # Left unread it would end every poll at once.
                    self.listened = 0.0
        self.arena.set_sleeping(self.shard, False)

    def _handle(self, event: ev.Event) -> None:
        actions, now = self.actions, time.monotonic()
        if self.replication is not None:
            is_push = type(event) is ev.Push
            at, stamp = (self.current, self.stamp) if is_push else (_NO_SLOT, 0)
            self.replication.decided(event, now, at, stamp)
        for effect in self.machine.handle(event, now):
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
        self._answer(at, Answer(stamp, message.outcome, message.next, message.reason))

    def _answer(self, at: At, answer: Answer) -> None:
        if self.replication is None or not self.replication.withhold(at, answer):
            self._give(at, answer)

    def _give(self, at: At, answer: Answer) -> None:
        worker, slot = at
        self.arena.answer(worker, slot, self.shard, answer)
        if self.arena.worker_sleeps(worker):
            self.ringer.ring(f"worker-{worker}")

    def _apply(self, effect: ef.Apply) -> None:
        self.trace.write(effect.record)
        update = self.views.update(self.current)
        self._write(effect.record, lambda out: self.host.apply(effect, *update, out=out))
        self.counters.applied(effect.push.worker, effect.record.staleness)

    def _include(self, effect: ef.Include) -> None:
        self.trace.write(effect.record)
        at, _ = self.waiting[(effect.push.worker, effect.push.seq)]
        self.host.include(effect, self.views.buffers(at))
        self.counters.applied(effect.push.worker, effect.record.staleness)

    def _gather(self, effect: ef.Gather) -> None:
        self.trace.write(effect.record)
        self.host.gather(effect, *self.views.update(self.current))
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
        for worker in range(self.views.workers):
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
