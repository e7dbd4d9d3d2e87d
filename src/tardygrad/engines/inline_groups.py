"""The simulator's groups: workers that average their updates among themselves.

Theory of operation. A collective ends when all ranks have come to it, and then each rank hears of
it after a time of its own: a ring of n ranks passes 2 (n - 1) messages one after the other, and
2 (n - 1) / n times an update's bytes go up and down each rank's link, where that has a limit. When
a rank leaves or dies, whoever waits for it gets an error; of those that have not heard yet of a
collective that ended, some do. A frozen rank comes late; one that is cut off from the network hears
nothing, and its connections hold.
"""

from __future__ import annotations

import numpy as np
import torch

from tardygrad.engines import sums
from tardygrad.engines.inline_world import Member, World
from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev

_RETRY_S = 0.05
_LOST_SHARE = 0.5
_BROKEN = "a rank is gone"

Mean = tuple[int, torch.Tensor | None]
"""What a rank hears: its group's generation and the mean, float32 ``[parameters_size]``."""


class _Group:
    def __init__(self) -> None:
        self.joined: dict[int, tuple[ev.Address, int]] = {}
        self.reducing: dict[int, tuple[ev.Address, int, ef.Reduce, torch.Tensor | None]] = {}
        self.connected = False
        self.broken = False


class Collectives:
    """All groups of a simulated run.

    Args:
        world: the simulator's world.
        parameters: floats of an update that are averaged; the buffers behind them are not.
        seed: the run's seed.
    """

    def __init__(self, world: World, parameters: int, seed: int) -> None:
        self._world, self._parameters = world, parameters
        self._rng = np.random.Generator(np.random.PCG64([seed, 6]))
        self._groups: dict[int, _Group] = {}
        self._at: dict[ev.Address, int] = {}

    def join(self, effect: ef.JoinGroup, address: ev.Address, member: Member) -> None:
        """A rank wants to be connected to the others."""
        generation = effect.group.generation
        group = self._groups.setdefault(generation, _Group())
        self._at[address] = generation
        group.joined[effect.group.rank] = (address, member.incarnation)
        if group.broken:
            self._fail_joining(generation, group)
        elif len(group.joined) == effect.group.size:
            group.connected = True
            for rank in group.joined.values():
                self._tell(*rank, ev.Joined(generation, ""), effect.group.size, None)

    def reduce(self, effect: ef.Reduce, address: ev.Address, member: Member) -> None:
        """A rank brings its update."""
        generation = effect.group.generation
        group = self._groups[generation]
        update = member.slots.get(effect.seq)
        group.reducing[effect.group.rank] = (address, member.incarnation, effect, update)
        if group.broken:
            self._fail_reducing(group)
        elif len(group.reducing) == effect.group.size:
            ranks = [group.reducing[rank] for rank in range(effect.group.size)]
            group.reducing = {}
            updates = [u[: self._parameters] for _, _, _, u in ranks if u is not None]
            samples = [asked.samples for _, _, asked, _ in ranks]
            found = sums.mean(updates, samples) if updates else None
            through_s = self._through_s([at for at, *_ in ranks])
            for at, incarnation, asked, _ in ranks:
                done = ev.Reduced(asked.seq, "")
                self._tell(at, incarnation, done, len(ranks), (generation, found), through_s)

    def leave(self, address: ev.Address) -> None:
        """A worker is gone, or has left its group."""
        group = self._groups.get(self._at.pop(address, 0))
        if group is None or group.broken:
            return
        group.broken = True
        generation = next(g for g, other in self._groups.items() if other is group)
        if not group.connected:
            self._fail_joining(generation, group)
        self._fail_reducing(group)

    def hears(
        self, address: ev.Address, member: Member, event: ev.Reduced, mean: Mean | None
    ) -> ev.Reduced | None:
        """What a rank makes of the end of a collective; None if it does not hear of it yet."""
        world = self._world
        if not world.fate.quiet and world.fate.cut_off(address, world.now, "in", "out"):
            world.later(_RETRY_S, address, event, member.incarnation, mean)
            return None
        if mean is None or event.seq not in member.slots:
            return event
        if self._groups[mean[0]].broken and self._rng.random() < _LOST_SHARE:
            return event._replace(error=_BROKEN)
        update = member.slots[event.seq]
        if update is not None and mean[1] is not None:
            update[: self._parameters] = mean[1]
        return event

    def _fail_joining(self, generation: int, group: _Group) -> None:
        for rank in group.joined.values():
            self._tell(*rank, ev.Joined(generation, _BROKEN), 1, None)
        group.joined = {}

    def _fail_reducing(self, group: _Group) -> None:
        for address, incarnation, asked, _ in group.reducing.values():
            self._tell(address, incarnation, ev.Reduced(asked.seq, _BROKEN), 1, None)
        group.reducing = {}

    def _through_s(self, ranks: list[ev.Address]) -> float:
        """Seconds until the ring's slowest link has let its share of the bytes through."""
        links, now = self._world.links, self._world.now
        if links is None:
            return 0.0
        count = 2 * (len(ranks) - 1) * 4 * self._parameters // len(ranks)
        ends = [link.take(now, count)[1] for at in ranks for link in (links.up(at), links.down(at))]
        return max(ends) - now

    def _tell(
        self, address: ev.Address, incarnation: int, event: ev.Event, size: int, mean: Mean | None,
        through_s: float = 0.0,
    ) -> None:  # fmt: skip
        latency_s = max(2 * (size - 1), 1) * self._world.network[address[1]]()
        self._world.later(through_s + latency_s, address, event, incarnation, mean)
