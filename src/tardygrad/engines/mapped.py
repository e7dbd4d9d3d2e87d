"""Files of a runtime directory, mapped into memory, and tensors in them that nobody changes."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from tardygrad.engines.runtime_directory import Piece, reserve
from tardygrad.errors import StorageError

_LINE = 64


def _round_up(size: int) -> int:
    return -(-size // _LINE) * _LINE


def map_file(path: Path, size: int, pieces: Sequence[Piece] | None = None) -> mmap.mmap:
    """Map a file; with ``pieces`` it is made, and these are reserved."""
    if pieces is not None:
        descriptor = reserve(path, size, pieces)
    else:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise StorageError(f"cannot open shared memory {path}: {error.strerror}") from error
    try:
        return mmap.mmap(descriptor, size)
    except OSError as error:
        raise StorageError(f"cannot map shared memory {path}: {error.strerror}") from error
    finally:
        os.close(descriptor)


class Shared(NamedTuple):
    """Where a tensor lies in a file of shared memory."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype


def share(path: Path, tensors: tuple[torch.Tensor, ...]) -> list[Shared]:
    """Write tensors into a file of shared memory; returns what :func:`shared` needs."""
    size = sum(_round_up(t.numel() * t.element_size()) for t in tensors)
    mapping = map_file(path, max(size, _LINE), ())
    entries: list[Shared] = []
    offset = 0
    for tensor in tensors:
        raw = tensor.contiguous().reshape(-1).view(torch.uint8)
        target = torch.from_numpy(
            np.frombuffer(mapping, dtype=np.uint8, count=raw.numel(), offset=offset)
        )
        target.copy_(raw)
        entries.append(Shared(offset, tuple(tensor.shape), tensor.dtype))
        offset += _round_up(raw.numel())
    return entries


def shared(path: Path, entries: list[Shared]) -> tuple[torch.Tensor, ...]:
    """The tensors that :func:`share` wrote, without a copy. Nobody may write to them."""
    with path.open("rb") as file:
        # Private and writable, because torch warns of tensors over memory that cannot be written.
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        mapping = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=protection)
    found = []
    for offset, shape, dtype in entries:
        count = math.prod(shape) * dtype.itemsize
        raw = np.frombuffer(mapping, dtype=np.uint8, count=count, offset=offset)
        found.append(torch.from_numpy(raw).view(dtype).view(shape))
    return tuple(found)
