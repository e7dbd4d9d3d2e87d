"""Every history of a small cluster: ``python -m tardygrad.testing.explore --workers 2 --faults 2``.

Theory of operation. From the beginning, all steps that may come next are taken, and from each state
that was not seen before all steps again, nearest first, until there are no new states
(``small_world``). In every state the machines' own checks, the auditor's and those of the whole
cluster hold, or the search ends with the shortest history that breaks one. Then progress: from
every state some history without further misfortune leads to the end of the run; a state from which
none does is a trap, and the history that leads into it is shown.

What is found to hold, holds for these sizes and this much misfortune, in this model.
"""

from __future__ import annotations

import argparse
import sys
import time
from array import array
from typing import NamedTuple

from tardygrad.testing.small_states import KINDS, Machines, Setup, State
from tardygrad.testing.small_world import World


class Found(NamedTuple):
    """What a search came to.

    Attributes:
        states: how many were visited.
        steps: how many steps lead from one to another.
        ends: how many of the states are ends of the run.
        whole: there are no more.
        problem: what is broken; empty if nothing.
        history: the steps that lead there, in words.
        machines: how many states scheduler, servers and workers were seen in.
    """

    states: int
    steps: int
    ends: int
    whole: bool
    problem: str
    history: tuple[str, ...]
    machines: tuple[int, int, int]

    def describe(self) -> str:
        """All of it in words."""
        size = (
            f"{self.states} states, {self.steps} steps, {self.ends} ends of the run"
            f"{'' if self.whole else ' (the limit: there are more)'}; the scheduler was seen in "
            "{} states, servers in {}, workers in {}".format(*self.machines)
        )
        if not self.problem:
            return f"{size}: nothing is broken" + (
                ", and every state leads to an end" if self.whole else ""
            )
        lines = [f"{number:3}. {words}" for number, words in enumerate(self.history, 1)]
        return "\n".join([size, *lines, f"     broken: {self.problem}"])


class _Search:
    def __init__(self, world: World, limit: int) -> None:
        self.world, self.limit = world, limit
        self.numbers: dict[State, int] = {}
        self.states: list[State] = []
        # From which state each was first reached, and in words how.
        self.parents = array("q")
        self.words: list[str] = []
        # Steps without misfortune, for progress.
        self.sources, self.targets = array("q"), array("q")
        self.ends: list[int] = []
        self.steps = 0

    def run(self) -> Found:
        self.put(self.world.first(), -1, "nothing has begun")
        at = 0
        while at < len(self.states):
            state = self.states[at]
            if self.world.is_over(state):
                self.ends.append(at)
                wrong = self.world.check_end(state)
                if wrong:
                    return self.found(wrong, self.history(at))
            elif len(self.states) < self.limit:
                broken = self.expand(at, state)
                if broken is not None:
                    return broken
            else:
                return self.found("", (), whole=False)
            at += 1
        trap = self.trap()
        if trap is not None:
            return self.found("from here no history leads to the end", self.history(trap))
        return self.found("", ())

    def expand(self, at: int, state: State) -> Found | None:
        for step in self.world.steps(state):
            self.steps += 1
            if step.broken:
                return self.found(step.broken, (*self.history(at), step.words))
            target = self.numbers.get(step.state)
            if target is None:
                target = self.put(step.state, at, step.words)
            if not step.fault:
                self.sources.append(at)
                self.targets.append(target)
        return None

    def put(self, state: State, parent: int, words: str) -> int:
        number = self.numbers[state] = len(self.states)
        self.states.append(state)
        self.parents.append(parent)
        self.words.append(words)
        return number

    def history(self, at: int) -> tuple[str, ...]:
        words = []
        while at >= 0:
            words.append(self.words[at])
            at = self.parents[at]
        return tuple(reversed(words))

    def trap(self) -> int | None:
        """The first state from which no end is reached without further misfortune."""
        before: dict[int, list[int]] = {}
        for source, target in zip(self.sources, self.targets, strict=True):
            before.setdefault(target, []).append(source)
        good = bytearray(len(self.states))
        queue = list(self.ends)
        for at in queue:
            good[at] = 1
        while queue:
            for source in before.get(queue.pop(), ()):
                if not good[source]:
                    good[source] = 1
                    queue.append(source)
        return next((at for at in range(len(self.states)) if not good[at]), None)

    def found(self, problem: str, history: tuple[str, ...], *, whole: bool = True) -> Found:
        world = self.world
        machines = len(world.schedulers), len(world.servers), len(world.workers)
        size = len(self.states), self.steps, len(self.ends)
        return Found(*size, whole and not problem, problem, history, machines)


def explore(setup: Setup, machines: Machines | None = None, *, limit: int = 10_000_000) -> Found:
    """Search every history of a small cluster.

    Args:
        setup: how large it is, and how much befalls it.
        machines: other machines than the real ones.
        limit: end after so many states.
    """
    return _Search(World(setup, machines), limit).run()


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    usual = Setup()
    parser = argparse.ArgumentParser(
        prog="python -m tardygrad.testing.explore",
        description="Search every history of a small cluster for one that breaks an invariant.",
    )
    for name, what in (
        ("workers", "workers"),
        ("shards", "shards, each with its server"),
        ("batches", "batches of an epoch"),
        ("fragment-batches", "batches of a fragment"),
        ("epochs", "epochs"),
        ("faults", "misfortunes in any one history"),
        ("checkpoints", "checkpoints before the last one"),
        ("in-flight", "pushes that a worker need not wait for"),
    ):
        default = getattr(usual, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} ({default})")
    parser.add_argument("--bound", type=int, help="stale-synchronous workers with this bound")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="kinds of faults")
    parser.add_argument(
        "--unhurried",
        dest="prompt",
        action="store_false",
        help="every message takes its time: many more states",
    )
    parser.add_argument("--limit", type=int, default=10_000_000, help="states to visit at most")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    arguments = vars(_arguments(argv))
    limit = arguments.pop("limit")
    started = time.perf_counter()
    found = explore(Setup(**{**arguments, "kinds": tuple(arguments["kinds"])}), limit=limit)
    print(f"{found.describe()} ({time.perf_counter() - started:.1f} s)")
    return 1 if found.problem else 0


if __name__ == "__main__":
    sys.exit(main())
