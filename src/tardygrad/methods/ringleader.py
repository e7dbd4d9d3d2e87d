r"""A table of each worker's newest gradient: workers with different data count alike.

Formula. The servers keep the last gradient of each worker; a new one takes the place of its
worker's, and the step goes along the mean of all that are there::

    G_i <- g
    x   <- optimizer(x, mean over workers of G)

So a fast worker steps more often but weighs no more than a slow one. This is the table of
Ringleader ASGD (arXiv 2509.22860) as asynchronous SGD with it; the paper gathers the table anew in
two phases a round, which this does not. A worker that has left keeps its row for ``rows`` updates
of the others, then it is forgotten.

When to use it: workers whose data differ (their own files, their own users) and whose speeds
differ. When not: data that are leased out evenly, where the stale rows only add staleness.

>>> from tardygrad.methods.ringleader import Ringleader
>>> Ringleader().rows
200
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from tardygrad.balancing import Pushes
from tardygrad.methods.base import NOBODY, Origin
from tardygrad.methods.rules import tables
from tardygrad.methods.rules.gradients import GradientMethod
from tardygrad.methods.rules.optimizers import OptimizerServer


class Ringleader(GradientMethod):
    """Settings of the gradient table; see the module's text for the formula."""

    pushes: ClassVar[Pushes] = "row"

    name: Literal["ringleader"] = "ringleader"
    rows: int = Field(default=200, ge=1)
    """After so many updates of others a worker's row is forgotten."""

    def server_rule(self, parameters: torch.Tensor) -> RingleaderServer:
        """The rule of one shard, over a tensor that it changes in place."""
        return RingleaderServer(self, parameters)


class RingleaderServer(OptimizerServer):
    """An optimizer that is given the mean of the table."""

    def __init__(self, method: Ringleader, parameters: torch.Tensor) -> None:
        super().__init__(method.optimizer, method.schedule, parameters)
        self._rows = method.rows
        self._table: dict[int, torch.Tensor] = {}
        self._ages: dict[int, int] = {}

    def apply(
        self,
        update: torch.Tensor,
        scale: float,
        consumed: int,
        out: torch.Tensor | None = None,
        origin: Origin = NOBODY,
    ) -> None:
        """Renew the worker's row, and step along the mean."""
        table, worker = self._table, origin.worker
        for other in self._ages:
            self._ages[other] += 1
        self._ages[worker] = 0
        row = table.pop(worker, None)
        table[worker] = update.clone() if row is None else row.copy_(update)
        for other in [w for w, age in self._ages.items() if age > self._rows]:
            del table[other], self._ages[other]
        rows = [table[w] for w in sorted(table)]
        mean = rows[0] if len(rows) == 1 else torch.stack(rows).mean(dim=0)
        super().apply(mean, scale, consumed, out)

    def state(self) -> dict[str, torch.Tensor]:
        """The optimizer's state, the table, and how old its rows are."""
        table = tables.to_state("row", self._table)
        ages = torch.tensor([[w, age] for w, age in self._ages.items()], dtype=torch.int64)
        return {**super().state(), **table, "ages": ages.reshape(-1, 2)}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Take up what :meth:`state` returned."""
        state = dict(state)
        self._ages = dict(state.pop("ages").tolist())
        self._table = tables.from_state("row", state)
        super().load_state(state)
