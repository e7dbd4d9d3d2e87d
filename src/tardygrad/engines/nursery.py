"""Where processes come from: one child that has imported everything, and forks the others.

Importing torch takes seconds and a hundred megabytes; a fork of a process that has done it takes
milliseconds and shares the pages. So the main process starts one *zygote*
(``tardygrad.engines.zygote``), which stays single-threaded, and asks it for every worker and
server. Nothing of the caller's ``__main__`` is run again, so scripts need no guard and notebooks
work.

Every descendant holds the reading end of a *lifeline*, a pipe whose writing end only the main
process has: when the main process is gone, however it went, the lifeline closes and all leave.

This module imports nothing heavy: the zygote is started first, and imports torch while the main
process does.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

from tardygrad.engines.seals import Secret
from tardygrad.errors import TrainingFailed

_prestarted: Nursery | None = None


class Exit(NamedTuple):
    """A child's end: ``status`` is its exit code, or minus the signal that ended it."""

    pid: int
    status: int


class Nursery:
    """The main process's side of the zygote."""

    def __init__(self, threads: int = 1) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        lifeline_read, self._lifeline = os.pipe()
        environment = dict(os.environ)
        environment.update(
            OMP_NUM_THREADS=str(threads),
            MKL_NUM_THREADS=str(threads),
            TARDYGRAD_ZYGOTE=f"{theirs.fileno()},{lifeline_read}",
            PYTHONPATH=os.pathsep.join([str(p) or str(Path.cwd()) for p in sys.path]),
        )
        self._process = subprocess.Popen(
            # -P: what happens to lie in the current directory is imported only if it is here too.
            [sys.executable, "-P", "-m", "tardygrad.engines.zygote"],
            pass_fds=(theirs.fileno(), lifeline_read),
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        os.close(lifeline_read)
        self._socket = ours
        self._poller = select.poll()
        self._poller.register(ours, select.POLLIN)
        self._spawned = 0
        self._exits: list[Exit] = []

    def fileno(self) -> int:
        """For polling: readable when a child has ended."""
        return self._socket.fileno()

    @property
    def pid(self) -> int:
        """The zygote's process number."""
        return self._process.pid

    def job(self, path: str, secret: Secret) -> None:
        """Tell the zygote where the job is described and the run's secret, before any child."""
        self._request({"job": path, "secret": secret})

    def spawn(self, role: str, arguments: dict[str, Any], log: str) -> int:
        """Fork a child that plays ``role``; returns its process number.

        Args:
            role: ``scheduler``, ``worker``, ``server`` or ``evaluator``.
            arguments: plain data for the role.
            log: file that gets the child's standard output and error.

        Raises:
            TrainingFailed: the zygote is gone.
        """
        answer = self._request({"role": role, "arguments": arguments, "log": log})
        self._spawned += 1
        return int(answer["pid"])

    def _request(self, message: dict[str, Any]) -> dict[str, Any]:
        try:
            self._socket.send(msgpack.packb(message))
            while True:
                answer = self._receive()
                if "exit" not in answer:
                    break
                self._exits.append(Exit(*answer["exit"]))
        except (OSError, EOFError) as error:
            raise TrainingFailed(
                f"the process that starts workers and servers is gone ({error or 'it ended'}); "
                "resume the run"
            ) from error
        if "error" in answer:
            raise TrainingFailed(f"no process could be started: {answer['error']}")
        return answer

    def _receive(self) -> dict[str, Any]:
        data = self._socket.recv(1 << 16)
        if not data:
            raise EOFError
        decoded: dict[str, Any] = msgpack.unpackb(data)
        return decoded

    def exits(self) -> list[Exit]:
        """Children that ended since the last call; never waits.

        Raises:
            TrainingFailed: the zygote is gone.
        """
        while self._poller.poll(0):
            try:
                answer = self._receive()
            except (OSError, EOFError) as error:
                raise TrainingFailed(
                    "the process that starts workers and servers is gone; resume the run"
                ) from error
            if "exit" in answer:
                self._exits.append(Exit(*answer["exit"]))
        found, self._exits = self._exits, []
        return found

    def close(self, patience_s: float = 5.0) -> None:
        """End the zygote and every child of it."""
        with contextlib.suppress(OSError):
            os.close(self._lifeline)
        self._lifeline = -1
        with contextlib.suppress(OSError):
            self._socket.close()
        # Without a child nothing needs to be wound up; it may not even have imported torch yet.
        deadline = time.monotonic() + (patience_s if self._spawned else 0.0)
        while self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()


def prestart(threads: int = 1) -> None:
    """Start a zygote now for the next ``take``: it imports torch while the caller does."""
    global _prestarted
    if _prestarted is None:
        _prestarted = Nursery(threads)


def take(threads: int = 1) -> Nursery:
    """A nursery: the one that was started before, or a new one."""
    global _prestarted
    nursery, _prestarted = _prestarted, None
    return nursery or Nursery(threads)


def discard() -> None:
    """End a zygote that was started before and is not wanted after all."""
    global _prestarted
    nursery, _prestarted = _prestarted, None
    if nursery is not None:
        nursery.close()
