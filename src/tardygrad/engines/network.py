"""The simulator's network and clocks of fate: delays, losses and faults, all from one seed.

Every random number of a simulation is drawn here, in the order of the simulation's own events, so
the same seed gives the same history. Durations are drawn in blocks: a simulation spends its time
on the machines, not on the generator.
"""

from __future__ import annotations

import numpy as np

from tardygrad.config import Duration, SimulationConfig
from tardygrad.protocol.events import Address

_BLOCK = 512
_FOREVER_S = 1e9


class Sampler:
    """Draws seconds from a ``Duration``; a constant costs nothing."""

    def __init__(self, duration: Duration, seed: list[int]) -> None:
        self._duration = duration
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._block: list[float] = []
        self.constant = duration.mean_s if duration.distribution == "constant" else None

    def __call__(self) -> float:
        """The next number of seconds."""
        if self.constant is not None:
            return self.constant
        if not self._block:
            self._block = [self._duration.sample(self._rng) for _ in range(_BLOCK)]
        return self._block.pop()


def _name(address: Address) -> str:
    return f"{address[0]}-{address[1]}"


class Fate:
    """Which faults meet whom, and when."""

    def __init__(self, config: SimulationConfig, seed: int) -> None:
        kinds = ("loss", "duplicate", "delay")
        self._messages = [f for f in config.faults if f.kind in kinds]
        self._blackouts = [f for f in config.faults if f.kind == "blackout"]
        self.jumps = [f for f in config.faults if f.kind == "jump"]
        self._slow = [f for f in config.faults if f.kind == "slow"]
        self.crashes = [f for f in config.faults if f.kind == "crash"]
        self.hangs = [f for f in config.faults if f.kind == "hang"]
        self._rng = np.random.Generator(np.random.PCG64([seed, 0xFA7E]))
        self.quiet = not (self._messages or self._blackouts)

    def cut_off(self, address: Address, now: float, *ways: str) -> bool:
        """Whether messages do not reach the member ("in"), or do not leave it ("out")."""
        name = _name(address)
        return any(
            f.target == name and f.on(now) and (f.way == "both" or f.way in ways)
            for f in self._blackouts
        )

    def clock(self, address: Address, now: float) -> float:
        """What a process takes for the time."""
        names = (None, _name(address))
        return now + sum(f.by_s for f in self.jumps if f.target in names and f.on(now))

    def deliveries(self, sender: Address, to: Address, delay: float, now: float) -> list[float]:
        """The delays after which the message arrives: none if it is lost, two if it is doubled."""
        if self.cut_off(sender, now, "out") or self.cut_off(to, now, "in"):
            return []
        times = [delay]
        for fault in self._messages:
            meets = fault.target is None or fault.target in (_name(sender), _name(to))
            if not meets or not fault.on(now) or self._rng.random() >= fault.rate:
                continue
            if fault.kind == "loss":
                return []
            if fault.kind == "duplicate":
                times.append(delay * (1.0 + 10.0 * float(self._rng.random())))
            else:
                times = [t * fault.factor for t in times]
        return times

    def freeze(self, address: Address, born: float, now: float) -> float:
        """Until when a process born at ``born`` is frozen, or 0 if it is not."""
        name = _name(address)
        ends = [
            fault.at_s + (_FOREVER_S if fault.for_s is None else fault.for_s)
            for fault in self.hangs
            if fault.target == name and born <= fault.at_s and fault.on(now)
        ]
        return max(ends, default=0.0)

    def ever_slow(self, worker: int) -> bool:
        """Whether a fault makes the worker slow at some time."""
        return any(fault.target == f"worker-{worker}" for fault in self._slow)

    def slowness(self, worker: int, now: float) -> float:
        """The factor on the worker's computing time."""
        factor = 1.0
        for fault in self._slow:
            if fault.target == f"worker-{worker}" and fault.on(now):
                factor *= fault.factor
        return factor
