r"""Synchronous SGD on the parameter server: one step, the mean of everybody's gradient.

Formula. In a round all workers compute at the same x, and the server applies their mean, each
gradient weighted by its samples::

    g_i <- mean gradient of ``exchange_period`` batches at x        (gradient accumulation)
    x   <- optimizer(x, sum_i n_i g_i / sum_i n_i)                  n_i: samples of worker i

``admission`` says when a round ends: ``quorum`` with all members (bulk-synchronous, Valiant, CACM
1990), or with the first ``count`` of them: backup workers (Chen et al., arXiv 1604.00981); give a
``staleness`` policy of ``cut_off`` below 1 to drop what comes late, as they do.

The batch that counts is workers x exchange_period x batch_size; scale the learning rate to it. With
``balance: {name: batch}`` fast workers merge several batches into theirs, and it is larger.

When to use it: equal machines that do not die, a result that does not depend on timing, a baseline
for everything else. When not: one slow worker sets the pace of all; see ``rennala`` and
``async_sgd``.

>>> from tardygrad.methods.sync_sgd import SyncSGD
>>> SyncSGD().admission.name
'quorum'
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from tardygrad.admission import Admission, Quorum
from tardygrad.methods.rules.gradients import GradientMethod


class SyncSGD(GradientMethod):
    """Settings of synchronous SGD; see the module's text for the formula."""

    name: Literal["sync_sgd"] = "sync_sgd"
    admission: Admission = Field(default_factory=Quorum)
    """When a round ends: ``quorum`` of all members, or with a ``count``."""
    in_flight: int = Field(default=0, ge=0, le=8)
    """Pushes that may be unanswered while the next range is computed; a quorum makes it 0."""

    def serial_optimizer(self, parameters: list[torch.Tensor]) -> torch.optim.Optimizer | None:
        """The servers' optimizer over the whole model: one worker is a quorum."""
        plain = self.is_plain and self.admission.name == "quorum"
        return self.optimizer.build(*parameters) if plain else None
