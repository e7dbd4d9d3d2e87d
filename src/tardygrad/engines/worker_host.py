"""A worker's model, data and method rule, in whatever process it lives.

The worker machine decides what to train; this host does it: it finds the samples of each batch,
seeds its randomness, and lets the method's worker rule turn them into an update. A batch's seed
depends on the run's seed and the batch alone, so a batch that is done again is done the same way.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from tardygrad.balancing import merged
from tardygrad.data.fragments import FragmentPlan, Permutations
from tardygrad.data.sources import ArraySource, Source
from tardygrad.engines.packing import Packer
from tardygrad.layout import KeyRange
from tardygrad.methods.base import (
    Method,
    Outcome,
    PeerRule,
    ServerRule,
    Step,
    StripedRule,
    WorkerRule,
)
from tardygrad.models.base import ModelAdapter
from tardygrad.protocol.effects import Compute

_MASK = (1 << 64) - 1


def batch_seed(seed: int, position: int) -> int:
    """A seed of 63 bits for the batch at ``position`` (splitmix64, Steele et al., OOPSLA 2014)."""
    z = (seed * 0x9E3779B97F4A7C15 + (position + 1) * 0xD1B54A32D192ED03) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return (z ^ (z >> 31)) >> 1


class WorkerHost:
    """One worker's tensors.

    ``update`` vectors are float32 ``[layout.size]``: the update first, then the buffers. ``packer``
    is None where they travel as they are.
    """

    def __init__(
        self, method: Method, adapter: ModelAdapter, source: Source, plan: FragmentPlan,
        packer: Packer | None = None,
    ) -> None:  # fmt: skip
        self.adapter = adapter
        self._method = method
        self._trained = 0
        self._followers: list[tuple[KeyRange, ServerRule]] | None = None
        self.packer = packer
        self.rule: WorkerRule = method.worker_rule(adapter)
        self._source = source
        self._plan = plan
        # Arrays draw nothing, and a small model would feel the microseconds.
        self._source_may_draw = not isinstance(source, ArraySource)
        self._permutations = Permutations(plan)
        self._parameters_size = adapter.layout.parameters_size
        self._buffers_size = adapter.layout.buffers_size

    def pull_target(self, *, fresh: bool) -> torch.Tensor:
        """Where pulled parameters go: float32 ``[parameters_size]``."""
        return self.rule.target(fresh=fresh)

    def pulled(self, *, fresh: bool, buffers: torch.Tensor | None) -> None:
        """Parameters are in the target; ``buffers`` come with the first pull of a session."""
        self.rule.pulled(fresh=fresh)
        if fresh and buffers is not None and self._buffers_size:
            self.adapter.load_buffers(buffers)

    @property
    def replica(self) -> torch.Tensor:
        """The parameters of a worker that averages them with others (``Method.uses_peers``)."""
        return cast(PeerRule, self.rule).replica

    def arrived(self, pieces: Sequence[KeyRange]) -> None:
        """New parameters of some shards are in the target: take them into the replica."""
        if pieces:
            cast(StripedRule, self.rule).arrived([piece.slice for piece in pieces])

    def follow(self, mean: torch.Tensor, ranges: Sequence[KeyRange]) -> None:
        """Take the step that the servers of ``ranges`` take with ``mean``, float32 ``[>= P]``."""
        target = self.rule.target(fresh=False)
        if self._followers is None:
            # Cut as the shards are, so that each element is computed the same way.
            self._followers = [(r, self._method.server_rule(target[r.slice])) for r in ranges]
        for key_range, rule in self._followers:
            rule.apply(mean[key_range.slice], 1.0, 0)
        self.rule.pulled(fresh=False)

    def borrow(self, parameters: torch.Tensor, *, buffers: torch.Tensor | None) -> bool:
        """Compute with ``parameters`` themselves, if the method and the model can; else False."""
        if not self.rule.borrows or not self.adapter.borrow(parameters):
            return False
        if buffers is not None and self._buffers_size:
            self.adapter.load_buffers(buffers)
        return True

    def compute(
        self, effect: Compute, update: torch.Tensor, stops: Callable[[], bool] | None = None
    ) -> Outcome:
        """Train the batches of ``effect`` and fill ``update``.

        Args:
            effect: which batches.
            update: float32 ``[layout.size]``; of no use if the computation is ended early.
            stops: asked between two steps whether to end it.

        Returns:
            The loss, and the batches that were trained: all of them, unless it was ended early.
        """
        self._trained = 0
        steps = self._steps(effect, stops)
        if not self._buffers_size:
            outcome = self.rule.compute(steps, update)
        else:
            outcome = self.rule.compute(steps, update[: self._parameters_size])
            buffers = update[self._parameters_size :]
            buffers.zero_()  # the gaps between them are part of the run's digest
            self.adapter.read_buffers(buffers)
        return Outcome(outcome.loss, self._trained)

    def _steps(self, effect: Compute, stops: Callable[[], bool] | None) -> Iterator[Step]:
        lease, seed_of_run = effect.lease, self._plan.seed
        batches = self._permutations.batches(lease.epoch, lease.fragment, effect.first, effect.stop)
        for position, indices, together in self._merged(effect, batches):
            if self._trained and stops is not None and stops():
                return
            seed = batch_seed(seed_of_run, position)
            if self._source_may_draw:
                _seed_everything(seed ^ 1)  # the model's randomness must not repeat the data's
            yield Step(self._source.batch(indices), seed, position, together)
            self._trained += together

    def _merged(
        self, effect: Compute, batches: Iterator[tuple[int, npt.NDArray[np.int64]]]
    ) -> Iterator[tuple[int, npt.NDArray[np.int64], int]]:
        """Position and samples of each step, and the number of batches that are merged in it."""
        lease, count = effect.lease, effect.stop - effect.first
        at = self._plan.position(lease.epoch, lease.fragment, effect.first)
        # What lies between two turns is less than an exchange, and nothing in it is merged.
        whole = count > 1 and self._method.turns is None
        if not whole or (size := merged(count, self._method.period_at(at))) == 1:
            for position, indices in batches:
                yield position, indices, 1
            return
        while part := list(itertools.islice(batches, size)):
            yield part[0][0], np.concatenate([indices for _, indices in part]), len(part)


def _seed_everything(seed: int) -> None:
    """Whatever a data set draws from depends on the batch, not on what this process did before."""
    torch.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)
