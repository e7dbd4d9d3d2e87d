"""What a codec is: how the part of an update that one shard owns becomes bytes, and floats again.

Theory of operation. A codec is a frozen configuration. ``coder`` makes of it, for one shard's part
of the flat vector, an object that encodes and decodes; a worker has one for each shard, and so has
whoever takes pushes in. A worker's may remember something from one push to the next (PowerSGD's Q):
that is part of the worker's state, like the residual, which the engine keeps for every codec alike
(``engines.packing``). What is decoded depends on the bytes alone.

Everything is deterministic: the same values, after the same history, give the same bytes. A value
that is not finite is decoded as one that is not finite (with some codecs together with its
neighbours), so a diverged run looks diverged.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch

from tardygrad.layout import KeyRange, Layout
from tardygrad.sections import Document

__all__ = ["Codec", "Coder", "LossyCodec", "Part", "Piece"]

FLOAT_BYTES = 4


class Piece(NamedTuple):
    """The elements of one tensor that lie in a part: ``[start, stop)`` of the part.

    The first of them is the tensor's element number ``skipped``; ``shape`` is the whole tensor's.
    """

    start: int
    stop: int
    skipped: int
    shape: tuple[int, ...]


class Part(NamedTuple):
    """What one shard owns of the flat vector; between the pieces are gaps, which hold zeros."""

    size: int
    pieces: tuple[Piece, ...]

    @classmethod
    def of(cls, layout: Layout, owned: KeyRange) -> Part:
        """The part of a model's parameters in a key range, which may cut through tensors.

        >>> layout = Layout.of([("w", (3, 5), "float32"), ("b", (3,), "float32")])
        >>> Part.of(layout, KeyRange(16, 32))
        Part(size=16, pieces=(Piece(start=0, stop=3, skipped=0, shape=(3,)),))
        """
        pieces = []
        for field in layout.parameters:
            first, stop = max(field.offset, owned.start), min(field.stop, owned.stop)
            if first < stop:
                at = owned.start
                pieces.append(Piece(first - at, stop - at, first - field.offset, field.shape))
        return cls(owned.size, tuple(pieces))


class Coder(ABC):
    """Encodes and decodes one part, float32 ``[size]`` to uint8 ``[nbytes]`` and back."""

    nbytes: int
    """Bytes of an encoded part; the same for every update."""

    @abstractmethod
    def encode(self, values: torch.Tensor, out: torch.Tensor) -> None:
        """Leave ``values`` in ``out``, whose memory begins at a multiple of 64 bytes."""

    @abstractmethod
    def decode(self, data: torch.Tensor) -> torch.Tensor:
        """What the bytes stand for, float32 ``[size]``.

        It lies in ``data`` or in memory of the coder's own, and is good until the next call.
        """

    def state(self) -> dict[str, torch.Tensor]:
        """Copies of what the encoder remembers."""
        return {}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Take up what :meth:`state` returned."""
        if state:
            raise ValueError(f"{type(self).__name__} remembers nothing, got {sorted(state)}")


class Codec(Document):
    """A codec's settings; concrete ones add theirs and make coders."""

    where: ClassVar[str] = "method.codec"

    name: str

    is_plain: ClassVar[bool] = False
    """Whether the bytes are the float32 vector itself: then nothing is copied or kept."""
    warms_up: ClassVar[bool] = False
    """Whether its encoder remembers something from push to push."""

    @property
    def feeds_back(self) -> bool:
        """Whether what a push leaves out is added to the next one."""
        return False

    @property
    def remembers(self) -> bool:
        """Whether a worker's push depends on its earlier ones."""
        return self.feeds_back or self.warms_up

    def coder(self, part: Part) -> Coder:
        """A new coder for a shard's part."""
        raise TypeError(f"{type(self).__name__} does not define coder")


class LossyCodec(Codec):
    """A codec that leaves something out of an update."""

    error_feedback: bool = True
    """Whether what a push leaves out is added to the worker's next one."""

    @property
    def feeds_back(self) -> bool:
        """As ``error_feedback`` says."""
        return self.error_feedback
