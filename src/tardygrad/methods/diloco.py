r"""DiLoCo: long local training with AdamW, an outer step with Nesterov momentum.

Formula (Douillard et al., arXiv 2311.08105, algorithm 1). Each worker takes H = ``exchange_period``
steps of the inner optimizer, whose moments it keeps; the mean of the ways back is a gradient for
the outer optimizer::

    delta <- sum_i n_i (x - theta_i) / sum_i n_i
    m     <- beta m + delta
    x     <- x - epsilon (delta + beta m)             epsilon = 0.7, beta = 0.9

That is ``torch.optim.SGD`` with Nesterov momentum at the servers. With epsilon = 1 and beta = 0 it
is local SGD. A quorum (``admission.count``, ``admission.grace_s``) goes on without the slowest, as
in Decoupled DiLoCo (arXiv 2604.21428); what comes late is taken into a later round, its weight
scaled by the staleness policy. That paper's weights are ``admission.weights: tokens``; uneven
islands end their rounds together with ``balance: {name: steps}``.

Streaming DiLoCo (arXiv 2501.18512): with P = ``stripes`` the shards are exchanged in turns, one
stripe every H / P steps, so that 1 / P of the model travels at a time. ``delay`` steps later,
trained meanwhile, the stripe's new value is mixed in: ``mixing`` is its share, 1 - alpha in that
paper, which takes alpha = 0.5. Deltas of a few bits are a ``codec``. A stripe is made of whole
shards, so there must be as many ``servers``; and a fragment's end is every stripe's turn, so make
fragments some exchanges long (eight, unless ``fragment_batches`` is set and if the data suffices).

When to use it: islands of compute with slow links between them. When not: small models and small H,
where the outer momentum overshoots: take ``local_sgd``. The paper's H is 500; a fragment of the
data must be as long, so small data sets are cut into fewer fragments.

>>> from tardygrad.methods.diloco import DiLoCo
>>> DiLoCo().outer.arguments["momentum"], DiLoCo().optimizer.class_name
(0.9, 'AdamW')
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from tardygrad.admission import Admission, Quorum
from tardygrad.methods.rules.optimizers import OptimizerConfig, adamw, sgd
from tardygrad.methods.rules.settings import GRADIENT
from tardygrad.methods.rules.stripes import StripedMethod


class DiLoCo(StripedMethod):
    """Settings of DiLoCo; see the module's text for the formula."""

    carries: ClassVar[tuple[str, ...]] = GRADIENT

    name: Literal["diloco"] = "diloco"
    admission: Admission = Field(default_factory=Quorum)
    """When a round ends: ``quorum`` of all members, or with a ``count`` and ``grace_s``."""
    exchange_period: int = Field(default=100, ge=1)
    """H: inner steps between two exchanges; a fragment's end ends the exchange too."""
    optimizer: OptimizerConfig = Field(default_factory=lambda: adamw(1e-3))
    """The workers\' optimizer, any of ``torch.optim``, on the flat vector."""
    outer: OptimizerConfig = Field(default_factory=lambda: sgd(0.7, momentum=0.9, nesterov=True))
    """The servers' optimizer; its gradient is the mean delta."""
