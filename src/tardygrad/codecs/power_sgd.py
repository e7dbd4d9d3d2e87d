r"""Matrices of low rank: one step of the power method, begun where the last push ended.

Formula. A tensor of two or more dimensions is a matrix M: its first dimension by all others::

    M    <- delta + e
    P    = orthonormal(M Q)                           [rows, r], by QR
    Q    <- M^T P                                     [columns, r]
    C(M) = P Q^T                                      4 r (rows + columns) bytes
    e    <- M - C(M)

Vogels et al., arXiv 1905.13727, algorithm 1; r = `rank`. There P and Q are averaged over workers
by all-reduce; here each worker's P and Q travel to the servers as they are, and Q is the worker's
own, kept from push to push. Tensors of one dimension, and matrices that would not get smaller,
travel whole. A shard that owns some of a matrix's rows encodes those as a matrix.

When to use it: large dense layers, whose gradients are close to a low rank; more than a hundred
times fewer bytes for wide layers. When not: small convolutions and narrow layers, where little is
won; and it takes two matrix products for each push.

>>> from tardygrad.codecs.power_sgd import PowerSGD
>>> PowerSGD().rank
2
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field

from tardygrad.codecs.base import FLOAT_BYTES, Coder, LossyCodec, Part, Piece

_SEED = 1905_13727


class PowerSGD(LossyCodec):
    """Settings of PowerSGD; see the module's text."""

    name: Literal["power_sgd"] = "power_sgd"
    rank: int = Field(default=2, ge=1)
    """r: columns of P and Q."""

    warms_up: ClassVar[bool] = True

    def coder(self, part: Part) -> PowerCoder:
        """A new coder for a shard's part."""
        return PowerCoder(part, self.rank)


class _Matrix(NamedTuple):
    start: int
    rows: int
    columns: int
    rank: int

    @property
    def where(self) -> slice:
        return slice(self.start, self.start + self.rows * self.columns)

    @property
    def encoded(self) -> int:
        return self.rank * (self.rows + self.columns)


def _matrix(piece: Piece, rank: int) -> _Matrix | None:
    """The whole rows of a piece, if they get smaller."""
    if len(piece.shape) < 2:
        return None
    columns = math.prod(piece.shape[1:])
    start = piece.start + -piece.skipped % columns
    rows = (piece.stop - start) // columns
    if rows < 1 or rank * (rows + columns) >= rows * columns:
        return None
    return _Matrix(start, rows, columns, rank)


class PowerCoder(Coder):
    """For each matrix P and Q, then everything else as it is."""

    def __init__(self, part: Part, rank: int) -> None:
        found = [_matrix(piece, rank) for piece in part.pieces]
        self._matrices = [matrix for matrix in found if matrix is not None]
        self._rest: list[slice] = []
        at = 0
        for matrix in self._matrices:
            self._rest.append(slice(at, matrix.start))
            at = matrix.where.stop
        self._rest.append(slice(at, part.size))
        floats = sum(matrix.encoded for matrix in self._matrices)
        floats += sum(where.stop - where.start for where in self._rest)
        self.nbytes = FLOAT_BYTES * floats
        generator = torch.Generator().manual_seed(_SEED)
        self._first = [
            torch.randn(matrix.columns, rank, generator=generator) for matrix in self._matrices
        ]
        self._warm = [first.clone() for first in self._first]
        self._decoded = torch.zeros(part.size)

    def encode(self, values: torch.Tensor, out: torch.Tensor) -> None:
        """A step of the power method for each matrix."""
        floats, at = out.view(torch.float32), 0
        for number, matrix in enumerate(self._matrices):
            left, right = self._factors(number, values[matrix.where].view(-1, matrix.columns))
            middle, end = at + left.numel(), at + matrix.encoded
            floats[at:middle] = left.reshape(-1)
            floats[middle:end] = right.reshape(-1)
            at = end
        for where in self._rest:
            end = at + where.stop - where.start
            floats[at:end] = values[where]
            at = end

    def _factors(self, number: int, matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        product = matrix @ self._warm[number]
        if not bool(product.isfinite().all()):
            return torch.full_like(product, torch.nan), torch.zeros_like(self._warm[number])
        left, _ = torch.linalg.qr(product)
        right = matrix.T @ left
        # A column of zeros would find nothing ever again.
        self._warm[number] = torch.where(right.any(dim=0), right, self._first[number])
        return left, right

    def decode(self, data: torch.Tensor) -> torch.Tensor:
        """The products of the factors, and everything else."""
        floats, at = data.view(torch.float32), 0
        for matrix in self._matrices:
            middle, end = at + matrix.rows * matrix.rank, at + matrix.encoded
            left = floats[at:middle].view(matrix.rows, matrix.rank)
            right = floats[middle:end].view(matrix.columns, matrix.rank)
            torch.matmul(left, right.T, out=self._decoded[matrix.where].view(-1, matrix.columns))
            at = end
        for where in self._rest:
            end = at + where.stop - where.start
            self._decoded[where] = floats[at:end]
            at = end
        return self._decoded

    def state(self) -> dict[str, torch.Tensor]:
        """Q of every matrix."""
        return {f"q{number}": warm.clone() for number, warm in enumerate(self._warm)}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Take up what :meth:`state` returned."""
        self._warm = [state[f"q{number}"].clone() for number in range(len(self._warm))]
