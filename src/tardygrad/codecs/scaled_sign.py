r"""One bit an element: the signs, and for each tensor the mean magnitude.

Formula. For each tensor of d elements (of a tensor that is cut, for each shard's piece)::

    p    <- delta + e
    C(p) = (||p||_1 / d) sign(p)                      1/8 byte an element, 4 bytes a tensor
    e    <- p - C(p)

Karimireddy et al., arXiv 1901.09847 (EF-SignSGD), layer by layer. The sign of 0 is +.

When to use it: the slowest links, dense gradients. When not: without error feedback, where it need
not converge; or many elements of a tensor are 0 (embeddings, dead units): each of them is moved to
and fro by the mean magnitude.

>>> from tardygrad.codecs.scaled_sign import ScaledSign
>>> ScaledSign().error_feedback
True
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from tardygrad.codecs.base import FLOAT_BYTES, Coder, LossyCodec, Part


class ScaledSign(LossyCodec):
    """Settings of signs; see the module's text."""

    name: Literal["scaled_sign"] = "scaled_sign"

    def coder(self, part: Part) -> SignCoder:
        """A new coder for a shard's part."""
        return SignCoder(part)


class SignCoder(Coder):
    """The pieces' magnitudes, then a bit for each element: 1 is negative."""

    def __init__(self, part: Part) -> None:
        self._size = part.size
        self._where = [slice(piece.start, piece.stop) for piece in part.pieces]
        self._scales_end = FLOAT_BYTES * len(self._where)
        self.nbytes = self._scales_end + -(-part.size // 8)
        # Gaps are never written: they stay zero.
        self._decoded = torch.zeros(part.size)

    def encode(self, values: torch.Tensor, out: torch.Tensor) -> None:
        """Magnitudes, summed in double precision, and signs."""
        scales = out[: self._scales_end].view(torch.float32)
        for number, where in enumerate(self._where):
            scales[number] = values[where].abs().mean(dtype=torch.float64)
        bits = np.packbits(torch.signbit(values).numpy())
        out[self._scales_end :].copy_(torch.from_numpy(bits))

    def decode(self, data: torch.Tensor) -> torch.Tensor:
        """The magnitudes with their signs."""
        bits = np.unpackbits(data[self._scales_end :].numpy(), count=self._size)
        signs = torch.from_numpy(bits).to(torch.float32).mul_(-2.0).add_(1.0)
        scales = data[: self._scales_end].view(torch.float32)
        for number, where in enumerate(self._where):
            torch.mul(signs[where], scales[number], out=self._decoded[where])
        return self._decoded
