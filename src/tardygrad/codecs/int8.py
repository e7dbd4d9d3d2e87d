r"""Eight bits an element, and a scale for each block of elements.

Formula. The part is cut into blocks b of `block` elements::

    p    <- delta + e
    s_b  = max |p_b| / 127
    q_b  = round(p_b / s_b)                           ties to even, -127 to 127
    C(p) = q_b s_b                                    1 + 4 / `block` bytes an element
    e    <- p - C(p)

Block-wise scales: Dettmers et al., arXiv 2110.02861 (for optimizer states). The rounding is to the
nearest and not at random (as in QSGD, Alistarh et al., arXiv 1610.02132): error feedback takes away
the bias that random rounding is for, and a run stays repeatable.

When to use it: a quarter of the bytes for hardly any loss. When not: a few elements are a thousand
times larger than their neighbours: they set the scale, and the others wait in the residual; a
smaller `block` helps.

>>> from tardygrad.codecs.int8 import Int8
>>> Int8().block
256
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from tardygrad.codecs.base import FLOAT_BYTES, Coder, LossyCodec, Part

_LEVELS = 127
# The largest number that 127 steps of its 127th part do not carry beyond what float32 holds.
_LARGEST = torch.finfo(torch.float32).max * (1 - 2.0**-22)


class Int8(LossyCodec):
    """Settings of eight bits an element; see the module's text."""

    name: Literal["int8"] = "int8"
    block: int = Field(default=256, ge=1)
    """Elements that share a scale."""

    def coder(self, part: Part) -> Int8Coder:
        """A new coder for a shard's part."""
        return Int8Coder(part, self.block)


class Int8Coder(Coder):
    """The blocks' scales, then the elements."""

    def __init__(self, part: Part, block: int) -> None:
        self._size = part.size
        blocks = -(-part.size // block)
        self._scales_end = FLOAT_BYTES * blocks
        self.nbytes = self._scales_end + part.size
        # The last block is filled up with zeros.
        self._flat = torch.zeros(blocks * block)
        self._blocks = self._flat.view(blocks, block)

    def encode(self, values: torch.Tensor, out: torch.Tensor) -> None:
        """Scale and round."""
        self._flat[: self._size] = values
        self._flat[self._size :] = 0
        largest = self._blocks.abs().amax(dim=1)
        largest = torch.where(largest.isfinite(), largest.clamp(max=_LARGEST), largest)
        scales = largest / _LEVELS
        self._blocks.div_(torch.where(scales > 0, scales, 1.0).unsqueeze(1))
        # What is not finite has a scale that is not, so its own number says nothing.
        steps = self._flat[: self._size].round_().clamp_(-_LEVELS, _LEVELS).nan_to_num_(0.0)
        out[: self._scales_end].view(torch.float32).copy_(scales)
        out[self._scales_end :].view(torch.int8).copy_(steps)

    def decode(self, data: torch.Tensor) -> torch.Tensor:
        """The steps times their scales."""
        decoded = self._flat[: self._size]
        decoded.copy_(data[self._scales_end :].view(torch.int8))
        self._blocks.mul_(data[: self._scales_end].view(torch.float32).unsqueeze(1))
        return decoded
