r"""All-reduce: synchronous data parallelism, the baseline for everything else.

Formula. The workers form a group. In each step each rank computes at the same x, the group sums,
and the servers step with the mean::

    g_i <- mean gradient of ``exchange_period`` batches at x        (gradient accumulation)
    G   <- (all-reduce of n_i g_i) / (all-reduce of n_i)            n_i: samples of rank i
    x   <- optimizer(x, G)

That is ``torch.nn.parallel.DistributedDataParallel`` (Li et al., VLDB 2020, arXiv 2006.15704),
reduced by gloo as there: a ring, 2 (n - 1) / n times the gradient's bytes to and from each rank
(Patarasuk & Yuan, JPDC 2009). What differs is who owns the result: every rank pushes G with the
batches that it contributed, and each shard books all of them with one step, or none. So leases,
ledger, checkpoints and the optimizer's state are those of any other method, and a run may go on
with another.

With plain SGD at a constant rate each rank takes the step on its own replica, as with DDP, and the
servers' are the same to the bit (``in_flight`` 0: it waits for them); with any other optimizer it
reads the servers' result.

When a rank dies the group breaks. What is booked stays; the survivors begin again from there as a
new group, and a worker that comes later begins the next one. While shards disagree about what is
booked (a server was restored, say), each worker pushes for itself, as with ``sync_sgd``. An update
at older parameters than the newest is never applied: its batches are computed again.

The batch that counts is workers x exchange_period x batch_size; scale the learning rate to it.

When to use it: equal machines that hardly ever die; as the baseline. When not: one slow worker sets
the pace of all, and each death stops all for a moment; see ``async_sgd``. Without a reason to
reduce at the workers, ``sync_sgd`` gives the same steps, and loses less when a worker dies.

>>> from tardygrad.methods.all_reduce import AllReduce
>>> AllReduce().staleness.judge(1, workers=4).again
True
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator

from tardygrad.admission import Admission, Quorum
from tardygrad.methods.rules.gradients import GradientMethod
from tardygrad.methods.schedules import Constant
from tardygrad.staleness import CutOff, StalenessPolicy


class AllReduce(GradientMethod):
    """Settings of all-reduce; see the module's text for the formula."""

    uses_groups: ClassVar[bool] = True

    name: Literal["all_reduce"] = "all_reduce"
    admission: Admission = Field(default_factory=Quorum)
    """``quorum`` of all: a step is everybody's."""
    staleness: StalenessPolicy = Field(default_factory=lambda: CutOff(below=1, again=True))
    """Nothing stale is applied: its batches are computed again."""
    in_flight: int = Field(default=1, ge=0, le=1)
    """1: ranks go on with the step that they took themselves; 0: they wait for the servers'."""

    @model_validator(mode="after")
    def _everybody(self) -> Self:
        if self.admission != Quorum():
            raise ValueError(
                f"admission: a step of all_reduce is everybody's, got {self.admission!r}; leave it "
                "out, or take sync_sgd"
            )
        if self.staleness != CutOff(below=1, again=True):
            raise ValueError(
                f"staleness: all_reduce applies nothing stale, got {self.staleness!r}; leave it "
                "out, or take async_sgd"
            )
        if not self.codec.is_plain:
            raise ValueError(
                f"codec: the ranks of all_reduce sum what they computed as it is, got "
                f"{self.codec.name}; leave it out, or take sync_sgd"
            )
        return self

    @property
    def follows(self) -> bool:
        """With plain SGD at one rate: nothing but the servers knows a momentum, or the schedule."""
        stateless = self.optimizer.kind == "SGD" and self.schedule == Constant()
        return self.in_flight > 0 and stateless

    def serial_optimizer(self, parameters: list[torch.Tensor]) -> torch.optim.Optimizer | None:
        """The servers' optimizer over the whole model: one worker is a group."""
        return self.optimizer.build(*parameters) if self.is_plain else None
