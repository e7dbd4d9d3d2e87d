"""The engine that trains for real: processes on this machine, shared memory between them.

Theory of operation. The main process decides nothing and computes nothing. It starts processes
through the nursery, hears of their death at once (the zygote reaps them), passes messages to the
scheduler and carries out its effects (``supervisor``), keeps the metrics, and writes manifests.
Workers and servers meet in shared memory (``shared_memory``); only leases, reports and signs of
life travel as messages.

A process is replaced only after its predecessor is certainly gone, so that every shard and every
slot has one writer. Killing the main process closes everybody's lifeline; nothing outlives it but
one directory in memory, and what it has on disk, which the next run removes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
import zmq

from tardygrad.engines import gloo, nursery, runtime_directory, shared_board, wire
from tardygrad.engines.backups import Backups
from tardygrad.engines.base import Job, Observer, RunEnd, SnapshotStore, checkpoint_fields
from tardygrad.engines.bells import Ringer
from tardygrad.engines.child import write_job
from tardygrad.engines.children import Child, describe
from tardygrad.engines.epochs import Epochs
from tardygrad.engines.gate import EVALUATION, FAILURE, IDLE, MESSAGE, REPORT, Gate, packed
from tardygrad.engines.operator import OperatorDesk
from tardygrad.engines.seals import Secret
from tardygrad.engines.shard_host import digest
from tardygrad.engines.shared_memory import Arena, arena_of
from tardygrad.engines.statistics import RunStatistics
from tardygrad.engines.stores import DirectoryStore
from tardygrad.engines.supervisor import Supervisor
from tardygrad.errors import StorageError
from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev

_PROGRESS_S = 0.5
_LAST_WORD_S = 0.1
_DISK_AGAIN_S = 1.0
_EVALUATOR: ev.Address = ("evaluator", 0)


class ProcessesEngine:
    """Runs a job in processes of this machine."""

    def run(self, job: Job, observer: Observer, store: SnapshotStore) -> RunEnd:
        """Train until the work is done, the run is interrupted, or it cannot go on.

        Raises:
            UsageError: the method averages by gloo, and there is none.
            StorageError: neither memory nor the disk has room for what is shared, or the disk is
                full.
            TrainingFailed: the process that starts the others is gone.
        """
        if job.method.uses_groups:
            gloo.require(job.method.name)
        directory = runtime_directory.create()
        processes: nursery.Nursery | None = None
        try:
            # What workers and servers write comes first: memory serves it best.
            arena = arena_of(
                directory, job.layout, job.ranges, job.config.workers, job.method.outstanding,
                workers_max=job.config.workers_max, push_bytes=job.push_format.nbytes, create=True,
            )  # fmt: skip
            if job.method.uses_peers:
                size, crew = job.layout.parameters_size, job.config
                shared_board.make_board(directory, size, crew.workers, crew.workers_max)
            write_job(job, directory)
            for decision, reason in runtime_directory.decisions(directory):
                observer.decided(decision, reason)
            processes = nursery.take(job.config.threads)
            return Run(job, observer, store, directory, arena, processes).run()
        finally:
            if processes is not None:
                processes.close()
            else:
                nursery.discard()
            runtime_directory.remove(directory)


class _Delayed(NamedTuple):
    at: float
    incarnation: int
    start: Callable[[], None]


class Run:
    """One run, as the main process sees it."""

    def __init__(
        self, job: Job, observer: Observer, store: SnapshotStore, directory: Path, arena: Arena,
        processes: nursery.Nursery,
    ) -> None:  # fmt: skip
        self.job, self.observer, self.store = job, observer, store
        self.directory, self.arena, self.nursery = directory, arena, processes
        assert job.run_directory is not None
        self.files = DirectoryStore(job.run_directory, job.layout, job.ranges, run=job.run)
        self.ringer = Ringer(directory)
        self.supervisor = Supervisor(
            directory, job.config.failure, job.generation << 10,
            spawn=self._spawn_scheduler, kill=lambda i: self.kill(ev.SCHEDULER, i),
            perform=lambda e: self.actions[type(e)](e),
        )  # fmt: skip
        self.members: dict[ev.Address, Child] = {}
        self.by_pid: dict[int, ev.Address] = {}
        self.delayed: dict[ev.Address, _Delayed] = {}
        self.statistics = RunStatistics(job.config.workers, len(job.ranges), job.plan.samples)
        self.statistics.begin(job.generation << 10, job.consumed_before, observer.now())
        self.speeds: dict[int, float] = {}
        self.finished: ef.Finished | None = None
        self.writer = ThreadPoolExecutor(max_workers=1)
        self.commits: deque[tuple[ef.CommitCheckpoint, Future[float]]] = deque()
        self.lost_checkpoint = ""
        self.given_up = 0
        self.epochs = Epochs(job, observer, self.statistics, self._ask_evaluator)
        self.secret = Secret.draw(job.lineage)
        self.gate = Gate(directory, self.secret, observer.decided)
        self.backups = Backups(self)
        self.desk = OperatorDesk(job.run, directory, self._make_room, self.statistics)
        self.actions: dict[type, Callable[[Any], None]] = {
            ef.Send: self._send,
            ef.SpawnWorker: self._spawn_worker,
            ef.KillWorker: lambda e: self.kill(("worker", e.worker), e.incarnation),
            ef.SpawnServer: self._spawn_server,
            ef.KillServer: lambda e: self.kill(("server", e.shard), e.incarnation),
            ef.CommitCheckpoint: self._commit,
            ef.EpochEnded: lambda e: self.epochs.ended(e.epoch),
            ef.MemberChanged: self._member_changed,
            ef.Decided: lambda e: self.observer.decided(e.decision, e.reason),
            ef.CrewAnswered: self.desk.answered,
            ef.Finished: self._finish,
            **self.backups.actions,
        }

    # --- the loop -----------------------------------------------------------------------------

    def run(self) -> RunEnd:
        """The whole run."""
        began = time.monotonic()
        poller = zmq.Poller()
        own = (self.desk.socket, self.nursery.fileno())
        for source in (self.gate.control, self.gate.heartbeats, *own):
            poller.register(source, zmq.POLLIN)
        try:
            self.nursery.job(str(self.directory / "job"), self.secret)
            self.supervisor.begin(poller)
            if self.epochs.wants_evaluator:
                self._spawn(_EVALUATOR, 0, {"incarnation": 0})
            self._handle(ev.Started())
            self._loop(poller)
            return self._end(began)
        finally:
            self.supervisor.close()
            self.desk.close()
            self.gate.close()
            self.ringer.close()
            self.writer.shutdown(wait=False)

    def _loop(self, poller: zmq.Poller) -> None:
        next_tick = next_progress = time.monotonic()
        while self.finished is None:
            dues = [self.supervisor.look(), *(d.at for d in self.delayed.values())]
            dues.append(next_tick if self.supervisor.may_tick else next_progress)
            found = dict(poller.poll(max(0, round((min(dues) - time.monotonic()) * 1000))))
            self.supervisor.receive(found)
            # Each look at what has nothing to say costs as much as a message.
            if self.gate.control in found:
                self._receive_control()
            if self.gate.heartbeats in found:
                self._receive_heartbeats()
            for wish in self.desk.wishes(self.observer.wishes(), self.speeds):
                self._handle(wish)
            self._bury()
            self.backups.look()
            now = time.monotonic()
            self._start_delayed(now)
            self._tell_commits()
            self.epochs.tell(1.5 * self.job.config.failure.heartbeat_s)
            if now >= next_tick and self.supervisor.may_tick:
                next_tick = now + self.job.tick_s
                reason = self.observer.interrupted()
                if reason:
                    self._handle(ev.Interrupted(reason))
                self._handle(ev.Tick())
            if now >= next_progress:
                next_progress = now + _PROGRESS_S
                self._report()
                self.gate.tell(now)

    def _handle(self, event: ev.Event) -> None:
        self.supervisor.tell(event)
        if isinstance(event, ev.WorkerLeft) and ("worker", event.worker) in self.members:
            process = self.members["worker", event.worker]
            process.left |= process.incarnation == event.incarnation
        if isinstance(event, ev.SnapshotFailed):
            self.given_up = event.step
        if isinstance(event, ev.SnapshotFailed | ev.SnapshotTaken) and event.step == self.given_up:
            # What others wrote for it, also what they were late with, is of no use any more.
            self.files.discard(event.step)

    def _report(self) -> None:
        for worker in range(self.statistics.places):
            self.statistics.waiting(worker, worker in self.supervisor.waiting)
        fields = self.statistics.progress(self.observer.now(), self.job.method.learning_rate)
        self.speeds = {row["worker"]: row["samples_per_s"] for row in fields["workers"]}
        self.observer.emit("progress", **fields)

    # --- messages -----------------------------------------------------------------------------

    def _receive_control(self) -> None:
        for letter in self.gate.letters():
            if letter.sender not in self.members:
                self.gate.strange(letter)
            elif letter.tag == MESSAGE:
                self._handle(letter.content)
            else:
                self._take_data(letter.sender, letter.incarnation, letter.tag, letter.content)

    def _take_data(
        self, member: ev.Address, incarnation: int, tag: bytes, data: dict[str, Any]
    ) -> None:
        process = self.members[member]
        if tag == REPORT:
            self.statistics.worker_report(member[1], incarnation, data)
        elif process.incarnation != incarnation:
            return
        elif tag == FAILURE:
            process.failure = data
        elif tag == IDLE:
            self.epochs.evaluator_idle()
        elif tag == EVALUATION:
            self.epochs.evaluator_answered(data)

    def _receive_heartbeats(self) -> None:
        for beat, report in self.gate.beats():
            if beat.kind == "worker":
                self.statistics.worker_report(beat.id, beat.incarnation, report)
            elif beat.kind == "server":
                self.statistics.server_report(beat.id, beat.incarnation, report)
            self._handle(beat)

    def _send(self, effect: ef.Send) -> None:
        process = self.members.get(effect.to)
        if process is None:
            return
        # A process that is not connected (yet, or any more) does not get it: it will be asked for.
        self.gate.send(effect.to, process.incarnation, wire.encode(effect.message))
        self.ringer.ring(f"{effect.to[0]}-{effect.to[1]}")

    def _ask_evaluator(self, request: dict[str, Any]) -> None:
        self.gate.send(_EVALUATOR, self.members[_EVALUATOR].incarnation, packed(request))

    # --- processes ----------------------------------------------------------------------------

    def _spawn(self, address: ev.Address, incarnation: int, arguments: dict[str, Any]) -> None:
        kind, member = address
        assert self.job.run_directory is not None
        log = self.job.run_directory / "logs" / f"{kind}-{member}.log"
        pid = self.nursery.spawn(kind, arguments, str(log))
        self.members[address] = Child(address[0], incarnation, pid)
        self.by_pid[pid] = address

    def later(
        self, address: ev.Address, incarnation: int, delay_s: float, arguments: dict[str, Any]
    ) -> None:
        """Start a process after a while, and once its predecessor is gone."""

        def start() -> None:
            self._spawn(address, incarnation, arguments)

        self.delayed.pop(address, None)
        if delay_s <= 0 and not self._lives(address):
            start()
        else:
            self.delayed[address] = _Delayed(time.monotonic() + delay_s, incarnation, start)

    def _lives(self, address: ev.Address) -> bool:
        process = self.members.get(address)
        return process is not None and process.pid in self.by_pid

    def _start_delayed(self, now: float) -> None:
        for address, entry in list(self.delayed.items()):
            if entry.at > now:
                continue
            if self._lives(address):
                # The predecessor was killed, but its end has not been reported yet.
                self.delayed[address] = entry._replace(at=now + 0.005)
            else:
                del self.delayed[address]
                entry.start()

    def _spawn_scheduler(self, incarnation: int, done: int) -> int:
        self._spawn(ev.SCHEDULER, incarnation, {"incarnation": incarnation, "done": done})
        return self.members[ev.SCHEDULER].pid

    def _spawn_worker(self, effect: ef.SpawnWorker) -> None:
        self._make_room(effect.worker + 1)
        arguments = {"worker": effect.worker, "incarnation": effect.incarnation}
        self.later(("worker", effect.worker), effect.incarnation, effect.delay_s, arguments)

    def _make_room(self, workers: int) -> None:
        self.arena.make_room(workers)
        if self.job.method.uses_peers:
            size, most = self.job.layout.parameters_size, self.job.config.workers_max
            shared_board.make_room(self.directory, size, min(workers, most), most)

    def _spawn_server(self, effect: ef.SpawnServer) -> None:
        self.later(("server", effect.shard), effect.incarnation, 0.0, effect._asdict())

    def kill(self, address: ev.Address, incarnation: int) -> None:
        """End a process, or what was to become one."""
        delayed = self.delayed.get(address)
        if delayed is not None and delayed.incarnation == incarnation:
            del self.delayed[address]
        process = self.members.get(address)
        if process is not None and process.incarnation == incarnation and self._lives(address):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)

    def _bury(self) -> None:
        exits = self.nursery.exits()
        if exits:
            self._hear_last_words(exits)
        for pid, status in exits:
            address = self.by_pid.pop(pid, None)
            process = None if address is None else self.members.get(address)
            if address is None or process is None or process.pid != pid:
                continue
            failure = process.failure or {}
            reason = str(failure.get("reason") or describe(status))
            death = (address[1], process.incarnation, reason, bool(failure.get("fatal")))
            if address[0] == "worker":
                self._handle(ev.WorkerDied(*death, own=bool(failure)))
            elif address[0] == "server":
                self._handle(ev.ServerDied(*death))
            elif address[0] == "backup":
                self._handle(ev.BackupDied(address[1], process.incarnation, reason))
            elif address == ev.SCHEDULER:
                self.supervisor.gone(reason, failed=bool(failure))
            else:
                self.observer.decided("the evaluator is gone", reason)
                # What it failed at it would fail at again; if it was killed, nothing is wrong.
                successor = process.incarnation + 1
                again = not failure and successor <= self.job.config.failure.restarts
                replaced = again and self.finished is None
                self.epochs.evaluator_gone(replaced=replaced)
                if replaced:
                    self._spawn(address, successor, {"incarnation": successor})

    def _hear_last_words(self, exits: Sequence[nursery.Exit]) -> None:
        """Receive what they had to say before they went: it is on its way, if not here."""
        self._receive_control()
        until = time.monotonic() + _LAST_WORD_S
        for pid, status in exits:
            process = self.members.get(self.by_pid.get(pid, ("", 0)))
            # Whoever goes by itself has said so, but its exit may be seen first.
            while process is not None and process.pid == pid and process.owes_a_word(status):
                left_ms = round(1000 * (until - time.monotonic()))
                if left_ms <= 0 or not self.gate.control.poll(left_ms):
                    break
                self._receive_control()

    # --- what people see ----------------------------------------------------------------------

    def _member_changed(self, effect: ef.MemberChanged) -> None:
        self.statistics.member(*effect)
        self.observer.emit("member", **effect._asdict())

    def _commit(self, effect: ef.CommitCheckpoint) -> None:
        # A disk can take seconds to promise something; leases do not wait for it.
        self.commits.append((effect, self.writer.submit(self._write_manifest, effect)))

    def _write_manifest(self, effect: ef.CommitCheckpoint) -> float:
        began = time.monotonic()
        self.store.commit(effect.step, effect.files, effect.state)
        return time.monotonic() - began

    def _written(self, effect: ef.CommitCheckpoint, written: Future[float]) -> float:
        """The seconds that it took. The last manifest is tried again as long as a run may wait."""
        try:
            return written.result()
        except StorageError as failure:
            if self.finished is None or self.commits:
                raise
            self.observer.decided(f"checkpoint {effect.step} is tried again", str(failure))
        began = time.monotonic()
        while True:
            time.sleep(_DISK_AGAIN_S)
            try:
                self._write_manifest(effect)
                return time.monotonic() - began
            except StorageError:
                if time.monotonic() - began > self.job.config.failure.stop_s:
                    raise

    def _tell_commits(self) -> None:
        while self.commits and self.commits[0][1].done():
            effect, written = self.commits.popleft()
            try:
                seconds = self._written(effect, written)
            except StorageError as failure:
                self.observer.decided(f"checkpoint {effect.step} is given up", str(failure))
                self.lost_checkpoint = str(failure)
                self.files.discard(effect.step)
                continue
            self.lost_checkpoint = ""
            self.observer.emit("checkpoint", **checkpoint_fields(effect, seconds))

    def _finish(self, effect: ef.Finished) -> None:
        self.finished = effect

    # --- the end ------------------------------------------------------------------------------

    def _end(self, began: float) -> RunEnd:
        assert self.finished is not None
        ended = time.monotonic()
        self.supervisor.close()
        self.writer.shutdown(wait=True)
        self._tell_commits()
        if self.lost_checkpoint and self.finished.outcome != "failed":
            reason = f"the last checkpoint could not be written: {self.lost_checkpoint}"
            self.finished = ef.Finished("failed", reason)
        self._last_reports()
        parameters = torch.empty(self.job.layout.size)
        size = self.job.layout.parameters_size
        for shard, key_range in enumerate(self.job.ranges):
            newest = self.arena.newest(shard)
            parameters[key_range.slice] = newest[key_range.slice]
            if shard == 0:
                parameters[size:] = newest[size:]
        self.epochs.close()
        self._await_evaluation()
        self._report()
        self.gate.tell(ended, end=True)
        first = self.statistics.first_update_s
        return RunEnd(
            self.finished.outcome,
            self.finished.reason,
            parameters,
            {
                # Of training: starting processes is no part of its speed.
                "seconds": ended - (began if first is None else first),
                "first_update_s": first,
                "digest": digest([parameters]),
                "messages_refused": self.gate.refused.total(),
                "statistics": self.statistics,
                "scheduler": {
                    "restarts": self.supervisor.restarts,
                    "away_s": round(self.supervisor.away_s, 3),
                },
            },
        )

    def _last_reports(self) -> None:
        # One more sign of life of every server carries its last counts.
        deadline = time.monotonic() + 2 * self.job.config.failure.heartbeat_s + 0.1
        wanted = self.job.config.epochs * self.job.plan.samples
        done = self.finished is not None and self.finished.outcome == "done"
        while time.monotonic() < deadline:
            self._receive_control()
            self._receive_heartbeats()
            if done and self.statistics.consumed >= wanted:
                return
            time.sleep(0.01)

    def _await_evaluation(self) -> None:
        """The one that is under way has read an epoch's parameters, and ends soon."""
        assert self.finished is not None
        failed = self.finished.outcome == "failed"
        deadline = time.monotonic() + (0.0 if failed else self.job.config.failure.stop_s)
        while self.epochs.measuring and time.monotonic() < deadline:
            self._receive_control()
            self._bury()
            time.sleep(0.01)
