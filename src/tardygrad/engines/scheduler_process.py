"""The scheduler's process: the machine, its journal, and nothing else.

The main process sends it records of entries, which it writes to its journal as they are, handles
and answers. It sends nothing unasked and waits for nobody. When it dies, another one takes up the
journal (``protocol.journal``).
"""

from __future__ import annotations

import contextlib
import functools
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgpack

from tardygrad.engines import wire
from tardygrad.engines.base import Job
from tardygrad.engines.child import Link, ask_for_short_slices, live
from tardygrad.engines.scheduler_host import Answer, SchedulerHost
from tardygrad.protocol import journal
from tardygrad.protocol.events import Tick
from tardygrad.storage.journal import JournalFile

SOCKET = "scheduler"
"""The main process listens here, in the runtime directory."""
READY, DONE = "ready", "done"
_BASE_EVERY = 10_000
"""Entries between two bases: some minutes of a run, and a few tenths of a second to take up."""
_CHUNK = 1 << 18


def main(incarnation: int, done: int) -> int:
    """Lease, watch and decide until the run ends; returns the exit status."""
    return live("scheduler", 0, incarnation, functools.partial(_schedule, done=done))


def journal_of(run_directory: Path) -> Path:
    """Where a run's journal lies."""
    return run_directory / "scheduler" / "journal"


def _schedule(link: Link, job: Job, directory: Path, done: int) -> None:
    ask_for_short_slices()
    assert job.run_directory is not None
    host = SchedulerHost(job, JournalFile(journal_of(job.run_directory)), _BASE_EVERY)
    answers = host.take_up(done)
    # When the main process hangs up, this one is not wanted any more.
    with (
        contextlib.suppress(ConnectionError),
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection,
    ):
        connection.connect(str(directory / SOCKET))
        connection.sendall(_packed(READY, host.number, host.number - host.base, host.cut))
        connection.sendall(_done(host, answers))
        data = b""
        while received := connection.recv(_CHUNK):
            answers, end = host.handle(data + received)
            data = (data + received)[end:]
            if answers:
                connection.sendall(_done(host, answers))


def _done(host: SchedulerHost, answers: Sequence[Answer]) -> bytes:
    plain = [(answer.number, wire.plain_effects(answer.effects)) for answer in answers]
    ticked = any(type(answer.event) is Tick for answer in answers)
    return _packed(DONE, host.base, plain, host.waiting if ticked else None)


def _packed(*values: Any) -> bytes:
    return journal.record(msgpack.packb(values))
