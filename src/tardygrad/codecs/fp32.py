r"""No codec: the update travels as it is.

Formula::

    C(p) = p                                          4 bytes an element

Workers compute straight into what the servers read, nothing is copied, and no residual is kept.

When to use it: workers and servers on one machine, where bytes cost next to nothing. When not: the
network is what training waits for.

>>> from tardygrad.codecs.fp32 import FP32
>>> FP32().remembers
False
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from tardygrad.codecs.base import FLOAT_BYTES, Codec, Coder, Part


class FP32(Codec):
    """Settings of no codec: none."""

    name: Literal["fp32"] = "fp32"

    is_plain: ClassVar[bool] = True

    def coder(self, part: Part) -> FP32Coder:
        """A new coder for a shard's part."""
        return FP32Coder(part)


class FP32Coder(Coder):
    """The vector's own bytes."""

    def __init__(self, part: Part) -> None:
        self.nbytes = FLOAT_BYTES * part.size

    def encode(self, values: torch.Tensor, out: torch.Tensor) -> None:
        """Copy them."""
        out.view(torch.float32).copy_(values)

    def decode(self, data: torch.Tensor) -> torch.Tensor:
        """The bytes themselves, seen as numbers."""
        return data.view(torch.float32)
