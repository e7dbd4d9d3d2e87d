"""Workers that average their replicas in pairs: one worker's side, over a board of places.

Theory of operation. Each worker has a *place* on the board. There lie its newest offer (its replica
as it was before it began to compute) and, once another worker has taken that, the difference that
is left for it (``protocol.meetings``). Whoever looks at a place or changes it *holds* it. A worker
holds its own place from looking at it until its new offer is there, and the other one's until it
has taken the offer. Nobody waits: a place that somebody holds is passed over, and a worker whose
own place is held goes on without a meeting.

A place that its holder let go by dying is as it was before, or its offer is gone: an offer is open
only when it is written whole, and is closed before it says who took it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from tardygrad.protocol.effects import Compute
from tardygrad.protocol.events import Read
from tardygrad.protocol.history import Step
from tardygrad.protocol.meetings import Back, Met, Took, order


class Board(Protocol):
    """The places of all workers. Vectors are float32 ``[parameters_size]``."""

    def hold(self, place: int) -> bool:
        """Hold a place; False if another process does, or it cannot be reached."""
        ...

    def let_go(self, place: int) -> None:
        """Hold it no longer."""
        ...

    def open(self, place: int) -> int:
        """The number of the offer that can be taken; 0 if there is none."""
        ...

    def close(self, place: int) -> None:
        """Nobody takes the offer any more."""
        ...

    def taken(self, place: int, seq: int) -> tuple[int, int] | None:
        """Which worker took offer ``seq`` before which exchange of its own, if one did."""
        ...

    def take(self, place: int, worker: int, at: int) -> None:
        """The difference is there: ``worker`` takes the offer before its exchange ``at``."""
        ...

    def offer(self, place: int, seq: int, replica: torch.Tensor | None) -> None:
        """Make a new offer; a copy is kept of ``replica``."""
        ...

    def offered(self, place: int) -> torch.Tensor | None:
        """What the offer is; None where nothing is computed."""
        ...

    def difference(self, place: int) -> torch.Tensor | None:
        """What is left by who took the offer."""
        ...


class Peer:
    """One worker's side; it lives as long as the worker's process.

    Args:
        board: where workers meet.
        worker: whose side this is.
        workers: how many there are.
        seed: the run's seed.
        log: keeps what happens; it is durable once that returns.
    """

    def __init__(
        self, board: Board, worker: int, workers: int, seed: int, log: Callable[[Met], None]
    ) -> None:
        self._board, self._worker, self._workers = board, worker, workers
        self._seed, self._log = seed, log
        self._session = 0
        self._offered = 0

    def meet(
        self, effect: Compute, reads: tuple[Read, ...], replica: torch.Tensor | None
    ) -> int | None:
        """Do what comes before an exchange.

        Args:
            effect: the exchange that comes.
            reads: the versions that the worker has read, of each shard.
            replica: the worker's own, which changes in place; None where nothing is computed.

        Returns:
            Whose offer was taken, or None.
        """
        board, own, lease = self._board, self._worker, effect.lease
        if lease.session != self._session:
            # It has begun anew: what it offered before is not a part of it any more.
            self._session, self._offered = lease.session, 0
        held = board.hold(own)
        back = self._look() if held else None
        other = self._find(effect.seq) if held else None
        took = None if other is None else Took(other, board.open(other))
        if replica is not None:
            if back is not None:
                take_up(replica, board.difference(own))
            if other is not None:
                halve(replica, board.offered(other), board.difference(other))
        r = (lease.fence, lease.epoch, lease.fragment, effect.first, effect.stop)
        # Before anybody else can see what came of it.
        self._log(Met(own, lease.session, effect.seq, *r, reads, back, took))
        if other is not None:
            board.take(other, own, effect.seq)
            board.let_go(other)
        if held:
            board.offer(own, effect.seq, replica)
            self._offered = effect.seq
            board.let_go(own)
        return other

    def _look(self) -> Back | None:
        board, own = self._board, self._worker
        board.close(own)
        taken = board.taken(own, self._offered) if self._offered else None
        return None if taken is None else Back(self._offered, *taken)

    def _find(self, seq: int) -> int | None:
        """Hold the place of another worker whose offer is open, if there is one."""
        board = self._board
        for other in order(self._seed, self._worker, seq, self._workers):
            if board.open(other) and board.hold(other):
                if board.open(other):
                    return other
                board.let_go(other)
        return None


class PastMeetings:
    """The meetings of a recorded run, for a replay; keeps what they left while a step needs it."""

    def __init__(self) -> None:
        self._offers: dict[Step, torch.Tensor] = {}
        self._differences: dict[Step, torch.Tensor] = {}

    def before(self, step: Step, replica: torch.Tensor) -> None:
        """Change ``replica``, float32 ``[parameters_size]``, as its worker did before the step."""
        if step.back is not None:
            step.back.gainers -= 1
            take_up(replica, _kept(self._differences, step.back, step.back.gainers))
        if step.took is not None:
            step.took.takers -= 1
            offered = _kept(self._offers, step.took, step.took.takers)
            difference = torch.empty_like(replica)
            halve(replica, offered, difference)
            if step.gainers:
                self._differences[step] = difference
        if step.takers:
            self._offers[step] = replica.clone()


def _kept(kept: dict[Step, torch.Tensor], step: Step, left: int) -> torch.Tensor:
    """What is kept of a step; no longer once nobody is ``left`` who needs it."""
    return kept[step] if left else kept.pop(step)


def halve(
    replica: torch.Tensor, offered: torch.Tensor | None, difference: torch.Tensor | None
) -> None:
    """Go half the way to what is offered; ``difference`` becomes what the other side gains."""
    assert offered is not None and difference is not None
    torch.sub(replica, offered, out=difference)
    difference.mul_(0.5)
    replica.sub_(difference)


def take_up(replica: torch.Tensor, difference: torch.Tensor | None) -> None:
    """Gain what the other side has left."""
    assert difference is not None
    replica.add_(difference)
