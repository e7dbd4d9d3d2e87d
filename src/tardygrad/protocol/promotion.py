"""The server that can be copied: a backup runs the same machine on the same events.

Theory of operation. A server machine is deterministic: what it was handed, and when, decides what
it is. So a *backup* begins with an image of its server's machine (``image_of``, ``take_over``) and
is handed every event that the server has handled, in that order and with that time. It comes to the
same ledger, the same version, and asks for the same changes of the parameters.

When the server dies nothing is missing from what the backup has, so a promotion takes nothing back:
leases hold, and what was read from the predecessor was read from this very shard. Such reads are
accepted, and their staleness is as exact as any. Only names change: the new incarnation, in the
trace and in what the scheduler has not seen yet.
"""

from __future__ import annotations

import copy
from typing import Any

from tardygrad.protocol import events as ev
from tardygrad.protocol import trace
from tardygrad.protocol.effects import Effect, Log, PublishClock
from tardygrad.protocol.server import Server

_OWN = ("settings", "_handlers")
"""What every machine is given anew."""


class PromotableServer(Server):
    """A server that can take a predecessor's place without a loss."""

    def __init__(self, *args: Any, **changes: Any) -> None:
        super().__init__(*args, **changes)
        self._handlers[ev.Promoted] = self._promoted

    def image_of(self) -> dict[str, Any]:
        """A copy of everything that the machine has become: plain data and protocol objects."""
        return copy.deepcopy({k: v for k, v in vars(self).items() if k not in _OWN})

    def take_over(self, image: dict[str, Any]) -> None:
        """Become what :meth:`image_of` was; the image is used up."""
        vars(self).update(image)

    def _promoted(self, event: ev.Promoted, now: float) -> list[Effect]:
        self.incarnation = event.incarnation
        self.lives = (*self.lives, event.incarnation)
        self._seen = False
        # The checkpoint of which that was a part is given up.
        self._snapshot_answer = None
        self._unseen = {
            number: (sent, report._replace(incarnation=event.incarnation))
            for number, (sent, report) in self._unseen.items()
        }
        record = trace.Record(trace.PROMOTED, self.incarnation, self.version)
        clock: list[Effect] = [PublishClock(self._published)] if self._has_members else []
        return [Log(record), *clock, self._ready()]
