"""A backup's process: follows its server's log over shared memory, and may become the server.

It is filled once with a copy of all that its server is. From then on it handles what the server has
handled: the same events with the same times, and the same bytes, which lie in the workers' slots
until it says that it is done with them. Its parameters are its own; nothing that others read is
written. When it is promoted it does what is left in the log, and goes on as the shard's server.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import zmq

from tardygrad.engines.base import Job
from tardygrad.engines.bells import Bell, Ringer
from tardygrad.engines.child import Link, ask_for_short_slices, live
from tardygrad.engines.replication import Heir, State, fill_file
from tardygrad.engines.server_log import ServerLog, decode
from tardygrad.engines.server_process import ServerProcess
from tardygrad.engines.shard_host import NoTrace, ShardHost
from tardygrad.engines.shared_memory import Answer, arena_of, fence
from tardygrad.engines.slot_views import At, SlotViews
from tardygrad.engines.statistics import ServerCounters
from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev
from tardygrad.protocol.trace import Record, record_size

_IDLE_MS = 10
_LISTEN_EVERY_S = 0.005
_NAP_S = 0.00005
_NAP_MOST_S = 0.0005
_NAP_FOR_S = 0.02
_NAP_SHARE = 0.2


def main(number: int, shard: int, incarnation: int) -> int:
    """Play a backup, and the server that it may become; returns the exit status."""

    def life(link: Link, job: Job, directory: Path) -> None:
        ask_for_short_slices()
        counters = ServerCounters()
        backup = _Backup(job, directory, link, number, shard, incarnation)
        heartbeat_s = job.config.failure.heartbeat_s
        link.beat(heartbeat_s, lambda: backup.steps() or counters.updates, counters.report)
        promoted, heir = backup.run()
        link.become("server", shard, promoted)
        server = ServerProcess(job, directory, link, counters, shard, promoted, 0, heir)
        server.run()

    return live("backup", number, incarnation, life)


class _Backup:
    def __init__(
        self, job: Job, directory: Path, link: Link, number: int, shard: int, incarnation: int
    ) -> None:
        self.job, self.directory, self.link, self.shard = job, directory, link, shard
        self.incarnation, self.server = incarnation, f"server-{shard}"
        self.place = number % job.config.replicas
        self.log = ServerLog(directory, shard, job.config.replicas)
        self.arena = arena_of(
            directory, job.layout, job.ranges, job.config.workers, job.method.outstanding,
            workers_max=job.config.workers_max, push_bytes=job.push_format.nbytes,
        )  # fmt: skip
        self.views = SlotViews(self.arena, job.push_format, shard)
        self.bell = Bell(directory, f"backup-{number}")
        self.ringer = Ringer(directory)
        self.poller = zmq.Poller()
        self.poller.register(link.socket, zmq.POLLIN)
        self.poller.register(self.bell.fileno(), zmq.POLLIN)
        self.machine = job.server(shard, 0, 0)
        where, buffers_at = job.ranges[shard].slice, job.layout.parameters_size
        buffers = None if shard else job.initial[buffers_at:].clone()
        self.host = ShardHost(job.method, job.initial[where].clone(), buffers, NoTrace())
        self.state = State([], {}, {}, 0, 0)
        self.records: list[Record] = []
        self.record_bytes = record_size(len(job.ranges))
        self.entries = 0
        self.interval = 0.0
        self.promoted: int | None = None
        self.looked = self.listened = self.busy_at = time.monotonic()
        self.current: tuple[At, int] = ((-1, -1), 0)
        self.actions: dict[type, Callable[[Any], None]] = {
            ef.Apply: self._apply,
            ef.Include: self._include,
            ef.Gather: self._gather,
            ef.Commit: self._commit,
            ef.Log: lambda effect: self._recorded(effect.record),
            ef.Send: self._send,
        }

    def steps(self) -> int:
        """What its signs of life count: 0 until it has everything, and when it is no backup.

        Whoever is stuck gives none: its server waits for it.
        """
        patience_s = self.job.config.failure.lease_s
        while self.promoted is None and self.entries:
            if time.monotonic() - self.looked < patience_s:
                return self.entries
            time.sleep(_LISTEN_EVERY_S)
        return 0

    def run(self) -> tuple[int, Heir]:
        """Follow until promoted; returns the new incarnation, and what the server begins with."""
        self._be_filled()
        while self.promoted is None:
            self.looked = now = time.monotonic()
            busy = self._follow()
            if busy:
                self.interval = 0.9 * self.interval + 0.1 * (now - self.busy_at)
                self.busy_at = now
            if now - self.listened >= _LISTEN_EVERY_S:
                self.listened = now
                self._listen()
            if not busy and self.promoted is None:
                self._sleep()
        while self._follow():
            """What the server had decided and this one had not done yet."""
        heir = Heir(self.machine, self.host.image(), self.state, self.records)
        return self.promoted, heir

    def _listen(self) -> None:
        for message in self.link.receive():
            if isinstance(message, ev.Promoted):
                self.promoted = message.incarnation

    def _be_filled(self) -> None:
        path = fill_file(self.directory, self.shard, self.place, self.incarnation)
        self.log.wish(self.place, self.incarnation)
        while not path.exists():
            self.ringer.ring(self.server)
            self.poller.poll(_IDLE_MS)
            self.bell.hush()
        content = torch.load(path, weights_only=False)
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        self.state = content["state"]
        self.machine.take_over(content["image"])
        self.host.restore(content["tensors"])
        self._look_at_new_places()
        self.entries = 1

    def _look_at_new_places(self) -> None:
        """Look at the slots of workers that have joined as well; its server saw all or some."""
        self.views.grow()
        self.state.seen += [0] * (len(self.views.all) - len(self.state.seen))

    def _sleep(self) -> None:
        nap_s = _NAP_SHARE * self.interval
        if nap_s <= _NAP_MOST_S and time.monotonic() - self.busy_at < _NAP_FOR_S:
            time.sleep(max(nap_s, _NAP_S))
            return
        self.log.set_asleep(self.place, True)
        fence()
        if self.log.head == self.state.position:
            for source, _ in self.poller.poll(_IDLE_MS):
                if source == self.bell.fileno():
                    self.bell.hush()
                self.listened = 0.0
        self.log.set_asleep(self.place, False)

    def _follow(self) -> bool:
        """Handle the next entry, if there is one."""
        state = self.state
        found = self.log.read(state.position)
        if found is None:
            return False
        now, worker, slot, stamp, event = decode(found[0])
        at = (worker, slot)
        self.current, self.records = (at, stamp), []
        if isinstance(event, ev.Push):
            if not self.views.complete:
                self._look_at_new_places()
            state.seen[self.views.index(at)] = stamp
            if event.ranks > 1:
                state.waiting[(worker, event.seq)] = (at, stamp)
        for effect in self.machine.handle(event, now):
            action = self.actions.get(type(effect))
            if action is not None:
                action(effect)
        state.position = found[1]
        self.entries += 1
        self.log.handled(self.place, state.position)
        if self.arena.sleeps(self.shard):
            # An answer may wait for this.
            self.ringer.ring(self.server)
        return True

    # --- effects: what changes the shard, and what was answered ---------------------------------

    def _recorded(self, record: Record) -> None:
        self.records.append(record)
        self.state.trace_bytes += self.record_bytes

    def _apply(self, effect: ef.Apply) -> None:
        self._recorded(effect.record)
        self.host.apply(effect, *self.views.update(self.current[0]))

    def _include(self, effect: ef.Include) -> None:
        self._recorded(effect.record)
        at, _ = self.state.waiting[(effect.push.worker, effect.push.seq)]
        self.host.include(effect, self.views.buffers(at))

    def _gather(self, effect: ef.Gather) -> None:
        self._recorded(effect.record)
        self.host.gather(effect, *self.views.update(self.current[0]))

    def _commit(self, effect: ef.Commit) -> None:
        self._recorded(effect.record)
        self.host.commit(effect)

    def _send(self, effect: ef.Send) -> None:
        message = effect.message
        if not isinstance(message, ev.Acked):
            return
        at, stamp = self.state.waiting.pop((effect.to[1], message.seq), self.current)
        self.state.answers[at] = Answer(stamp, message.outcome, message.next, message.reason)
