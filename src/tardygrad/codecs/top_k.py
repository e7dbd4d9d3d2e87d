r"""The largest elements alone, with their places.

Formula. Of the n elements of a shard's part::

    p    <- delta + e
    C(p) = the k = ceil(`fraction` n) elements of largest magnitude, 0 elsewhere
    e    <- p - C(p)                                  8 bytes for each of the k

Stich et al., arXiv 1809.07599, with error feedback; Aji & Heafield, arXiv 1704.05021. From a
`fraction` of a half on the places would cost more than they save, so the whole part travels: then
C(p) = p.

When to use it: slow links and large models, whose gradients live in few elements; the residual
makes it as much of a delay as of a loss. When not: without error feedback, where most elements
never move; or with many stale workers and a high learning rate: what comes late comes all at once,
so begin with a lower rate, or with a larger `fraction`.

>>> from tardygrad.codecs.top_k import TopK
>>> TopK().fraction
0.01
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field

from tardygrad.codecs.base import FLOAT_BYTES, Coder, LossyCodec, Part

_PLACE_BYTES = 4


class TopK(LossyCodec):
    """Settings of the largest elements; see the module's text."""

    name: Literal["top_k"] = "top_k"
    fraction: float = Field(default=0.01, gt=0, le=1)
    """The share of elements that travel."""

    def coder(self, part: Part) -> TopKCoder:
        """A new coder for a shard's part."""
        return TopKCoder(part, self.fraction)


class TopKCoder(Coder):
    """The places, ascending, then the values; or all values."""

    def __init__(self, part: Part, fraction: float) -> None:
        self._size = part.size
        # 0.07 * 100 is a little more than 7, which is no reason to send 8.
        self._count = min(part.size, max(1, math.ceil(round(fraction * part.size, 6))))
        self._places_end = _PLACE_BYTES * self._count
        self.nbytes = self._places_end + FLOAT_BYTES * self._count
        if self.nbytes >= FLOAT_BYTES * part.size:
            self._count, self._places_end = part.size, 0
            self.nbytes = FLOAT_BYTES * part.size
        self._decoded = torch.zeros(part.size)

    def encode(self, values: torch.Tensor, out: torch.Tensor) -> None:
        """Find the largest; NaN counts as larger than any number."""
        found = out[self._places_end :].view(torch.float32)
        if not self._places_end:
            found.copy_(values)
            return
        _, places = values.abs().topk(self._count, sorted=False)
        places, _ = places.sort()
        out[: self._places_end].view(torch.int32).copy_(places)
        torch.index_select(values, 0, places, out=found)

    def decode(self, data: torch.Tensor) -> torch.Tensor:
        """Zeros, and the values at their places."""
        found = data[self._places_end :].view(torch.float32)
        if not self._places_end:
            return found
        places = data[: self._places_end].view(torch.int32).to(torch.int64)
        self._decoded.zero_()
        return self._decoded.index_copy_(0, places, found)
