"""A shard's view of the push slots: where its part of each update lies, decoded when needed."""

from __future__ import annotations

import torch

from tardygrad.codecs.pushes import PushFormat
from tardygrad.engines.shared_memory import Arena

At = tuple[int, int]
"""A slot: its worker and its number there."""


class SlotViews:
    """What a server, or a backup, reads of each slot. ``all`` lists them."""

    def __init__(self, arena: Arena, form: PushFormat, shard: int) -> None:
        g = arena.geometry
        self.all: list[At] = [(w, s) for w in range(g.workers) for s in range(g.slots)]
        pushes = {at: arena.push(*at) for at in self.all}
        self._parts = {
            at: (form.part(push, shard), form.buffers(push)) for at, push in pushes.items()
        }
        self._coder = form.coder(shard)
        self._updates: dict[At, tuple[torch.Tensor, torch.Tensor]] = {}
        if form.codec.is_plain:
            self._updates = {at: (self._coder.decode(p), b) for at, (p, b) in self._parts.items()}

    def update(self, at: At) -> tuple[torch.Tensor, torch.Tensor]:
        """The shard's part of the slot's update, and its buffers.

        Without a codec these are the slot's own memory.
        """
        found = self._updates.get(at)
        if found is None:
            part, buffers = self._parts[at]
            found = self._coder.decode(part), buffers
        return found

    def buffers(self, at: At) -> torch.Tensor:
        """The buffers of the slot's update."""
        return self._parts[at][1]
