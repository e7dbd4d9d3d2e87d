"""Parts of a real promotion in one process: who is told, and what an heir begins with."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import zmq

from tardygrad.engines.backups import Backups
from tardygrad.engines.base import Job
from tardygrad.engines.children import Child
from tardygrad.engines.replication import Heir, State
from tardygrad.engines.server_log import ServerLog
from tardygrad.engines.server_process import ServerProcess
from tardygrad.engines.shard_host import NoTrace, ShardHost
from tardygrad.engines.shared_memory import Answer, arena_of
from tardygrad.engines.statistics import ServerCounters
from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev
from tardygrad.protocol.clocks import NOBODY
from tardygrad.protocol.trace import file_header
from tardygrad.testing.simulation import null_job


class Main:
    """What ``Backups`` needs of the main process: a server's process 1 and its backup's, 2."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.job = null_job(workers=1, servers=1, replicas=1)
        self.members = {("server", 0): Child("server", 0, 1), ("backup", 0): Child("backup", 0, 2)}
        self.by_pid = {1: ("server", 0), 2: ("backup", 0)}
        self.heard = False
        self.told: list[Any] = []
        self.rung: list[str] = []
        self.gate = SimpleNamespace(send=self._send)
        self.supervisor = SimpleNamespace(tell=self.told.append)
        self.ringer = SimpleNamespace(ring=self.rung.append)

    def _send(self, to: ev.Address, incarnation: int, data: bytes) -> bool:
        if self.heard:
            self.told.append((to, incarnation))
        return self.heard


def promoted(main: Main) -> Backups:
    run: Any = main
    backups = Backups(run)
    backups.actions[ef.Promote](ef.Promote(shard=0, number=0, backup=0, incarnation=1))
    return backups


def test_a_backup_is_told_once_its_predecessor_is_gone_and_it_can_be_reached(
    tmp_path: Path,
) -> None:
    main = Main(tmp_path)
    backups = promoted(main)
    main.heard = True
    backups.look()
    assert main.told == [], "its predecessor is still there"
    del main.by_pid[1]
    main.heard = False
    backups.look()
    assert main.told == main.rung == [], "it has not been heard yet"
    main.heard = True
    backups.look()
    backups.look()
    assert main.told == [(("backup", 0), 0)] and main.rung == ["backup-0"]
    assert main.members == {("server", 0): main.members["server", 0]}
    assert main.by_pid == {2: ("server", 0)}


def test_a_backup_that_is_dead_already_is_no_server(tmp_path: Path) -> None:
    main = Main(tmp_path)
    del main.by_pid[1], main.by_pid[2]
    main.heard = True
    backups = promoted(main)
    backups.look()
    (died,) = main.told
    assert isinstance(died, ev.ServerDied)
    assert (died.shard, died.incarnation, died.fatal) == (0, 1, False)


def make_heir(tmp_path: Path, job: Job) -> ServerProcess:
    """The server that a backup becomes, whose predecessor has told a clock."""
    (tmp_path / "run").mkdir()
    trace = tmp_path / "trace"
    trace.mkdir()
    (trace / "shard-000.trace").write_bytes(file_header(0, len(job.ranges)))
    job = dataclasses.replace(job, run_directory=tmp_path / "run", trace_directory=trace)
    arena = arena_of(
        tmp_path, job.layout, job.ranges, job.config.workers, job.method.outstanding,
        workers_max=job.config.workers_max, push_bytes=job.push_format.nbytes, create=True,
    )  # fmt: skip
    log = ServerLog(tmp_path, 0, 1, create=True)
    machine = job.server(0, 0, 0)
    told = machine.handle(ev.MembersChanged(1, ()), 0.0)
    for effect in told:
        if isinstance(effect, ef.PublishClock):
            arena.publish_clock(0, effect.clock)
    host = ShardHost(job.method, job.initial[job.ranges[0].slice].clone(), None, NoTrace())
    slots = job.config.workers * (job.method.outstanding + 1)
    state = State([0] * slots, {}, {}, len(file_header(0, len(job.ranges))), log.head)
    link: Any = SimpleNamespace(
        socket=zmq.Context.instance().socket(zmq.DEALER), send=lambda _: None
    )
    heir = Heir(machine, host.image(), state)
    return ServerProcess(job, tmp_path, link, ServerCounters(), 0, 1, 0, heir)


def test_an_heir_goes_on_with_the_clock_that_its_workers_wait_for(tmp_path: Path) -> None:
    job = null_job(workers=1, servers=1, replicas=1, method={"name": "sync_sgd"})
    process = make_heir(tmp_path, job)
    assert process.arena.clock(0) == NOBODY


def test_a_push_that_is_for_other_shards_is_answered_in_its_turn(tmp_path: Path) -> None:
    method = {"name": "diloco", "stripes": 2}
    job = null_job(workers=1, servers=2, parameters=64, replicas=1, method=method)
    process = make_heir(tmp_path, job)
    replication = process.replication
    assert replication is not None
    replication.log.wish(0, 7)
    replication.log.begin(0, 7)  # somebody follows, and has handled nothing yet
    process._handle(ev.Tick())
    process._answer((0, 0), Answer(1, ev.APPLIED, 0, ""))
    reads = ((0, 0), (0, 0))
    push = ev.Push(job.lineage, 0, 1, 1, 1, 0, 0, 0, 1, 1, 0, reads)
    process.arena.publish(0, 2, push, 1)
    assert process._serve_pushes()
    assert process.arena.answered(0, 0, 0) == 0, "the older answer waits"
    replication.log.handled(0, replication.log.head)
    replication.flush(process._give)
    assert process.arena.answered(0, 0, 0) == 2
