"""A shard's view of the push slots: where its part of each update lies, decoded when needed."""

from __future__ import annotations

import torch

from tardygrad.codecs.pushes import PushFormat
from tardygrad.engines.shared_memory import Arena

At = tuple[int, int]
"""A slot: its worker and its number there."""


class SlotViews:
    """What a server, or a backup, reads of each slot.

    ``all`` lists those of the ``workers`` first places, which are in use; the list only grows.
    """

    def __init__(self, arena: Arena, form: PushFormat, shard: int) -> None:
        self.workers = 0
        self.all: list[At] = []
        self._arena, self._form, self._shard = arena, form, shard
        self._parts: dict[At, tuple[torch.Tensor, torch.Tensor]] = {}
        self._coder = form.coder(shard)
        self._updates: dict[At, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def complete(self) -> bool:
        """Whether these are the slots of all workers."""
        return self._arena.in_use == self.workers

    def grow(self) -> list[At]:
        """Look at the slots of workers that have joined as well; returns these slots."""
        form, slots = self._form, range(self._arena.geometry.slots)
        before, self.workers = self.workers, self._arena.in_use
        new = [(w, s) for w in range(before, self.workers) for s in slots]
        for at in new:
            push = self._arena.push(*at)
            part, buffers = form.part(push, self._shard), form.buffers(push)
            self._parts[at] = part, buffers
            if form.codec.is_plain:
                self._updates[at] = self._coder.decode(part), buffers
        self.all += new
        return new

    def index(self, at: At) -> int:
        """Where the slot stands in ``all``."""
        return at[0] * self._arena.geometry.slots + at[1]

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
