"""The main process's side of the scheduler: tells it everything, starts another when it dies.

Theory of operation. Whatever reaches the scheduler is numbered here and kept until it is in a base
of the scheduler's journal (``protocol.journal``). The scheduler answers every entry. When its
process has ended, another takes up the journal and says how far that goes; what is missing there is
told again, and effects that were carried out are not carried out again.

Meanwhile the run goes on: workers train what they hold, servers apply, their messages wait here.
There is no tick until the last one is answered, so time without a scheduler shows in the machine as
one long pause, for which all silence is forgiven.

A scheduler that answers nothing for ``lease_s`` is killed. One that fails by an error of its own
would fail again on the same journal: then the run ends, and can be resumed, as it does when the
deaths exceed ``restarts``.
"""

from __future__ import annotations

import math
import socket
import struct
import time
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import msgpack
import zmq

from tardygrad.config import FailureConfig
from tardygrad.engines import wire
from tardygrad.engines.scheduler_process import DONE, READY, SOCKET
from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev
from tardygrad.protocol import journal

_CREDENTIALS = struct.Struct("3i")
_CHUNK = 1 << 18
_QUICKLY_S = 10.0
"""Deaths that come sooner after one another make the next start wait."""
_FIRST_DELAY_S, _MOST_DELAY_S = 0.1, 2.0


class Supervisor:
    """Keeps a scheduler there.

    Args:
        directory: the runtime directory.
        failure: how long silence is borne, and how many deaths.
        incarnation: of the first scheduler process.
        spawn: starts a process with this incarnation, for whom effects up to this entry are done.
        kill: kills the one with this incarnation.
        perform: carries out an effect.
    """

    def __init__(
        self,
        directory: Path,
        failure: FailureConfig,
        incarnation: int,
        *,
        spawn: Callable[[int, int], int],
        kill: Callable[[int], None],
        perform: Callable[[ef.Effect], None],
    ) -> None:
        self.restarts = 0
        self.away_s = 0.0
        self.waiting: list[int] = []
        self._failure = failure
        self._incarnation = incarnation
        self._spawn, self._kill, self._perform = spawn, kill, perform
        self._entries = journal.Entries()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(directory / SOCKET))
        self._listener.listen()
        self._listener.setblocking(False)
        self._poller: zmq.Poller | None = None
        self._connection: socket.socket | None = None
        self._ready = self._blocked = False
        self._pid = 0
        self._received = bytearray()
        self._unsent = bytearray()
        self._died: float | None = None
        self._last_death = -math.inf
        self._start_at: float | None = None
        self._delay_s = 0.0
        self._ticked = 0
        # Since when an answer, or the process, is awaited; and when that was last looked at.
        self._since = self._looked = time.monotonic()
        self._closed = False

    @property
    def may_tick(self) -> bool:
        """Whether the scheduler is there and has answered the last tick."""
        return self._ready and self._entries.done >= self._ticked

    def begin(self, poller: zmq.Poller) -> None:
        """Start the first scheduler; ``poller`` is told what to wait for."""
        self._poller = poller
        poller.register(self._listener, zmq.POLLIN)
        self._start()

    def close(self) -> None:
        """The run is over; nobody is started any more."""
        self._closed = True
        self._hang_up()
        self._listener.close()

    # --- telling ------------------------------------------------------------------------------

    def tell(self, event: ev.Event) -> None:
        """Tell the scheduler; its effects come later."""
        entries, now = self._entries, time.monotonic()
        if not entries.behind:
            self._since = now
        data = journal.record(
            wire.encode_entry(wire.Entry(entries.number + 1, entries.done, now, event))
        )
        entries.keep(data)
        if type(event) is ev.Tick:
            self._ticked = entries.number
        if self._ready:
            self._unsent += data
            self._send()

    def _send(self) -> None:
        connection = self._connection
        if connection is None or not self._unsent:
            return
        try:
            while self._unsent:
                del self._unsent[: connection.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            # It is gone. What it said before is still to be read.
            self._ready = False
            self._unsent.clear()
        if bool(self._unsent) != self._blocked:
            self._blocked = not self._blocked
            assert self._poller is not None
            flags = zmq.POLLIN | (zmq.POLLOUT if self._blocked else 0)
            self._poller.register(connection, flags)

    # --- hearing ------------------------------------------------------------------------------

    def receive(self, found: Container[Any] = ()) -> None:
        """Take in what has come from the scheduler, and carry out its effects; never waits.

        Args:
            found: what a poll has found to be readable.
        """
        if self._closed:
            return
        if self._connection is None or self._listener in found:
            self._accept()
        self._send()
        connection = self._connection
        if connection is None:
            return
        try:
            while data := connection.recv(_CHUNK):
                self._received += data
                self._read()
                if len(data) < _CHUNK:
                    return
            self._hang_up()
        except BlockingIOError:
            pass
        except OSError:
            self._hang_up()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        if self._connection is not None or _caller(connection) != self._pid:
            connection.close()  # nobody has two, and a stranger none
            return
        connection.setblocking(False)
        self._connection = connection
        assert self._poller is not None
        self._poller.register(connection, zmq.POLLIN)

    def _hang_up(self) -> None:
        """What it still sends, or was to be sent, is lost; its process is about to end."""
        if self._connection is not None:
            if self._poller is not None:
                self._poller.unregister(self._connection)
            self._connection.close()
        self._connection, self._ready, self._blocked = None, False, False
        self._received.clear()
        self._unsent.clear()

    def _read(self) -> None:
        end = 0
        for payload, after in journal.scan(bytes(self._received)):
            kind, *values = msgpack.unpackb(payload, use_list=False)
            if kind == READY:
                self._is_ready(*values)
            elif kind == DONE:
                self._has_done(*values)
            end = after
        del self._received[:end]

    def _is_ready(self, number: int, replayed: int, cut: int) -> None:
        missing = self._entries.since(number)
        if missing is None:
            self._ends(
                f"its journal reaches to event {number} only, and what came next is not kept"
            )
            return
        self._ready = True
        self._since = time.monotonic()
        away = ""
        if self._died is not None:
            seconds = self._since - self._died
            self.away_s += seconds
            self._died = None
            away = f"away for {seconds:.2f} s; {replayed} events of its journal, {len(missing)} new"
            if cut:
                away += f"; {cut} bytes of the journal were torn or damaged"
        self._tell_member("ready", away)
        self._unsent += b"".join(missing)
        self._send()

    def _has_done(self, base: int, answers: Any, waiting: tuple[int, ...] | None) -> None:
        self._since = time.monotonic()
        self._entries.forget(base)
        if waiting is not None:
            self.waiting = list(waiting)
        for number, effects in answers:
            if self._entries.takes(number):
                for effect in wire.made_effects(effects):
                    self._perform(effect)

    # --- death --------------------------------------------------------------------------------

    def look(self) -> float:
        """Look at deadlines; returns when the next is due (on the monotonic clock)."""
        now = time.monotonic()
        if now - self._looked > self._failure.lease_s / 2:
            # This process was stopped, or the machine slept.
            self._since = now
        self._looked = now
        if self._start_at is not None:
            if now >= self._start_at:
                self._start()
                return now + self._failure.start_s
            return self._start_at
        limit = self._failure.lease_s if self._ready else self._failure.start_s
        awaited = self._entries.behind or not self._ready
        if awaited and now - self._since > limit:
            why = f"no answer for {now - self._since:.1f} s (allowed: {limit:g} s)"
            self._tell_member("suspected", why)
            self._since = now
            self._kill(self._incarnation)
        return now + limit

    def _start(self) -> None:
        self._start_at = None
        self._since = time.monotonic()
        self._tell_member("started", "from its journal" if self.restarts else "")
        self._pid = self._spawn(self._incarnation, self._entries.done)

    def gone(self, reason: str, *, failed: bool) -> None:
        """The process has ended; ``failed``: by an error of its own, not because it was killed."""
        if self._closed:
            return
        self.receive()
        while self._connection is not None:  # until its end
            self.receive()
        now = time.monotonic()
        self._tell_member("died", reason)
        if failed:
            self._ends(reason)
            return
        if self.restarts >= max(self._failure.restarts, 1):
            self._ends(f"all {self.restarts} restarts are used up; the last death: {reason}")
            return
        longer = min(max(2 * self._delay_s, _FIRST_DELAY_S), _MOST_DELAY_S)
        self._delay_s = longer if now - self._last_death < _QUICKLY_S else 0.0
        self._last_death = now
        if self._died is None:
            self._died = now
        self.restarts += 1
        self._incarnation += 1
        self._start_at = now + self._delay_s

    def _ends(self, reason: str) -> None:
        self._perform(ef.Finished("failed", f"the scheduler: {reason}"))

    def _tell_member(self, state: str, reason: str) -> None:
        self._perform(ef.MemberChanged("scheduler", 0, self._incarnation, state, reason))


def _caller(connection: socket.socket) -> int:
    """The number of the process at the other end, as the kernel knows it."""
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, _, _ = _CREDENTIALS.unpack(peer)
    return int(pid)
