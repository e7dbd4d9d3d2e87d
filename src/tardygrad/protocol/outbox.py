"""Commands to servers that are repeated until they are answered.

A command has a key; a newer command under the same key takes its place. Whoever receives one twice
answers twice, so that neither a lost command nor a lost answer matters.
"""

from __future__ import annotations

from collections.abc import Hashable

from tardygrad.protocol.effects import Send
from tardygrad.protocol.events import Event


class Outbox:
    """What has not been answered yet."""

    def __init__(self) -> None:
        self._sent: dict[Hashable, tuple[float, Send]] = {}

    def __len__(self) -> int:
        return len(self._sent)

    def command(self, key: Hashable, shard: int, message: Event, now: float) -> Send:
        """Send ``message`` to a server, now and until it is answered."""
        send = Send(("server", shard), message)
        self._sent[key] = (now, send)
        return send

    def answered(self, key: Hashable, message: Event) -> None:
        """``message`` is answered; a newer command under its key is not."""
        sent = self._sent.get(key)
        if sent is not None and sent[1].message == message:
            del self._sent[key]

    def forget(self, key: Hashable) -> None:
        """Nobody waits for this answer any more."""
        self._sent.pop(key, None)

    def due(self, now: float, patience_s: float) -> list[Send]:
        """The commands that have waited for ``patience_s``, to be sent again."""
        late = [key for key, (sent, _) in self._sent.items() if now - sent >= patience_s]
        for key in late:
            self._sent[key] = (now, self._sent[key][1])
        return [self._sent[key][1] for key in late]
