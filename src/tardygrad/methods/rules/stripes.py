r"""Local training whose shards are exchanged in turns, while the workers train on.

Streaming DiLoCo (Douillard et al., arXiv 2501.18512, algorithm 2). The shards form P = ``stripes``
stripes (see ``tardygrad.turns``). H / P steps after the last turn it is the next stripe's; for that
stripe p alone, x its newest value at the servers that the worker has read::

    delta_p <- x_p - theta_p                                   at its turn, every H steps
    theta_p <- (1 - beta) theta_p + beta x_p                   ``delay`` steps later

The servers do with delta_p what they do with a whole delta. beta = ``mixing`` is the share of the
pulled parameters; the paper's alpha is 1 - beta. Between turn and mixing the worker trains on. So
1 / P of the model is sent at a time, and has ``delay`` steps to come back.

>>> from tardygrad.methods.diloco import DiLoCo
>>> DiLoCo(exchange_period=100, stripes=4, delay=5, mixing=0.5).turns
Turns(stripes=4, delay=5)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from tardygrad.methods.base import WorkerRule
from tardygrad.methods.rules.local import LocalMethod, LocalWorker
from tardygrad.turns import Turns

if TYPE_CHECKING:
    import torch

    from tardygrad.models.base import ModelAdapter

_FRAGMENT_EXCHANGES = 8


class StripedMethod(LocalMethod):
    """Local methods that can exchange their shards in turns."""

    stripes: int = Field(default=1, ge=1)
    """P: groups of shards, exchanged one after another; at most as many as ``servers``."""
    delay: int = Field(default=0, ge=0)
    """tau: inner steps that a worker goes on before it takes in what came of a push."""
    mixing: float = Field(default=1.0, gt=0, le=1)
    """beta: share of the pulled parameters in the worker's replica."""

    @property
    def turns(self) -> Turns | None:
        """None where all shards are exchanged at once and overwritten."""
        plain = self.stripes == 1 and self.delay == 0 and self.mixing == 1.0
        return None if plain else Turns(self.stripes, self.delay)

    @property
    def outstanding(self) -> int:
        """A push with a delay travels while the worker computes."""
        return max(self.in_flight, 1) if self.delay else self.in_flight

    @property
    def keeps_replica(self) -> bool:
        """With turns, whatever is not pulled outlives a pull."""
        return super().keeps_replica or self.turns is not None

    def fragment_batches(self, usual: int, *, batches: int, workers: int) -> int:
        """With stripes some exchanges long, since a fragment's end is every stripe's turn."""
        one = super().fragment_batches(usual, batches=batches, workers=workers)
        if self.stripes == 1:
            return one
        return max(one, min(_FRAGMENT_EXCHANGES * self.longest_period, batches // workers))

    def worker_rule(self, adapter: ModelAdapter) -> WorkerRule:
        """The rule of one worker over its own model."""
        plain = self.turns is None
        return super().worker_rule(adapter) if plain else StripedLocalWorker(self, adapter)

    @model_validator(mode="after")
    def _in_turns(self) -> Self:
        turns = self.turns
        if turns is None:
            return self
        longest = self.exchange_period // self.stripes
        if longest < 1:
            raise ValueError(
                f"stripes is {self.stripes}, but an exchange has {self.exchange_period} batches, "
                "and each stripe's turn takes one at least: raise exchange_period or lower stripes"
            )
        if self.delay >= longest:
            raise ValueError(
                f"delay is {self.delay}, but the next turn comes after {longest} batches "
                "(exchange_period / stripes), and what was pushed must be back before it: lower "
                "delay or raise exchange_period"
            )
        if self.consistency.uses_clocks:
            raise ValueError(
                f"consistency {self.consistency.name} counts whole exchanges, and with stripes, "
                "delay or mixing there are none; leave consistency at asp"
            )
        if self.passes > 1 or not self.keep_moments:
            raise ValueError(
                "stripes, delay and mixing need passes: 1 and keep_moments: true, since training "
                f"never stops for an exchange; got passes {self.passes}, keep_moments "
                f"{str(self.keep_moments).lower()}"
            )
        if self.balance.name == "batch":
            raise ValueError(
                "balance batch merges the batches of whole exchanges, and with stripes, delay or "
                "mixing there are none; take steps, or leave balance at fixed"
            )
        return self


class StripedLocalWorker(LocalWorker):
    """Trains with the inner optimizer; what comes back of the pushes is mixed in piece by piece."""

    def __init__(self, method: StripedMethod, adapter: ModelAdapter) -> None:
        super().__init__(method, adapter)
        self._mixing = method.mixing

    def arrived(self, pieces: Sequence[slice]) -> None:
        """These key ranges of the pull's target were written anew: mix them into the replica."""
        replica: torch.Tensor = self._inner.flat
        for where in pieces:
            if self._mixing == 1.0:
                replica[where].copy_(self._pulled[where])
            else:
                replica[where].lerp_(self._pulled[where], self._mixing)
        self._adapter.load(replica)
