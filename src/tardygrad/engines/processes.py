"""The engine that trains for real: processes on this machine, shared memory between them.

Theory of operation. The main process hosts the scheduler machine and nothing that computes. It
starts processes through the nursery, hears of their death at once (the zygote reaps them) or by
their silence, passes messages, keeps the metrics, and writes manifests. Workers and servers meet in
shared memory (``shared_memory``); only leases, reports and signs of life travel as messages.

A process is replaced only after its predecessor is certainly gone, so that every shard and every
slot has one writer. Killing the main process closes everybody's lifeline; nothing outlives it but
one directory in memory, which the next run removes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgpack
import torch
import zmq

from tardygrad.engines import nursery, runtime_directory, wire
from tardygrad.engines.base import Job, Observer, RunEnd, SnapshotStore
from tardygrad.engines.child import EVALUATION, FAILURE, MESSAGE, REPORT, write_job
from tardygrad.engines.shard_host import digest
from tardygrad.engines.shared_memory import Arena, Ringer, arena_of
from tardygrad.engines.statistics import RunStatistics
from tardygrad.errors import StorageError
from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev

_PROGRESS_S = 0.5
_LISTEN_S = 0.05


class ProcessesEngine:
    """Runs a job in processes of this machine."""

    def run(self, job: Job, observer: Observer, store: SnapshotStore) -> RunEnd:
        """Train until the work is done, the run is interrupted, or it cannot go on.

        Raises:
            StorageError: there is not enough shared memory, or the disk is full.
            TrainingFailed: the process that starts the others is gone.
        """
        directory = runtime_directory.create()
        processes: nursery.Nursery | None = None
        try:
            write_job(job, directory)
            processes = nursery.take(job.config.threads)
            return _Run(job, observer, store, directory, processes).run()
        finally:
            if processes is not None:
                processes.close()
            else:
                nursery.discard()
            runtime_directory.remove(directory)


class _Process:
    __slots__ = ("failure", "incarnation", "pid")

    def __init__(self, incarnation: int, pid: int) -> None:
        self.incarnation, self.pid = incarnation, pid
        self.failure: dict[str, Any] | None = None


class _Run:
    def __init__(
        self, job: Job, observer: Observer, store: SnapshotStore, directory: Path,
        processes: nursery.Nursery,
    ) -> None:  # fmt: skip
        self.job, self.observer, self.store = job, observer, store
        self.directory, self.nursery = directory, processes
        self.arena: Arena = arena_of(
            directory, job.layout, job.ranges, job.config.workers, job.method.in_flight, create=True
        )
        self.ringer = Ringer(directory)
        self.scheduler = job.scheduler()
        self.members: dict[ev.Address, _Process] = {}
        self.by_pid: dict[int, ev.Address] = {}
        self.delayed: list[tuple[float, ev.Address, Callable[[], None]]] = []
        self.statistics = RunStatistics(job.config.workers, len(job.ranges), job.plan.samples)
        self.statistics.begin(job.generation << 10, job.consumed_before, observer.now())
        self.finished: ef.Finished | None = None
        self.writer = ThreadPoolExecutor(max_workers=1)
        self.commits: deque[tuple[ef.CommitCheckpoint, Future[float]]] = deque()
        self.lost_checkpoint = ""
        self.evaluations = 0
        self.strange = 0
        self.epochs_ended: list[tuple[float, int]] = []
        self.evaluated: list[dict[str, Any]] = []
        self.context = zmq.Context()
        self.control = self._bind("control")
        self.heartbeats = self._bind("heartbeats")
        self.actions: dict[type, Callable[[Any], None]] = {
            ef.Send: self._send,
            ef.SpawnWorker: self._spawn_worker,
            ef.KillWorker: lambda e: self._kill(("worker", e.worker), e.incarnation),
            ef.SpawnServer: self._spawn_server,
            ef.KillServer: lambda e: self._kill(("server", e.shard), e.incarnation),
            ef.CommitCheckpoint: self._commit,
            ef.EpochEnded: self._epoch_ended,
            ef.MemberChanged: self._member_changed,
            ef.Decided: lambda e: self.observer.decided(e.decision, e.reason),
            ef.Finished: self._finish,
        }

    def _bind(self, name: str) -> zmq.Socket[bytes]:
        socket = self.context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.LINGER, 0)
        # A replaced process of the same name takes over from one that is gone.
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        socket.bind(f"ipc://{self.directory / name}")
        return socket

    # --- the loop -----------------------------------------------------------------------------

    def run(self) -> RunEnd:
        """The whole run."""
        began = time.monotonic()
        try:
            self.nursery.job(str(self.directory / "job"))
            if self.job.test is not None and self.job.config.evaluation.every_epochs:
                self._spawn(("evaluator", 0), 0, {})
            self._handle(ev.Started())
            self._loop()
            return self._end(began)
        finally:
            self.control.close()
            self.heartbeats.close()
            self.context.term()
            self.ringer.close()
            self.writer.shutdown(wait=False)

    def _loop(self) -> None:
        poller = zmq.Poller()
        for source in (self.control, self.heartbeats, self.nursery.fileno()):
            poller.register(source, zmq.POLLIN)
        next_tick = next_progress = time.monotonic()
        while self.finished is None:
            now = time.monotonic()
            due = min([next_tick, *(at for at, _, _ in self.delayed)])
            poller.poll(max(0, round((due - now) * 1000)))
            self._receive_control()
            self._receive_heartbeats()
            self._bury()
            now = time.monotonic()
            self._start_delayed(now)
            self._tell_commits()
            self._tell_epochs(1.5 * self.job.config.failure.heartbeat_s)
            if now >= next_tick:
                next_tick = now + self.job.tick_s
                reason = self.observer.interrupted()
                if reason:
                    self._handle(ev.Interrupted(reason))
                self._handle(ev.Tick())
            if now >= next_progress:
                next_progress = now + _PROGRESS_S
                self._report()

    def _handle(self, event: ev.Event) -> None:
        for effect in self.scheduler.handle(event, time.monotonic()):
            self.actions[type(effect)](effect)

    def _report(self) -> None:
        for worker in range(self.job.config.workers):
            entry = self.scheduler.workers[worker]
            waits = entry.state == "ready" and not self.scheduler.book.holds_lease(worker)
            self.statistics.waiting(worker, waits)
        fields = self.statistics.progress(self.observer.now(), self.job.method.learning_rate)
        self.observer.emit("progress", **fields)

    # --- messages -----------------------------------------------------------------------------

    def _receive_control(self) -> None:
        # Bounded: however many messages there are, deadlines and heartbeats get their turn.
        until = time.monotonic() + _LISTEN_S
        while time.monotonic() < until:
            try:
                frames = self.control.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            address = _address(frames[0])
            is_message = len(frames) == 3 and frames[1] == MESSAGE
            decode = wire.decode if is_message else wire.decode_data
            content: Any = decode(frames[2]) if len(frames) == 3 else None
            if address is None or address[0] not in self.members or content is None:
                self._count_strange(frames)
            elif is_message:
                self._handle(content)
            else:
                self._take_data(*address, frames[1], content)

    def _take_data(
        self, member: ev.Address, incarnation: int, tag: bytes, data: dict[str, Any]
    ) -> None:
        process = self.members.get(member)
        if tag == REPORT:
            self.statistics.worker_report(member[1], incarnation, data)
        elif tag == FAILURE and process is not None and process.incarnation == incarnation:
            process.failure = data
        elif tag == EVALUATION:
            self._evaluated(data)

    def _receive_heartbeats(self) -> None:
        while True:
            try:
                frames = self.heartbeats.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            beat = wire.decode(frames[1]) if len(frames) == 3 else None
            report = wire.decode_data(frames[2]) if len(frames) == 3 else None
            if not isinstance(beat, ev.Heartbeat) or report is None:
                self._count_strange(frames)
                continue
            if (beat.kind, beat.id) not in self.members:
                self._count_strange(frames)
                continue
            if beat.kind == "worker":
                self.statistics.worker_report(beat.id, beat.incarnation, report)
            else:
                self.statistics.server_report(beat.id, beat.incarnation, report)
            self._handle(beat)

    def _count_strange(self, frames: list[bytes]) -> None:
        self.strange += 1
        sizes = [len(f) for f in frames]
        self.observer.decided("a message is ignored", f"it cannot be decoded (frames: {sizes})")

    def _send(self, effect: ef.Send) -> None:
        process = self.members.get(effect.to)
        if process is None:
            return
        kind, member = effect.to
        identity = f"{kind}-{member}.{process.incarnation}".encode()
        # A process that is not connected (yet, or any more) does not get it: it will be asked for.
        self.control.send_multipart([identity, wire.encode(effect.message)])
        self.ringer.ring(f"{kind}-{member}")

    # --- processes ----------------------------------------------------------------------------

    def _spawn(self, address: ev.Address, incarnation: int, arguments: dict[str, Any]) -> None:
        kind, member = address
        assert self.job.run_directory is not None
        log = self.job.run_directory / "logs" / f"{kind}-{member}.log"
        pid = self.nursery.spawn(kind, arguments, str(log))
        self.members[address] = _Process(incarnation, pid)
        self.by_pid[pid] = address

    def _later(self, address: ev.Address, delay_s: float, start: Callable[[], None]) -> None:
        self.delayed = [d for d in self.delayed if d[1] != address]
        if delay_s <= 0 and not self._lives(address):
            start()
        else:
            self.delayed.append((time.monotonic() + delay_s, address, start))

    def _lives(self, address: ev.Address) -> bool:
        process = self.members.get(address)
        return process is not None and process.pid in self.by_pid

    def _start_delayed(self, now: float) -> None:
        ready = [d for d in self.delayed if d[0] <= now]
        for entry in ready:
            _, address, start = entry
            self.delayed.remove(entry)
            if self._lives(address):
                # The predecessor was killed, but its end has not been reported yet.
                self.delayed.append((now + 0.005, address, start))
            else:
                start()

    def _spawn_worker(self, effect: ef.SpawnWorker) -> None:
        address = ("worker", effect.worker)
        arguments = {"worker": effect.worker, "incarnation": effect.incarnation}
        self._later(
            address,
            effect.delay_s,
            lambda: self._spawn(address, effect.incarnation, arguments),
        )

    def _spawn_server(self, effect: ef.SpawnServer) -> None:
        address = ("server", effect.shard)
        arguments = {
            "shard": effect.shard,
            "incarnation": effect.incarnation,
            "floor": effect.floor,
        }
        self._later(address, 0.0, lambda: self._spawn(address, effect.incarnation, arguments))

    def _kill(self, address: ev.Address, incarnation: int) -> None:
        process = self.members.get(address)
        if process is not None and process.incarnation == incarnation and self._lives(address):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)

    def _bury(self) -> None:
        exits = self.nursery.exits()
        if exits:
            # What they had to say before they went is on its way.
            self._receive_control()
        for pid, status in exits:
            address = self.by_pid.pop(pid, None)
            process = None if address is None else self.members.get(address)
            if address is None or process is None or process.pid != pid:
                continue
            failure = process.failure or {}
            reason = str(failure.get("reason") or _describe(status))
            fatal = bool(failure.get("fatal"))
            if address[0] == "worker":
                self._handle(ev.WorkerDied(address[1], process.incarnation, reason, fatal))
            elif address[0] == "server":
                self._handle(ev.ServerDied(address[1], process.incarnation, reason, fatal))
            elif self.finished is None:
                self.observer.decided("the evaluator is gone", reason)
                self.evaluations = 0
                # What it failed at it would fail at again; if it was killed, nothing is wrong.
                if not failure and process.incarnation < self.job.config.failure.restarts:
                    self._spawn(address, process.incarnation + 1, {})

    # --- what people see ----------------------------------------------------------------------

    def _member_changed(self, effect: ef.MemberChanged) -> None:
        self.statistics.member(effect.kind, effect.id, effect.incarnation, effect.state)
        self.observer.emit("member", **effect._asdict())

    def _epoch_ended(self, effect: ef.EpochEnded) -> None:
        number = effect.epoch + 1
        # The workers' next reports bring the losses of the epoch's last batches.
        self.epochs_ended.append((time.monotonic(), number))
        every = self.job.config.evaluation.every_epochs
        # The last epoch's parameters are the final ones, which are measured at the end.
        if every and number % every == 0 and number < self.job.config.epochs:
            self._ask_evaluator(number)

    def _tell_epochs(self, patience_s: float) -> None:
        while self.epochs_ended and time.monotonic() - self.epochs_ended[0][0] >= patience_s:
            _, number = self.epochs_ended.pop(0)
            self.observer.emit(
                "epoch",
                epoch=number,
                samples=number * self.job.plan.samples,
                loss=self.statistics.epoch_loss(number - 1),
            )
            self._tell_evaluations()

    def _ask_evaluator(self, epoch: int) -> None:
        if self._lives(("evaluator", 0)):
            self.evaluations += 1
            # The servers' newest counts may be from before the epoch's last batches.
            samples = max(self.statistics.consumed, epoch * self.job.plan.samples)
            request = {"epoch": epoch, "samples": samples}
            self.control.send_multipart([b"evaluator-0.0", msgpack.packb(request)])

    def _evaluated(self, data: dict[str, Any]) -> None:
        self.evaluations -= 1
        data["at_s"] = self.observer.now() - (time.monotonic() - data["read_at"])
        self.evaluated.append(data)
        self._tell_evaluations()

    def _tell_evaluations(self) -> None:
        untold = {number for _, number in self.epochs_ended}
        while self.evaluated and self.evaluated[0]["epoch"] not in untold:
            data = self.evaluated.pop(0)
            self.observer.emit(
                "evaluate",
                epoch=data["epoch"],
                samples=data["samples"],
                at_s=round(data["at_s"], 6),
                final=False,
                **data["found"],
            )

    def _commit(self, effect: ef.CommitCheckpoint) -> None:
        # A disk can take seconds to promise something; leases do not wait for it.
        self.commits.append((effect, self.writer.submit(self._write_manifest, effect)))

    def _write_manifest(self, effect: ef.CommitCheckpoint) -> float:
        began = time.monotonic()
        self.store.commit(effect.step, effect.files, effect.state)
        return time.monotonic() - began

    def _tell_commits(self) -> None:
        while self.commits and self.commits[0][1].done():
            effect, written = self.commits.popleft()
            try:
                seconds = written.result()
            except StorageError as failure:
                self.observer.decided(f"checkpoint {effect.step} is given up", str(failure))
                self.lost_checkpoint = str(failure)
                continue
            self.lost_checkpoint = ""
            samples: Any = effect.state["samples"]
            self.observer.emit(
                "checkpoint",
                step=effect.step,
                samples=min(samples),
                seconds=seconds,
                bytes=sum(size for _, size, _ in effect.files),
                path=f"checkpoints/{effect.step:012d}",
            )

    def _finish(self, effect: ef.Finished) -> None:
        self.finished = effect

    # --- the end ------------------------------------------------------------------------------

    def _end(self, began: float) -> RunEnd:
        assert self.finished is not None
        ended = time.monotonic()
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
        self._tell_epochs(0.0)
        self._await_evaluations()
        self._report()
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
                "statistics": self.statistics,
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

    def _await_evaluations(self) -> None:
        deadline = time.monotonic() + self.job.config.failure.stop_s
        while self.evaluations > 0 and time.monotonic() < deadline:
            self._receive_control()
            self._bury()
            time.sleep(0.01)


def _address(identity: bytes) -> tuple[ev.Address, int] | None:
    try:
        name, _, incarnation = identity.decode().partition(".")
        kind, _, member = name.partition("-")
        return (kind, int(member)), int(incarnation)
    except ValueError:
        return None


def _describe(status: int) -> str:
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-status).name}"
        return f"killed by signal {-status}"
    return f"exited with status {status}"
