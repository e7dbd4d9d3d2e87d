r"""Incremental SGD: fragments of the data as tasks, trained locally, models averaged once a round.

Formula. A round is an epoch. Its data are cut into ``fragments`` x workers fragments (rho: how many
each worker gets on average); whoever is free takes the next one, trains on it from the round's
parameters, and delivers; the mean, weighted by samples, is the next round's beginning::

    theta_f <- inner optimizer over the batches of fragment f, from x
    x       <- x - sum_f n_f (x - theta_f) / sum_f n_f

A fragment whose worker died is trained again by another in the same round; a delivery under a
lease that was taken back is refused. The test is at each round's end. The workers' optimizer begins
anew with each fragment, so a fragment that is done again gives the same. (Parallel SGD by one-shot
averaging: Zinkevich et al., NIPS 2010; iterated: McDonald et al., NAACL 2010.)

When to use it: many unreliable workers behind slow links, data that can only be handed out in
parts. When not: few rounds are possible; averaging once an epoch learns more slowly than exchanging
within one.

>>> from tardygrad.methods.incremental_sgd import IncrementalSGD
>>> IncrementalSGD(fragments=4).fragment_batches(32, batches=938, workers=10)
24
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from tardygrad.admission import Admission, WholeEpoch
from tardygrad.methods.rules.local import LocalMethod
from tardygrad.methods.rules.optimizers import OptimizerConfig, adam
from tardygrad.methods.rules.settings import GRADIENT

_WHOLE_FRAGMENT = 1 << 30


class IncrementalSGD(LocalMethod):
    """Settings of incremental SGD; see the module's text for the formula."""

    carries: ClassVar[tuple[str, ...]] = GRADIENT

    name: Literal["incremental_sgd"] = "incremental_sgd"
    admission: Admission = Field(default_factory=WholeEpoch)
    """``whole_epoch``: a round ends when all its fragments are in."""
    fragments: int = Field(default=4, ge=1)
    """rho: fragments for each worker in a round."""
    exchange_period: int = Field(default=_WHOLE_FRAGMENT, ge=1)
    """Batches of a fragment that are delivered together: all of them, unless set."""
    optimizer: OptimizerConfig = Field(default_factory=lambda: adam(1e-3))
    """The workers\' optimizer, any of ``torch.optim``, on the flat vector."""
    keep_moments: bool = False
    """Whether the workers' optimizer keeps its moments over a fragment."""

    def fragment_batches(self, usual: int, *, batches: int, workers: int) -> int:
        """Batches of a fragment where none are given."""
        return max(1, -(-batches // (self.fragments * workers)))
