"""Seals: how a process knows that a message comes from its own run.

Theory of operation. Every message on a run's sockets begins with a *seal*: a mark, the version of
this format, the run's lineage, a code, and the name of the child whose link it is. The code is
BLAKE2b, keyed with a secret that the main process draws for each run and hands on through the pipe
and the fork that its children come from: it never lies in a file, an argument or the environment.
The code covers everything else of the message and its *way* (which socket, which direction), so a
message can neither be forged nor turned around, nor taken for another child's.

Whatever does not open is refused with one of few reasons, which can be counted. Nothing of it is
decoded. What is sealed may still be late or come twice; that is for the protocol.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
from collections.abc import Sequence
from typing import NamedTuple

VERSION = 1
"""Of the messages' format; another one's messages are refused."""

MESSAGE_BYTES_MAX = 1 << 24
"""What a message may hold, its seal included."""

TO_MAIN, BEATS, TO_CHILD = b"c", b"h", b"d"
"""The ways: control to the main process, signs of life to it, and from it to a child."""

KEY_BYTES = 32
_MARK = b"tg"
_CODE_BYTES = 16
_HEADER = struct.Struct(f"<2sBQ{_CODE_BYTES}s")
_START = struct.Struct("<cBQI")
_LENGTH = struct.Struct("<I")
_FRAMES_MAX = 3
_NAME_BYTES_MAX = 64

MALFORMED = "it is no message of ours"
OTHER_VERSION = "another version of the format"
OTHER_RUN = "another run"
TOO_LARGE = "too large"
WRONG_KEY = "not sealed with the run's key"
UNDECODABLE = "sealed, but it cannot be decoded"
STRANGER = "sealed, but of no member of the run"
REASONS = (MALFORMED, OTHER_VERSION, OTHER_RUN, TOO_LARGE, WRONG_KEY, UNDECODABLE, STRANGER)


class Refused(Exception):
    """A message is not taken in; its only argument is one of ``REASONS``."""

    @property
    def reason(self) -> str:
        """Why."""
        return str(self.args[0])


class Secret(NamedTuple):
    """What the processes of one run know and nobody else: 32 random bytes, and whose they are."""

    key: bytes
    lineage: int

    @classmethod
    def draw(cls, lineage: int) -> Secret:
        """A new one."""
        return cls(secrets.token_bytes(KEY_BYTES), lineage)

    def _code(self, way: bytes, name: bytes, frames: Sequence[bytes]) -> bytes:
        start = _START.pack(way, VERSION, self.lineage, len(name)) + name
        code = hashlib.blake2b(start, key=self.key, digest_size=_CODE_BYTES)
        for frame in frames:
            code.update(_LENGTH.pack(len(frame)))
            code.update(frame)
        return code.digest()

    def close(self, way: bytes, name: bytes, *frames: bytes) -> list[bytes]:
        """The frames with a seal in front."""
        code = self._code(way, name, frames)
        return [_HEADER.pack(_MARK, VERSION, self.lineage, code) + name, *frames]

    def open(self, way: bytes, message: Sequence[bytes]) -> tuple[bytes, list[bytes]]:
        """The name in the seal, and the frames behind it.

        Raises:
            Refused: the message is not of this run, or of another version, or damaged.
        """
        if not 2 <= len(message) <= _FRAMES_MAX or len(message[0]) < _HEADER.size:
            raise Refused(MALFORMED)
        if sum(map(len, message)) > MESSAGE_BYTES_MAX:
            raise Refused(TOO_LARGE)
        seal, *frames = message
        mark, version, lineage, code = _HEADER.unpack_from(seal)
        name = seal[_HEADER.size :]
        if mark != _MARK or len(name) > _NAME_BYTES_MAX:
            raise Refused(MALFORMED)
        if version != VERSION:
            raise Refused(OTHER_VERSION)
        if lineage != self.lineage:
            raise Refused(OTHER_RUN)
        if not hmac.compare_digest(code, self._code(way, name, frames)):
            raise Refused(WRONG_KEY)
        return name, frames


_inherited: Secret | None = None


def inherit(secret: Secret) -> None:
    """Have the children of this process know the run's secret."""
    global _inherited
    _inherited = secret


def inherited() -> Secret:
    """The secret of the run that this process was started for."""
    assert _inherited is not None, "this process belongs to no run"
    return _inherited
