"""The zygote: imports everything once, then forks a child for each request of the nursery.

It stays single-threaded (one compute thread, no sockets of its own), so that forking is safe. A
child closes what belongs to the zygote, sends its output to a log file, ignores the terminal's
signals (the main process decides when to stop) and plays its role. The zygote reports each child's
end.

When the lifeline closes, the zygote kills its children, waits until they are gone, and leaves: a
child that is frozen, or that computes and hears nothing, goes too. Should the zygote itself be
killed, the kernel kills the children (Linux), or their own watch on the lifeline ends them.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import select
import signal
import socket
import sys
import threading
import traceback
from typing import Any

import msgpack

from tardygrad.engines import seals

_PARENT_DEATH_SIGNAL = 1
_LOOK_EVERY_MS = 1000


def main() -> int:
    """Serve the nursery until its lifeline closes."""
    descriptor, lifeline = (int(n) for n in os.environ.pop("TARDYGRAD_ZYGOTE").split(","))
    zygote = _Zygote(socket.socket(fileno=descriptor), lifeline)
    try:
        _import_everything()
        gc.collect()
        gc.freeze()
        # The main process may go while it is being told something.
        with contextlib.suppress(ConnectionError):
            zygote.serve()
    finally:
        zygote.end_children()
    return 0


def _import_everything() -> None:
    import torch

    import tardygrad.engines.backup_process
    import tardygrad.engines.evaluator_process
    import tardygrad.engines.scheduler_process
    import tardygrad.engines.server_process
    import tardygrad.engines.worker_process  # noqa: F401

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    # The first optimizer loads a second's worth of modules; every server would pay for it.
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    torch.optim.SGD([parameter], lr=0.1).step()


class _Zygote:
    def __init__(self, connection: socket.socket, lifeline: int) -> None:
        self.connection, self.lifeline = connection, lifeline
        self.pid, self.parent = os.getpid(), os.getppid()
        self.children: dict[int, None] = {}
        self.libc = ctypes.CDLL(None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.wake_read, self.wake_write = os.pipe()
        os.set_blocking(self.wake_read, False)
        os.set_blocking(self.wake_write, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)

    def serve(self) -> None:
        """Answer requests and report ends, as long as the main process is there."""
        poller = select.poll()
        for descriptor in (self.connection.fileno(), self.lifeline, self.wake_read):
            poller.register(descriptor, select.POLLIN)
        # Somebody whom the main process forked may hold the lifeline open: look at the parent too.
        while os.getppid() == self.parent:
            readable = [descriptor for descriptor, _ in poller.poll(_LOOK_EVERY_MS)]
            if self.lifeline in readable:
                return
            if self.wake_read in readable:
                os.read(self.wake_read, 4096)
                self._reap()
            if self.connection.fileno() in readable:
                data = self.connection.recv(1 << 16)
                if not data:
                    return
                self.connection.send(msgpack.packb(self._answer(msgpack.unpackb(data))))

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self.children.pop(pid, None)
            code = os.waitstatus_to_exitcode(status)
            self.connection.send(msgpack.packb({"exit": [pid, code]}))

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if "job" in request:
            os.environ["TARDYGRAD_JOB"] = request["job"]
            seals.inherit(seals.Secret(*request["secret"]))
            return {}
        try:
            pid = os.fork()
        except OSError as error:
            return {"error": error.strerror}
        if pid == 0:
            self._become(request)
        self.children[pid] = None
        return {"pid": pid}

    def end_children(self) -> None:
        """Kill every child and wait until it is gone."""
        if os.getpid() != self.pid:
            return
        for pid in self.children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in self.children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)

    def _become(self, request: dict[str, Any]) -> None:
        """The child's life; never returns."""
        status = 1
        try:
            with contextlib.suppress(AttributeError, OSError):
                self.libc.prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self.connection.close()
            os.close(self.wake_read)
            os.close(self.wake_write)
            _redirect_output(request["log"])
            threading.Thread(target=_watch, args=(self.lifeline,), daemon=True).start()
            if os.getppid() == self.pid:
                status = _play(request["role"], request["arguments"])
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError):  # a full disk
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)


def _redirect_output(path: str) -> None:
    try:
        log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError:
        # A log is not worth a run, and the terminal is not the place for it.
        log = os.open(os.devnull, os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _watch(lifeline: int) -> None:
    # Nothing is ever written: this returns when the main process is gone.
    os.read(lifeline, 1)
    os._exit(3)


def _play(role: str, arguments: dict[str, Any]) -> int:
    status: int = importlib.import_module(f"tardygrad.engines.{role}_process").main(**arguments)
    return status


if __name__ == "__main__":
    sys.exit(main())
