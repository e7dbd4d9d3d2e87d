r"""bfloat16: half the bytes, the range of float32, eight significant bits.

Formula::

    p    <- delta + e
    C(p) = the nearest number of bfloat16 to p, elementwise       2 bytes an element
    e    <- p - C(p)

Kalamkar et al., arXiv 1905.12322, train with it. Error feedback: Seide et al., INTERSPEECH 2014;
Karimireddy et al., arXiv 1901.09847.

When to use it: as `fp16`, with updates of very different magnitudes. When not: without error
feedback and with deltas of many steps, whose small parts eight bits lose.

>>> from tardygrad.codecs.bf16 import BF16
>>> BF16().error_feedback
True
"""

from __future__ import annotations

from typing import Literal

import torch

from tardygrad.codecs.base import LossyCodec, Part
from tardygrad.codecs.halves import HalfCoder


class BF16(LossyCodec):
    """Settings of bfloat16; see the module's text."""

    name: Literal["bf16"] = "bf16"

    def coder(self, part: Part) -> HalfCoder:
        """A new coder for a shard's part."""
        return HalfCoder(part, torch.bfloat16)
