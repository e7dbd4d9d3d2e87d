r"""Gossip: every worker has a model of its own, and averages it with one other at a time.

Formula (AD-PSGD: Lian et al., ICML 2018, arXiv 1710.06952). Worker i holds a replica x_i. Before
each exchange it averages with a worker j that is drawn at random, then it trains
``exchange_period`` batches on its own::

    x_i, x_j <- (x_i + x_j) / 2
    g        <- grad loss(x_i; b) + weight_decay * x_i, clipped
    v        <- delta v + g                              delta = ``momentum``
    x_i      <- x_i - eta (g + delta v)                  Nesterov's; the plain step if delta is 0

j does not stop for that. It goes on computing at the replica that it has *offered*, and takes the
difference up before its next exchange; an offer is taken once at most. So nobody waits: a worker
that is slow or frozen is met less often. (In the paper a worker averages between computing a
gradient and applying it; here steps are whole, as there may be several.)

An average keeps the sum of both, so the mean of the n replicas moves by the workers' own steps
alone. Those go to the servers as well, which take a part of each::

    servers:  x <- x - eta / n * (g + delta v)           of every worker's every step

So the servers, which have no part in the averaging, hold the mean of the replicas, to rounding. It
is what is tested and saved, and what another method goes on from. eta follows the schedule at the
worker.

A worker that dies takes its replica with it, and its successor begins at what the servers hold. The
replicas' mean is then off that by (x_dead - x) / n and keeps that distance: 1 / n of how far
replicas lie apart. It does not add up, since with each replacement another replica's share of the
distance goes to 0. So it is wherever a session ends: a lease was taken back, a server was restored.
Between a change of members and the news of it, servers divide by the n before.

Stochastic gradient push (Assran et al., ICML 2019, arXiv 1811.10792) averages one way: x_i and a
weight are halved and sent, and their quotient is the model. Here both sides move, so all weights
are 1: none is lost with a worker, and a slow one does not gather those of the others.

A step moves the mean by eta / n: the batch that counts is workers x batch_size, as with
``sync_sgd``; scale the learning rate to it.

When to use it: uneven workers whose links to each other are better than the servers', since those
send parameters only to who begins. When not: very many workers and few steps, where replicas lie
far apart and what is tested is none of them; machines that die often. Within one machine
``async_sgd`` copies less.

>>> from tardygrad.methods.gossip import Gossip
>>> Gossip(momentum=0.9).learning_rate(0)
0.05
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator

from tardygrad.admission import AtOnce
from tardygrad.methods.base import Outcome, ServerRule, Step
from tardygrad.methods.rules.optimizers import OptimizerServer
from tardygrad.methods.rules.settings import (
    TrainingMethod,
    gradient,
    rate_alone,
    require_rate_alone,
)
from tardygrad.methods.schedules import Constant
from tardygrad.staleness import Constant as Always

if TYPE_CHECKING:
    from tardygrad.models.base import ModelAdapter


class Gossip(TrainingMethod):
    """Settings of gossip; see the module's text for the formula."""

    uses_peers: ClassVar[bool] = True

    name: Literal["gossip"] = "gossip"
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """delta: Nesterov momentum at the workers; it is not averaged."""

    @model_validator(mode="after")
    def _the_mean(self) -> Self:
        require_rate_alone(self.optimizer, self.name)
        as_it_is = {
            "admission": self.admission == AtOnce(),
            "staleness": self.staleness == Always(),
            "codec": self.codec.is_plain,
        }
        wrong = [key for key, right in as_it_is.items() if not right]
        if wrong:
            raise ValueError(
                f"{wrong[0]}: the servers of gossip take every step as it is, or they would not "
                f"hold the mean of the replicas, got {getattr(self, wrong[0])!r}; leave it out"
            )
        return self

    @classmethod
    def taking_over(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Of another's optimizer the learning rate."""
        return rate_alone(settings)

    @property
    def kind(self) -> str:
        """Shards keep nothing beside the parameters."""
        return f"optimizer {self.optimizer.kind}"

    def worker_rule(self, adapter: ModelAdapter) -> GossipWorker:
        """The rule of one worker over its own model."""
        return GossipWorker(self, adapter)

    def server_rule(self, parameters: torch.Tensor) -> ServerRule:
        """The rule of one shard; the schedule is in what is pushed."""
        return OptimizerServer(self.optimizer, Constant(), parameters)

    def serial_optimizer(self, parameters: list[torch.Tensor]) -> torch.optim.Optimizer | None:
        """One worker has nobody to average with."""
        if not self.is_plain:
            return None
        nesterov = self.momentum > 0
        return torch.optim.SGD(
            parameters, self.optimizer.learning_rate, self.momentum, nesterov=nesterov
        )


class GossipWorker:
    """Trains its replica; pushes the sum of what its steps were made of."""

    borrows = False

    def __init__(self, method: Gossip, adapter: ModelAdapter) -> None:
        self._method = method
        self._adapter = adapter
        self.replica = adapter.flat[: adapter.layout.parameters_size]
        """The worker's own parameters; who averages them changes them between two exchanges."""
        self._one = torch.empty(0)
        self._velocity = torch.zeros_like(self.replica if method.momentum else self._one)

    def target(self, *, fresh: bool) -> torch.Tensor:
        """Where a session's first pull must be written: float32 ``[parameters_size]``."""
        return self.replica

    def pulled(self, *, fresh: bool) -> None:
        """Begin at the pulled parameters, or go on with the replica."""
        if fresh:
            self._velocity.zero_()

    def compute(self, steps: Iterable[Step], out: torch.Tensor) -> Outcome:
        """Train the steps; ``out`` becomes the sum of their directions, in units of the rate."""
        method, adapter = self._method, self._adapter
        rate, velocity = method.optimizer.learning_rate, self._velocity
        total, count = 0.0, 0
        for step in steps:
            adapter.load(self.replica)
            total += gradient(adapter, method, step)
            if count and not self._one.numel():
                self._one = torch.zeros_like(out)
            direction = out if count == 0 else self._one
            adapter.write_gradient(direction, add=False)
            if method.momentum:
                velocity.mul_(method.momentum).add_(direction)
                direction.add_(velocity, alpha=method.momentum)
            factor = method.schedule.factor(step.consumed)
            if factor != 1.0:
                direction.mul_(factor)
            self.replica.add_(direction, alpha=-rate)
            if count:
                out.add_(direction)
            count += 1
        return Outcome(total / max(count, 1), count)
