"""Where everything lies in a push: each shard's encoded part, then the buffers as they are.

Every part begins at a multiple of 64 bytes, and key ranges are multiples of 64 bytes too; so
without a codec a push is the flat vector itself, byte for byte.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tardygrad.codecs.base import FLOAT_BYTES, Codec, Coder, Part
from tardygrad.layout import KeyRange, Layout

_LINE = 64


class PushFormat:
    """How a model's update becomes the bytes of a push.

    Attributes:
        nbytes: of a whole push, the gaps between the parts included.
        sent: for each shard the bytes that travel to it; the buffers go with shard 0.
        unencoded: the same without a codec.
    """

    def __init__(self, codec: Codec, layout: Layout, ranges: Sequence[KeyRange]) -> None:
        self.codec = codec
        self.parameters_size = layout.parameters_size
        self.owned = [owned.slice for owned in ranges]
        self._parts = [Part.of(layout, owned) for owned in ranges]
        sizes = [coder.nbytes for coder in self.coders()]
        self._where: list[slice] = []
        at = 0
        for size in sizes:
            self._where.append(slice(at, at + size))
            at = -(-(at + size) // _LINE) * _LINE
        buffers = FLOAT_BYTES * layout.buffers_size
        self._buffers = slice(at, at + buffers)
        self.nbytes = at + buffers
        self.sent = [size + buffers * (shard == 0) for shard, size in enumerate(sizes)]
        self.unencoded = [
            FLOAT_BYTES * owned.size + buffers * (shard == 0) for shard, owned in enumerate(ranges)
        ]

    def coders(self) -> list[Coder]:
        """A new coder for each shard."""
        return [self.coder(shard) for shard in range(len(self._parts))]

    def coder(self, shard: int) -> Coder:
        """A new coder for a shard."""
        return self.codec.coder(self._parts[shard])

    def part(self, push: torch.Tensor, shard: int) -> torch.Tensor:
        """A shard's encoded part of a push (uint8 ``[nbytes]``): a view."""
        return push[self._where[shard]]

    def buffers(self, push: torch.Tensor) -> torch.Tensor:
        """The buffers in a push (uint8 ``[nbytes]``): a view, float32 ``[buffers_size]``."""
        return push[self._buffers].view(torch.float32)
