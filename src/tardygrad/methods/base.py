"""What a method is: how workers make updates, how servers take them in, and who waits for whom.

A method is a frozen configuration that builds two kinds of rule. A ``WorkerRule`` turns batches
into an update of the flat vector; a ``ServerRule`` changes one shard by it. Both work on tensors
that an engine hands them (memory of the process, shared memory, a received frame), so the same
rule objects train for real, are simulated, and are replayed. Staleness policy, consistency and
the number of pushes in flight are data that the protocol's machines read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, Self

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from tardygrad.admission import Admission, AtOnce
from tardygrad.balancing import Balance, Fixed, Pushes
from tardygrad.codecs import parse as parse_codec
from tardygrad.codecs.base import Codec
from tardygrad.codecs.fp32 import FP32
from tardygrad.consistency import ASP, Consistency
from tardygrad.errors import ConfigError
from tardygrad.layout import KeyRange, Layout, partition
from tardygrad.sections import Document
from tardygrad.staleness import Constant, StalenessPolicy
from tardygrad.turns import Turns

if TYPE_CHECKING:
    import torch

    from tardygrad.models.base import ModelAdapter


class Step(NamedTuple):
    """One step of a range: its tensors, the seed of its randomness, and its place in the run.

    ``consumed`` is the number of samples that come before this step in nominal order; ``batches``
    of the plan are ``merged`` in it.
    """

    batch: tuple[torch.Tensor, ...]
    seed: int
    consumed: int
    merged: int = 1


class Outcome(NamedTuple):
    """What computing a range gave: mean loss over its steps, and how many there were."""

    loss: float
    batches: int


class Origin(NamedTuple):
    """Whose update is applied, and how many versions lie between its read and its application."""

    worker: int
    staleness: int


NOBODY = Origin(-1, 0)
"""The mean of a round is nobody's."""


class WorkerRule(Protocol):
    """What a worker does between two exchanges. One object serves one session after another."""

    @property
    def borrows(self) -> bool:
        """Whether the model may compute with lent parameters: it never changes them itself."""
        ...

    def target(self, *, fresh: bool) -> torch.Tensor:
        """Where a pull must be written: float32 ``[parameters_size]``, always the same memory."""
        ...

    def pulled(self, *, fresh: bool) -> None:
        """The pull is written: merge it. ``fresh``: forget all local state first."""
        ...

    def compute(self, steps: Iterable[Step], out: torch.Tensor) -> Outcome:
        """Train the steps and leave the update in ``out``, float32 ``[parameters_size]``."""
        ...


class PeerRule(WorkerRule, Protocol):
    """What a worker does whose replica is averaged with those of others (``uses_peers``)."""

    @property
    def replica(self) -> torch.Tensor:
        """Its parameters, float32 ``[parameters_size]``; others change them between exchanges."""
        ...


class StripedRule(WorkerRule, Protocol):
    """The rule of a worker that exchanges its shards in turns."""

    def arrived(self, pieces: Sequence[slice]) -> None:
        """These key ranges of the target were written anew: mix them into the replica."""
        ...


class ServerRule(Protocol):
    """How one shard takes in an update. Not thread-safe: one writer."""

    @property
    def parameters(self) -> torch.Tensor:
        """The shard as it is now, float32 ``[size]``."""
        ...

    def apply(
        self,
        update: torch.Tensor,
        scale: float,
        consumed: int,
        out: torch.Tensor | None = None,
        origin: Origin = NOBODY,
    ) -> None:
        """Change the shard by ``update`` (same shape), its learning rate times ``scale``.

        ``consumed`` is the number of samples booked before this update. Without ``out`` the shard
        changes in place. With it, the new parameters are left in ``out``, whose caller will not
        change it before the next call; then no other tensor that was handed in may change.
        """
        ...

    def state(self) -> dict[str, torch.Tensor]:
        """Copies of the rule's tensors, for a snapshot."""
        ...

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Take up what :meth:`state` returned."""
        ...


class Method(Document):
    """The settings that every method has; concrete methods add theirs and build the rules."""

    where: ClassVar[str] = "method"

    name: str
    balance: Balance = Field(default_factory=Fixed)
    """What follows a worker's speed: nothing (``fixed``), its local ``steps`` or its ``batch``."""
    consistency: Consistency = Field(default_factory=ASP)
    """Who may go on: ``asp``, or ``ssp`` with a ``bound``."""
    admission: Admission = Field(default_factory=AtOnce)
    """When updates take effect: ``at_once``, ``quorum``, ``collect`` or ``whole_epoch``."""
    staleness: StalenessPolicy = Field(default_factory=Constant)
    """What a stale update is worth: constant, inverse, polynomial, delay_adaptive or cut_off."""
    exchange_period: int = Field(default=1, ge=1)
    """Batches that a worker trains between two exchanges (tau; H)."""
    in_flight: int = Field(default=1, ge=0, le=8)
    """Pushes that may be unanswered while the next range is computed; 0 waits for each answer."""
    codec: SerializeAsAny[Codec] = Field(default_factory=FP32)
    """What travels of an update: ``fp32``, ``fp16``, ``bf16``, ``int8``, ``scaled_sign``, ..."""

    locality: ClassVar[Literal["element", "tensor", "global"]] = "element"
    """Where the flat vector may be cut: anywhere, at tensor borders, or not at all."""

    @field_validator("codec", mode="before")
    @classmethod
    def _find_codec(cls, section: Any) -> Codec:
        return parse_codec(section)

    @model_validator(mode="after")
    def _one_wait(self) -> Self:
        if self.admission.waits and self.consistency.uses_clocks:
            raise ValueError(
                f"consistency {self.consistency.name} and admission {self.admission.name} both "
                "bind workers to each other, by different clocks; leave consistency at asp"
            )
        return self

    @model_validator(mode="after")
    def _balanced(self) -> Self:
        if self.balance.name != "fixed" and self.admission.name == "whole_epoch":
            raise ValueError(
                f"balance {self.balance.name}: with whole_epoch nobody waits between exchanges, "
                "and whoever is free takes the next fragment; leave balance at fixed"
            )
        problem = self.balance.problem(self.pushes, gathers=self.admission.gathers)
        if problem:
            raise ValueError(
                f"balance {self.balance.name} does not fit {self.name} with admission "
                f"{self.admission.name}: {problem}"
            )
        return self

    pushes: ClassVar[Pushes] = "way"
    """What an update is, which decides how it can be balanced."""
    uses_groups: ClassVar[bool] = False
    """Whether the workers average their updates among themselves before they push."""
    uses_peers: ClassVar[bool] = False
    """Whether workers average their replicas in pairs; then a shard, whose update from each of n
    workers counts 1 / n, holds the replicas' mean, and is read only where a session begins."""

    @property
    def follows(self) -> bool:
        """Whether a worker in a group can take the servers' step itself, from the mean alone."""
        return False

    carries: ClassVar[tuple[str, ...]] = ()
    """Settings that mean the same to every method that carries them (see ``methods.switch``)."""

    @classmethod
    def taking_over(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """What this method makes of another's settings that it ``carries``."""
        return settings

    @property
    def kind(self) -> str:
        """Whose state a shard keeps; what another kind kept is of no use to this one."""
        return self.name

    @property
    def turns(self) -> Turns | None:
        """In which turns a worker exchanges its shards; None: all at once."""
        return None

    @property
    def outstanding(self) -> int:
        """How many pushes of a worker may be unanswered while it computes."""
        return self.in_flight

    @property
    def workers_wait(self) -> bool:
        """Whether workers may have to wait for each other."""
        return self.consistency.uses_clocks or self.admission.waits

    def period_at(self, consumed: int) -> int:
        """Batches of an exchange that begins after ``consumed`` samples, in nominal order."""
        return self.exchange_period

    @property
    def longest_period(self) -> int:
        """No exchange has more steps, however many samples are consumed."""
        return self.exchange_period

    @property
    def steps_per_batch(self) -> int:
        """How often a worker trains each batch of an exchange, for whoever reckons with time."""
        return 1

    def ranges(self, layout: Layout, servers: int) -> tuple[KeyRange, ...]:
        """The key range of each server's shard.

        Raises:
            ConfigError: the model cannot be cut so often, or there are more stripes than shards.
        """
        turns = self.turns
        if turns is not None and turns.stripes > servers:
            raise ConfigError(
                f"method.stripes is {turns.stripes}, but servers is {servers}, and a stripe is "
                f"made of whole shards, one a server: set servers to {turns.stripes} or more"
            )
        return partition(layout, servers, self.locality)

    def weight(self, samples: int, *, steps: int, usual: int) -> float:
        """What an update counts: in a round's mean, or, at once, as a factor on the learning rate.

        Args:
            samples: those it was computed from.
            steps: those it took.
            usual: the samples of an exchange that nobody balances.
        """
        return self.admission.weight(samples, steps) if self.admission.gathers else 1.0

    def fragment_batches(self, usual: int, *, batches: int, workers: int) -> int:
        """Batches of a fragment where none are given.

        An exchange does not reach across a fragment's end, so a fragment is as long as one, if
        there are enough of them for all.

        Args:
            usual: what every method would do with.
            batches: batches of an epoch.
            workers: number of workers.
        """
        longest = int(self.longest_period * self.balance.reach)
        return max(usual, min(longest, batches // workers))

    @property
    def keeps_replica(self) -> bool:
        """Whether anything of a worker's own state outlives a pull.

        False promises that an update depends on the pulled parameters and its batches alone.
        """
        return True

    def worker_rule(self, adapter: ModelAdapter) -> WorkerRule:
        """The rule of one worker over its own model."""
        raise TypeError(f"{type(self).__name__} does not define worker_rule")

    def server_rule(self, parameters: torch.Tensor) -> ServerRule:
        """The rule of one shard, over a tensor that it changes in place."""
        raise TypeError(f"{type(self).__name__} does not define server_rule")

    def serial_optimizer(self, parameters: list[torch.Tensor]) -> torch.optim.Optimizer | None:
        """The optimizer whose plain loop one worker without staleness equals to the bit, if any.

        The conformance battery holds the method to it.
        """
        return None

    def learning_rate(self, consumed: int) -> float:
        """The learning rate after ``consumed`` samples, for people who watch."""
        raise TypeError(f"{type(self).__name__} does not define learning_rate")
