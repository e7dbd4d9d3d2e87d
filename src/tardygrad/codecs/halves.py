"""What the codecs of two bytes an element share: rounding that neither overflows nor hides NaN."""

from __future__ import annotations

import torch

from tardygrad.codecs.base import Coder, Part

_BYTES = 2


class HalfCoder(Coder):
    """Rounds every element to the nearest number of a dtype of 16 bits, ties to even.

    Finite values beyond the dtype's largest number become that number: with error feedback the rest
    comes later. Infinities and NaN stay.

    Args:
        part: what is encoded.
        dtype: ``torch.float16`` or ``torch.bfloat16``.
    """

    def __init__(self, part: Part, dtype: torch.dtype) -> None:
        self.nbytes = _BYTES * part.size
        self._dtype = dtype
        self._largest = torch.finfo(dtype).max
        self._decoded = torch.empty(part.size)

    def encode(self, values: torch.Tensor, out: torch.Tensor) -> None:
        """Round."""
        rounded = out.view(self._dtype)
        rounded.copy_(values)
        if not bool(rounded.isfinite().all()):
            within = values.clamp(-self._largest, self._largest)
            rounded.copy_(torch.where(values.isfinite(), within, values))

    def decode(self, data: torch.Tensor) -> torch.Tensor:
        """The rounded numbers."""
        return self._decoded.copy_(data.view(self._dtype))
