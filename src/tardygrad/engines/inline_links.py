"""The simulator's links: whatever has bytes occupies them, and queues behind what came before.

Theory of operation. Every worker and every server has two links, up for what it sends and down for
what it receives; a server's serve all workers. A transfer of ``b`` bytes occupies a link of ``w``
bytes a second for ``b / w`` seconds, in the order in which transfers come to it. It goes through
two of them, the sender's and the receiver's, and through both at the same time: its first byte
comes to the second link when the first has begun with it, a latency later. So alone it takes the
latency and the time of the narrower link, not of both. A link without a limit takes no time.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from tardygrad.config import Bandwidth
from tardygrad.protocol import events as ev

__all__ = ["Arriving", "Link", "Links", "links_of"]


class Arriving(NamedTuple):
    """A message whose first byte has come to the receiver's link; its last is there at ``last``."""

    source: ev.Address
    to: ev.Address
    message: ev.Push | ev.ShardPulled
    size: int
    last: float


class Link:
    """One direction of one member's link.

    >>> link = Link(100.0)
    >>> link.take(0.0, 50), link.take(0.2, 50), link.take(3.0, 50)
    ((0.0, 0.5), (0.5, 1.0), (3.0, 3.5))
    """

    __slots__ = ("_bytes_per_s", "_free_at")

    def __init__(self, bytes_per_s: float | None) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_at = 0.0

    def take(self, now: float, count: int) -> tuple[float, float]:
        """When a transfer of ``count`` bytes that comes at ``now`` begins and ends here."""
        if self._bytes_per_s is None:
            return now, now
        began = max(now, self._free_at)
        self._free_at = began + count / self._bytes_per_s
        return began, self._free_at


class Links:
    """All links of a simulation, and what is on its way."""

    def __init__(self, bandwidth: Bandwidth, workers: int, servers: int) -> None:
        counts = {"worker": workers, "server": servers}
        self._up, self._down = (
            {
                (kind, index): Link(bytes_per_s)
                for kind, count in counts.items()
                for index, bytes_per_s in enumerate(bandwidth.of(kind, way, count))
            }
            for way in ("up", "down")
        )
        self._travelling: dict[tuple[ev.Address, ev.Address], dict[int, float]] = {}

    def up(self, address: ev.Address) -> Link:
        """The link by which a member sends."""
        return self._up[address]

    def down(self, address: ev.Address) -> Link:
        """The link by which a member receives."""
        return self._down[address]

    def travels(self, source: ev.Address, to: ev.Address, seq: int, now: float) -> bool:
        """Whether the message of this number is still on its way."""
        pair = (source, to)
        there = self._travelling.get(pair, {})
        self._travelling[pair] = there = {s: until for s, until in there.items() if until > now}
        return seq in there

    def leaves(self, source: ev.Address, to: ev.Address, seq: int) -> None:
        """It is on its way, nobody knows until when."""
        self._travelling[(source, to)][seq] = math.inf

    def arrives(self, arriving: Arriving, at: float) -> None:
        """It will be there at ``at``."""
        self._travelling[(arriving.source, arriving.to)][arriving.message.seq] = at


def links_of(bandwidth: Bandwidth, workers: int, servers: int) -> Links | None:
    """The links of so many members, or None where none has a limit."""
    limits = bandwidth.model_dump().values()
    limited = any(any(given) if isinstance(given, tuple) else given for given in limits)
    return Links(bandwidth, workers, servers) if limited else None
