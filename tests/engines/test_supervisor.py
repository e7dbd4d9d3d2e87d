"""The supervisor, with a scheduler that the test plays: over the real socket, without processes."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from tardygrad.config import FailureConfig
from tardygrad.engines import wire
from tardygrad.engines.scheduler_process import DONE, READY, SOCKET
from tardygrad.engines.supervisor import Supervisor
from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev
from tardygrad.protocol import journal


class Stage:
    """A supervisor, and what it asked for."""

    def __init__(self, directory: Path, pid: int = os.getpid(), **failure: Any) -> None:
        self.directory = directory
        self.pid = pid
        self.spawned: list[tuple[int, int]] = []
        self.killed: list[int] = []
        self.performed: list[ef.Effect] = []
        self.supervisor = Supervisor(
            directory, FailureConfig(**failure), 1024,
            spawn=self.spawn,
            kill=self.killed.append, perform=self.performed.append,
        )  # fmt: skip
        self.supervisor.begin(zmq.Poller())

    def spawn(self, incarnation: int, done: int) -> int:
        self.spawned.append((incarnation, done))
        return self.pid

    def decided(self) -> list[str]:
        return [e.decision for e in self.performed if isinstance(e, ef.Decided)]

    def finished(self) -> list[str]:
        return [e.reason for e in self.performed if isinstance(e, ef.Finished)]

    def states(self) -> list[tuple[int, str]]:
        changes = [e for e in self.performed if isinstance(e, ef.MemberChanged)]
        return [(e.incarnation, e.state) for e in changes]


class Scheduler:
    """Connects, says how far it is, and answers when the test wants it."""

    def __init__(self, stage: Stage, number: int) -> None:
        self.stage = stage
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(str(stage.directory / SOCKET))
        self.say(READY, number, 0, 0)

    def say(self, *values: Any) -> None:
        self.socket.sendall(journal.record(msgpack.packb(values)))
        self.stage.supervisor.receive()

    def does(self, number: int, base: int = 0) -> None:
        effects = wire.plain_effects([ef.Decided(f"effect {number}", "")])
        self.say(DONE, base, [(number, effects)], None)

    def told(self) -> list[wire.Entry | None]:
        data = self.socket.recv(1 << 16)
        return [wire.decode_entry(payload) for payload, _ in journal.scan(data)]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path, restarts=2)
    yield made
    made.supervisor.close()


def die(stage: Stage, scheduler: Scheduler) -> None:
    scheduler.socket.close()
    stage.supervisor.gone("killed by SIGKILL", failed=False)


def test_what_was_told_waits_and_each_effect_is_carried_out_once(stage: Stage) -> None:
    supervisor = stage.supervisor
    for _ in range(3):
        supervisor.tell(ev.Started())
    first = Scheduler(stage, 0)
    told = [(entry.number, entry.done) for entry in first.told() if entry]
    assert told == [(1, 0), (2, 0), (3, 0)]
    first.does(1)
    first.does(2)
    supervisor.tell(ev.Interrupted("a signal"))
    assert [e.done for e in first.told() if e] == [2]
    die(stage, first)
    assert stage.spawned == [(1024, 0)]
    supervisor.look()
    assert stage.spawned[1:] == [(1025, 2)]
    # Its journal ended early: it is told again, and says again what it wanted.
    second = Scheduler(stage, 1)
    assert [e.number for e in second.told() if e] == [2, 3, 4]
    for number in (2, 3, 4):
        second.does(number)
    assert stage.decided() == [f"effect {n}" for n in (1, 2, 3, 4)]
    assert supervisor.restarts == 1 and supervisor.away_s > 0
    assert stage.states() == [
        (1024, "started"), (1024, "ready"), (1024, "died"), (1025, "started"), (1025, "ready"),
    ]  # fmt: skip


def test_what_it_said_before_it_died_counts(stage: Stage) -> None:
    stage.supervisor.tell(ev.Started())
    first = Scheduler(stage, 0)
    effects = wire.plain_effects([ef.Decided("its last word", "")])
    first.socket.sendall(journal.record(msgpack.packb((DONE, 0, [(1, effects)], None))))
    die(stage, first)
    assert stage.decided() == ["its last word"]
    stage.supervisor.look()
    assert stage.spawned[-1] == (1025, 1)


def test_what_only_a_lost_base_had_ends_the_run(stage: Stage) -> None:
    for _ in range(3):
        stage.supervisor.tell(ev.Started())
    first = Scheduler(stage, 0)
    first.does(1, base=0)
    first.does(2, base=2)
    die(stage, first)
    stage.supervisor.look()
    Scheduler(stage, 1)
    (reason,) = stage.finished()
    assert "its journal reaches to event 1 only" in reason


def test_there_is_one_tick_at_a_time(stage: Stage) -> None:
    supervisor = stage.supervisor
    assert not supervisor.may_tick  # nobody is there
    first = Scheduler(stage, 0)
    assert supervisor.may_tick
    supervisor.tell(ev.Tick())
    supervisor.tell(ev.Started())
    assert not supervisor.may_tick
    first.does(1)
    assert supervisor.may_tick
    die(stage, first)
    assert not supervisor.may_tick


def test_deaths_run_out(stage: Stage) -> None:
    supervisor = stage.supervisor
    for _ in range(2):
        die(stage, Scheduler(stage, 0))
        assert not stage.finished()
        supervisor._start_at = 0.0  # the wait is over
        supervisor.look()
    die(stage, Scheduler(stage, 0))
    assert stage.finished() == [
        "the scheduler: all 2 restarts are used up; the last death: killed by SIGKILL"
    ]


def test_the_first_death_is_made_good_at_once_and_the_next_ones_wait(tmp_path: Path) -> None:
    stage = Stage(tmp_path, restarts=50)
    delays = []
    for _ in range(8):
        stage.supervisor.gone("killed by SIGKILL", failed=False)
        delays.append(stage.supervisor._delay_s)
        stage.supervisor._start_at = 0.0
        stage.supervisor.look()
    assert delays == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    stage.supervisor.close()


def test_an_error_of_its_own_is_not_tried_again(stage: Stage) -> None:
    Scheduler(stage, 0).socket.close()
    stage.supervisor.gone("cannot write journal: the disk is full", failed=True)
    assert stage.finished() == ["the scheduler: cannot write journal: the disk is full"]
    stage.supervisor.look()
    assert len(stage.spawned) == 1


def test_silence_is_death_but_not_while_this_process_slept(stage: Stage) -> None:
    supervisor = stage.supervisor
    silent = Scheduler(stage, 0)
    supervisor.tell(ev.Tick())
    supervisor._since -= 6.0
    supervisor._looked -= 6.0  # nobody looked meanwhile
    supervisor.look()
    assert not stage.killed
    supervisor._since -= 6.0
    supervisor.look()
    assert stage.killed == [1024]
    assert stage.states()[-1] == (1024, "suspected")
    silent.socket.close()


def test_who_was_not_started_as_the_scheduler_is_not_heard(tmp_path: Path) -> None:
    stage = Stage(tmp_path, pid=os.getpid() + 1)
    stranger = Scheduler(stage, 0)
    with contextlib.suppress(ConnectionResetError):
        assert stranger.socket.recv(1) == b""
    assert not stage.supervisor.may_tick
