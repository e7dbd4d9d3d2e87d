"""A vector for each worker, in the state of a server rule."""

from __future__ import annotations

import torch

Table = dict[int, torch.Tensor]
"""Worker to a vector of the shard's size."""


def to_state(prefix: str, table: Table) -> dict[str, torch.Tensor]:
    """Copies of the vectors, each under ``prefix.worker``."""
    return {f"{prefix}.{worker}": vector.clone() for worker, vector in table.items()}


def from_state(prefix: str, state: dict[str, torch.Tensor]) -> Table:
    """Take out of ``state`` what :func:`to_state` put in, as copies."""
    start = f"{prefix}."
    names = [name for name in state if name.startswith(start)]
    return {int(name.removeprefix(start)): state.pop(name).clone() for name in names}
