r"""Local SGD: workers train on their own and average their parameters now and then.

Formula. From the same x each worker takes H = ``exchange_period`` steps; the mean of where they
arrive, weighted by samples, is the new x (Stich, arXiv 1805.09767)::

    theta_i <- inner optimizer, H steps from x
    x       <- x - sum_i n_i (x - theta_i) / sum_i n_i

The average is over who delivered: a worker that dies in a round is not waited for, and what it
trained is trained again by another. With a ``count`` a quorum of the fastest suffices.

Post-local SGD (Lin et al., arXiv 1808.07217): with ``local_after`` samples, workers exchange after
every batch before that point, and after H from there on; put it where the rate first decays. More
than one switch, or an H that grows as the rate falls, is an ``exchange_schedule``; uneven workers
end their rounds together with ``balance: {name: steps}``.

With ``stripes``, ``delay`` and ``mixing`` the shards are averaged in turns, as with ``diloco``.

When to use it: slow networks, since it sends 1/H of the bytes. When not: H so long that the workers
drift apart; the number of samples to a given accuracy grows with H.

>>> from tardygrad.methods.local_sgd import LocalSGD
>>> post = LocalSGD(exchange_period=16, local_after=60_000)
>>> post.period_at(0), post.period_at(60_000)
(1, 16)
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tardygrad.admission import Admission, Quorum
from tardygrad.methods.rules.stripes import StripedMethod


class LocalSGD(StripedMethod):
    """Settings of local SGD; see the module's text for the formula."""

    name: Literal["local_sgd"] = "local_sgd"
    admission: Admission = Field(default_factory=Quorum)
    """When the average is taken: ``quorum`` of all members, or with a ``count``."""
    local_after: int = Field(default=0, ge=0)
    """Samples of the run before which workers exchange after every batch (post-local SGD)."""

    def period_at(self, consumed: int) -> int:
        """Batches of an exchange that begins after ``consumed`` samples, in nominal order."""
        return super().period_at(consumed) if consumed >= self.local_after else 1
