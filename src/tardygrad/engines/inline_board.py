"""The board on which simulated workers meet.

Theory of operation. What a worker puts on the board is seen by others when its way through the
network is over: an offer, and the difference that is left by who takes it; until that has come the
place is held. A lost offer is never seen; a difference is sent until it arrives. To take an offer
is a matter of one message each way; the worker asks the servers for their versions meanwhile, which
takes as long. Where links have a limit, the offer and the difference pass through both workers'
links before the worker computes. A worker that is cut off from the network meets nobody.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from tardygrad.engines.inline_world import Member, World
from tardygrad.engines.peers import Peer
from tardygrad.protocol.effects import Compute
from tardygrad.protocol.events import Address
from tardygrad.protocol.meetings import Met

_RETRY_S = 0.05


class _Place:
    def __init__(self) -> None:
        self.open = 0
        self.seen_at = math.inf
        self.taken = 0
        self.taker = (0, 0)
        self.held_until = 0.0
        self.offered: torch.Tensor | None = None
        self.difference: torch.Tensor | None = None


class SimulatedBoard:
    """All places of a simulated run, and who stands before them.

    Args:
        world: the simulator's world.
        parameters: floats of a replica.
        log: keeps what happens.
    """

    def __init__(self, world: World, parameters: int, log: Callable[[Met], None]) -> None:
        self._world, self._parameters, self._log = world, parameters, log
        self._places = [_Place() for _ in range(world.job.config.workers_max)]
        self._peers: dict[Address, tuple[int, Peer]] = {}

    def meet(self, effect: Compute, address: Address, member: Member, seed: int) -> float:
        """What a worker does before an exchange; returns for how many seconds links are busy."""
        incarnation, peer = self._peers.get(address, (-1, None))
        if peer is None or incarnation != member.incarnation:
            peer = Peer(self, address[1], len(self._places), seed, self._log)
            self._peers[address] = (member.incarnation, peer)
        replica = None if member.host is None else member.host.replica
        other = peer.meet(effect, member.reads, replica)
        if other is None:
            return 0.0
        member.counters.met(4 * self._parameters)
        return self._through_s(address, ("worker", other))

    def _through_s(self, one: Address, other: Address) -> float:
        links, now, size = self._world.links, self._world.now, 4 * self._parameters
        if links is None:
            return 0.0
        ways = [(links.up(other), links.down(one)), (links.up(one), links.down(other))]
        return max(link.take(now, size)[1] for way in ways for link in way) - now

    def _ways(self, place: int) -> list[float]:
        """Seconds after which a message from or to a worker arrives; none if it is lost."""
        world, address = self._world, ("worker", place)
        delay = world.network[place]()
        return world.fate.deliveries(address, address, delay, world.now)

    # --- what peers see of it -----------------------------------------------------------------

    def hold(self, place: int) -> bool:
        """Hold a place; False if a difference is on its way to it, or nothing reaches it."""
        world = self._world
        if self._places[place].held_until > world.now:
            return False
        return world.fate.quiet or not world.fate.cut_off(("worker", place), world.now, "in", "out")

    def let_go(self, place: int) -> None:
        """Nothing to do: what one worker does here is one event."""

    def open(self, place: int) -> int:
        """The number of the offer that others see; 0 if there is none."""
        found = self._places[place]
        return found.open if found.seen_at <= self._world.now else 0

    def close(self, place: int) -> None:
        """Nobody takes the offer any more."""
        self._places[place].open = 0

    def taken(self, place: int, seq: int) -> tuple[int, int] | None:
        """Which worker took offer ``seq`` before which exchange of its own, if one did."""
        found = self._places[place]
        return found.taker if found.taken == seq else None

    def take(self, place: int, worker: int, at: int) -> None:
        """The difference is there: ``worker`` takes the offer before its exchange ``at``."""
        found = self._places[place]
        found.taken, found.taker, found.open = found.open, (worker, at), 0
        found.held_until = self._world.now + min(self._ways(place), default=_RETRY_S)

    def offer(self, place: int, seq: int, replica: torch.Tensor | None) -> None:
        """Make a new offer, which others see when it has come to them."""
        found = self._places[place]
        found.open = seq
        found.seen_at = self._world.now + min(self._ways(place), default=math.inf)
        if replica is not None:
            found.offered = replica.clone()
            found.difference = torch.empty_like(replica)

    def offered(self, place: int) -> torch.Tensor | None:
        """What the offer is."""
        return self._places[place].offered

    def difference(self, place: int) -> torch.Tensor | None:
        """What is left by who took the offer."""
        return self._places[place].difference
