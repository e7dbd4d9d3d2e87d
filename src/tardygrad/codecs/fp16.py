r"""IEEE half precision: half the bytes, eleven significant bits.

Formula::

    p    <- delta + e
    C(p) = the nearest number of binary16 to p, elementwise       2 bytes an element
    e    <- p - C(p)

Numbers beyond 65,504 become that, and numbers below 3e-8 become 0; the residual keeps both. Mixed
precision training, where half precision met gradients: Micikevicius et al., arXiv 1710.03740. Error
feedback: Seide et al., INTERSPEECH 2014; Karimireddy et al., arXiv 1901.09847.

When to use it: always worth a try: what it leaves out is small against the noise of a batch. When
not: gradients span more than nine orders of magnitude: take `bf16`.

>>> from tardygrad.codecs.fp16 import FP16
>>> FP16().error_feedback
True
"""

from __future__ import annotations

from typing import Literal

import torch

from tardygrad.codecs.base import LossyCodec, Part
from tardygrad.codecs.halves import HalfCoder


class FP16(LossyCodec):
    """Settings of half precision; see the module's text."""

    name: Literal["fp16"] = "fp16"

    def coder(self, part: Part) -> HalfCoder:
        """A new coder for a shard's part."""
        return HalfCoder(part, torch.float16)
