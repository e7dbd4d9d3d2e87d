"""Commands to servers that are repeated until they are answered.

A command has a key; a newer command under the same key takes its place. Whoever receives one twice
answers twice, so that neither a lost command nor a lost answer matters.
"""

from __future__ import annotations

from collections.abc import Hashable

from tardygrad.protocol.effects import Send
from tardygrad.protocol.events import Event, SnapshotAsked


class Outbox:
    """What has not been answered yet."""

    def __init__(self) -> None:
        self._sent: dict[Hashable, tuple[float, Send]] = {}
        self._first: dict[Hashable, float] = {}

    def __len__(self) -> int:
        return len(self._sent)

    def command(self, key: Hashable, shard: int, message: Event, now: float) -> Send:
        """Send ``message`` to a server, now and until it is answered."""
        send = Send(("server", shard), message)
        self._sent[key] = (now, send)
        self._first[key] = now
        return send

    def answered(self, key: Hashable, message: Event) -> None:
        """``message`` is answered; a newer command under its key is not."""
        sent = self._sent.get(key)
        if sent is not None and sent[1].message == message:
            self.forget(key)

    def forget(self, key: Hashable) -> None:
        """Nobody waits for this answer any more."""
        self._sent.pop(key, None)
        self._first.pop(key, None)

    def oldest(self, shard: int) -> float | None:
        """When the server was first sent what it has owed an answer to for longest.

        A snapshot takes its time, and is written while the server does something else.
        """
        to = ("server", shard)
        owed = (
            self._first[key]
            for key, (_, send) in self._sent.items()
            if send.to == to and type(send.message) is not SnapshotAsked
        )
        return min(owed, default=None)

    def due(self, now: float, patience_s: float) -> list[Send]:
        """The commands that have waited for ``patience_s``, to be sent again."""
        late = [key for key, (sent, _) in self._sent.items() if now - sent >= patience_s]
        for key in late:
            self._sent[key] = (now, self._sent[key][1])
        return [self._sent[key][1] for key in late]
