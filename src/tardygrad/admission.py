"""Admission: when the updates that a shard has accepted take effect.

A shard books each update as it comes. It applies it at once, or *gathers* it: the updates of a
*round* are averaged, weighted by their samples, and the round's *commit* applies the mean as one
update. Until then the shard's version stays what it was.

Where workers *wait*, one that has pushed reads again only when its round is committed. A member
(see ``protocol.clocks``) that has died, or has nothing to train, is not waited for.

>>> state = RoundState(2, gatherers=2, members=3, contributed=2, waited_s=0.0, epoch_over=False)
>>> Quorum().closes(state), Quorum(count=2).closes(state)
(False, True)
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import BeforeValidator, Field

from tardygrad.sections import Section, named


class RoundState(NamedTuple):
    """A shard's open round, of at least one update.

    ``gathered`` updates of ``gatherers`` workers; of the ``members`` that there are,
    ``contributed`` have one in it, or none to give; ``waited_s`` seconds ago it had enough (0 if it
    has not); ``epoch_over``: the last update was the last one of an epoch.
    """

    gathered: int
    gatherers: int
    members: int
    contributed: int
    waited_s: float
    epoch_over: bool


class _Admission(Section):
    gathers: ClassVar[bool] = True
    """Whether updates are gathered in rounds."""
    waits: ClassVar[bool] = False
    """Whether a worker that has pushed reads again only after the commit."""
    open_epochs: ClassVar[int] = 2
    """So many epochs may be trained at a time, the older one only by those who end it."""

    ends_with_run: ClassVar[bool] = True
    """Whether a run that is stopped ends its open round; else the round goes on when it does."""

    def enough(self, gathered: int, gatherers: int) -> bool:
        """Whether a round of so many updates, of so many workers, could end."""
        return False

    @property
    def grace(self) -> float:
        """Seconds for which a round with enough updates is kept open."""
        return 0.0

    def closes(self, state: RoundState) -> bool:
        """Whether the round ends now."""
        return self.enough(state.gathered, state.gatherers)

    def weight(self, samples: int, steps: int) -> float:
        """What an update of so many samples, made in so many steps, counts in the round's mean."""
        return samples


class AtOnce(_Admission):
    """Each update takes effect by itself, as it comes."""

    gathers: ClassVar[bool] = False

    name: Literal["at_once"] = "at_once"


class Quorum(_Admission):
    """A round ends when ``count`` members have contributed, or all that there are.

    Without ``count``: bulk-synchronous (Valiant, CACM 1990), all members. With it: synchronous SGD
    with backup workers (Chen et al., arXiv 1604.00981). ``grace_s`` keeps a round that has its
    ``count`` open for whoever comes within so many seconds (Decoupled DiLoCo, arXiv 2604.21428).
    What comes later counts as stale, and the staleness policy decides about it.

    In the mean an update weighs its ``samples``; or, with ``weights: tokens``, samples^2 / steps:
    its samples times those of one of its steps (same source, where samples are tokens).
    """

    waits: ClassVar[bool] = True

    name: Literal["quorum"] = "quorum"
    count: int | None = Field(default=None, ge=1)
    grace_s: float = Field(default=0.0, ge=0)
    weights: Literal["samples", "tokens"] = "samples"

    def enough(self, gathered: int, gatherers: int) -> bool:
        """Whether ``count`` members have contributed."""
        return self.count is not None and gatherers >= self.count

    def weight(self, samples: int, steps: int) -> float:
        """What an update of so many samples, made in so many steps, counts in the round's mean."""
        return samples if self.weights == "samples" else samples**2 / steps

    @property
    def grace(self) -> float:
        """``grace_s``."""
        return self.grace_s

    def closes(self, state: RoundState) -> bool:
        """Whether the round ends now."""
        if state.contributed >= state.members:
            return True
        return super().closes(state) and state.waited_s >= self.grace_s


class Collect(_Admission):
    """A round ends with its last of so many ``updates``, whoever sent them; nobody waits.

    n-softsync with ``updates`` = workers / n (Zhang et al., IJCAI 2016, arXiv 1511.05950), or, with
    a staleness policy that takes in fresh updates alone, Rennala SGD (Tyurin & Richtarik 2023,
    arXiv 2305.12387). The last round of an epoch ends with the epoch.
    """

    name: Literal["collect"] = "collect"
    updates: int = Field(default=4, ge=1)

    def enough(self, gathered: int, gatherers: int) -> bool:
        """Whether there are so many ``updates``."""
        return gathered >= self.updates

    def closes(self, state: RoundState) -> bool:
        """Whether the round ends now."""
        return state.epoch_over or super().closes(state)


class WholeEpoch(_Admission):
    """A round is an epoch: it ends when every sample of the epoch is booked.

    All of an epoch's updates start from the same parameters, so no work of the next epoch is leased
    before the commit.
    """

    open_epochs: ClassVar[int] = 1
    ends_with_run: ClassVar[bool] = False

    name: Literal["whole_epoch"] = "whole_epoch"

    def closes(self, state: RoundState) -> bool:
        """Whether the round ends now."""
        return state.epoch_over


Admission = Annotated[
    AtOnce | Quorum | Collect | WholeEpoch, Field(discriminator="name"), BeforeValidator(named)
]
