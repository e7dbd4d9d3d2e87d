"""What a shard was: the last few versions, for servers that compare an update with what it read.

A shard keeps copies of itself, so its memory and its snapshots grow by as many times its size.
"""

from __future__ import annotations

from collections import deque

import torch


class Past:
    """The newest ``length`` versions of one shard.

    Args:
        now: the shard as it is at first, float32 ``[size]``.
        length: how many versions are kept, at least 1.
    """

    def __init__(self, now: torch.Tensor, length: int) -> None:
        self._versions: deque[torch.Tensor] = deque([now.clone()], maxlen=length)

    def add(self, now: torch.Tensor) -> None:
        """The shard has a new version."""
        full = len(self._versions) == self._versions.maxlen
        copy = self._versions.popleft().copy_(now) if full else now.clone()
        self._versions.append(copy)

    def back(self, staleness: int) -> torch.Tensor:
        """The shard ``staleness`` versions ago, or the oldest that is kept: ``[size]``."""
        return self._versions[-1 - min(staleness, len(self._versions) - 1)]

    def state(self) -> torch.Tensor:
        """All versions that are kept, the oldest first: ``[versions, size]``."""
        return torch.stack(list(self._versions))

    def load_state(self, state: torch.Tensor) -> None:
        """Take up what :meth:`state` returned."""
        self._versions.clear()
        self._versions.extend(version.clone() for version in state)
