"""The nouns that all parts share, as distinct types.

Most of them are small whole numbers.  A version is not a clock and a worker is not a shard, so
each has its own ``NewType``: the checker then refuses to take one for another, at no cost while
the program runs.  Units are seconds and samples throughout, and they stand last in a name
(``lease_s``).
"""

from __future__ import annotations

from typing import NewType, TypeAlias

WorkerId = NewType("WorkerId", int)
"""A worker's slot, 0 .. workers - 1; its replacement after a death takes the same slot."""

ShardId = NewType("ShardId", int)
"""A shard of the flat vector, 0 .. servers - 1; also the number of the server that owns it."""

Version = NewType("Version", int)
"""How many updates a shard has applied since the run began."""

Clock = NewType("Clock", int)
"""How many steps a worker has finished; what bounded staleness compares."""

Fence = NewType("Fence", int)
"""The number of a lease; it only grows, so that an older lease can be told and refused."""

Session = NewType("Session", int)
"""One stretch of a worker's local state; a worker that starts afresh opens another."""

Incarnation = NewType("Incarnation", int)
"""How often a worker, a server or a whole run has been started again; the first is 0."""

Epoch = NewType("Epoch", int)
"""A pass over the data, from 0; shown to people from 1."""

Seconds: TypeAlias = float
"""A duration, or an instant on the clock that the engine hands in."""
