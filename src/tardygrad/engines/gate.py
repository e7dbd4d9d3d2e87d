"""The gate: the main process's two sockets, and what is let in from them.

Theory of operation. One socket takes messages and gives orders, the other takes signs of life. Both
exist only as files in the run's directory, which nobody but its owner may enter, and each message
must be sealed with the run's key (``seals``). An answer goes to wherever the child's newest sealed
message came from: who merely calls itself a child gets nothing and takes nothing from it. What is
not let in is counted by its reason and never decoded; the first of each reason is told at once, the
counts from time to time and at the end. Each look at a socket ends in time, however much there is.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import zmq

from tardygrad.engines import seals, wire
from tardygrad.engines.seals import Refused, Secret
from tardygrad.protocol import events as ev

MESSAGE, REPORT, FAILURE, EVALUATION, IDLE, HELLO = b"m", b"r", b"f", b"e", b"i", b"h"
"""What the first frame behind a seal says the second one is."""

_LISTEN_S = 0.05
_TELL_EVERY_S = 10.0
_FRAMES_MAX = 8
_QUEUE = 256
_TAGS = (MESSAGE, REPORT, FAILURE, EVALUATION, IDLE, HELLO)


class Letter(NamedTuple):
    """A message of ``incarnation`` of a member: an event of the protocol, or a table of counts."""

    sender: ev.Address
    incarnation: int
    tag: bytes
    content: Any


class Beat(NamedTuple):
    """A sign of life, with its sender's newest counts."""

    beat: ev.Heartbeat
    report: dict[str, Any]


class Gate:
    """Both sockets of the main process.

    Args:
        directory: the run's runtime directory.
        secret: the run's.
        decided: is told what is refused, and why.
    """

    def __init__(
        self, directory: Path, secret: Secret, decided: Callable[[str, str], None]
    ) -> None:
        self._secret, self._decided = secret, decided
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.control = self._bind(directory / "control")
        self.heartbeats = self._bind(directory / "heartbeats")
        self.refused: Counter[str] = Counter()
        self._told = 0
        self._tell_next = 0.0
        # Where each child's newest message came from, and of which incarnation it was.
        self._routes: dict[ev.Address, tuple[int, bytes]] = {}

    def _bind(self, path: Path) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, seals.MESSAGE_BYTES_MAX)
        socket.setsockopt(zmq.RCVHWM, _QUEUE)
        socket.bind(f"ipc://{path}")
        return socket

    # --- coming in ----------------------------------------------------------------------------

    def letters(self) -> Iterator[Letter]:
        """What has come on the control socket; bounded in time."""
        for route, message in self._arrived(self.control):
            try:
                letter = self._letter(message)
            except Refused as refusal:
                self._refuse(refusal.reason, message)
                continue
            newest, _ = self._routes.get(letter.sender, (-1, b""))
            if letter.incarnation >= newest:
                self._routes[letter.sender] = (letter.incarnation, route)
            if letter.tag != HELLO:
                yield letter

    def _letter(self, message: list[bytes]) -> Letter:
        name, frames = self._secret.open(seals.TO_MAIN, message)
        if len(frames) != 2 or frames[0] not in _TAGS:
            raise Refused(seals.UNDECODABLE)
        tag, data = frames
        content = wire.decode(data) if tag == MESSAGE else wire.decode_data(data)
        if content is None:
            raise Refused(seals.UNDECODABLE)
        return Letter(*_parsed(name), tag, content)

    def beats(self) -> Iterator[Beat]:
        """What has come on the socket for signs of life; bounded in time."""
        for _, message in self._arrived(self.heartbeats):
            try:
                yield self._beat(message)
            except Refused as refusal:
                self._refuse(refusal.reason, message)

    def _beat(self, message: list[bytes]) -> Beat:
        name, frames = self._secret.open(seals.BEATS, message)
        beat = wire.decode(frames[0])
        report = wire.decode_data(frames[1]) if len(frames) == 2 else None
        if not isinstance(beat, ev.Heartbeat) or report is None:
            raise Refused(seals.UNDECODABLE)
        if _parsed(name) != ((beat.kind, beat.id), beat.incarnation):
            raise Refused(seals.STRANGER)
        return Beat(beat, report)

    def _arrived(self, socket: zmq.Socket[bytes]) -> Iterator[tuple[bytes, list[bytes]]]:
        # However many messages there are, deadlines and the other socket get their turn.
        until = time.monotonic() + _LISTEN_S
        while time.monotonic() < until:
            try:
                route = socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            message: list[bytes] = []
            while socket.getsockopt(zmq.RCVMORE):
                frame = socket.recv(zmq.NOBLOCK)
                if len(message) < _FRAMES_MAX:
                    message.append(frame)
            yield route, message

    # --- going out ----------------------------------------------------------------------------

    def send(self, to: ev.Address, incarnation: int, data: bytes) -> bool:
        """Send to a child; one that has not spoken yet, or is another by now, does not get it.

        Returns:
            Whether it was sent.
        """
        spoke, route = self._routes.get(to, (-1, b""))
        if spoke != incarnation:
            return False
        sealed = self._secret.close(seals.TO_CHILD, name_of(to, incarnation), data)
        self.control.send_multipart([route, *sealed])
        return True

    # --- what is refused ----------------------------------------------------------------------

    def strange(self, letter: Letter) -> None:
        """Refuse what is sealed and of nobody who takes part."""
        self._refuse(seals.STRANGER, [repr(letter[:3]).encode()])

    def _refuse(self, reason: str, message: list[bytes]) -> None:
        self.refused[reason] += 1
        if self.refused[reason] == 1:
            sizes = [len(frame) for frame in message]
            self._told += 1
            self._decided("a message is refused", f"{reason} (frames of {sizes} bytes)")

    def tell(self, now: float, *, end: bool = False) -> None:
        """Tell how many messages were refused, if there are new ones and it is time."""
        total = self.refused.total()
        if not total or (not end and (now < self._tell_next or total == self._told)):
            return
        self._tell_next, self._told = now + _TELL_EVERY_S, total
        counts = ", ".join(f"{n} {reason}" for reason, n in sorted(self.refused.items()))
        self._decided(f"{total} messages were refused {'in all' if end else 'so far'}", counts)

    def close(self) -> None:
        """Let nobody in any more."""
        self.control.close()
        self.heartbeats.close()
        self._context.term()


def name_of(address: ev.Address, incarnation: int) -> bytes:
    """A child's name in its seals."""
    return f"{address[0]}-{address[1]}.{incarnation}".encode()


def _parsed(name: bytes) -> tuple[ev.Address, int]:
    try:
        place, _, incarnation = name.decode().partition(".")
        kind, _, member = place.partition("-")
        return (kind, int(member)), int(incarnation)
    except ValueError:
        raise Refused(seals.STRANGER) from None


def packed(data: dict[str, Any]) -> bytes:
    """What is no message of the protocol, as bytes."""
    found: bytes = msgpack.packb(data)
    return found
