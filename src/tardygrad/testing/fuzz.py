"""As many random fault schedules as one likes: ``python -m tardygrad.testing.fuzz --count 10000``.

Each schedule is a run of its own, simulated to its end with all invariants checked. One that fails
is printed with its seed, what is wrong, and the command that shows it again, event by event.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import multiprocessing
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from tardygrad.engines.base import RunEnd
from tardygrad.engines.shard_host import digest
from tardygrad.errors import InvariantViolation, TardygradError
from tardygrad.replaying import replay_traces
from tardygrad.testing.faults import random_schedule
from tardygrad.testing.simulation import SimulatedCluster

_REPLAY_EVERY = 5
"""Of the schedules whose model only counts, so many are replayed; all of those with a real one."""


class Result(NamedTuple):
    """What became of one schedule; ``problem`` is empty if all went as it must."""

    seed: int
    outcome: str
    events: int
    problem: str


def run_schedule(seed: int, log: Callable[[str], None] | None = None) -> Result:
    """Simulate the schedule of a seed and check everything."""
    schedule = random_schedule(seed)
    cluster = schedule.cluster(log=log)
    try:
        end = cluster.run()
        cluster.check(end)
        counts = schedule.model == "counting" and seed % _REPLAY_EVERY == 0
        if end.outcome == "done" and (schedule.model == "torch" or counts):
            check_replay(cluster, end)
    except TardygradError as error:
        return Result(seed, "broken", cluster.events, f"{type(error).__name__}: {error}")
    except Exception:  # a machine that raises anything else is broken too
        return Result(seed, "broken", cluster.events, traceback.format_exc())
    return Result(seed, end.outcome, cluster.events, "")


def check_replay(cluster: SimulatedCluster, end: RunEnd) -> None:
    """Compute the run again from its traces alone; through failures and stops it is the same.

    Raises:
        InvariantViolation: it is not.
    """
    threads = torch.get_num_threads()
    # As in the run: sums depend on the number of threads to the bit.
    torch.set_num_threads(cluster.job.config.threads)
    try:
        history = cluster.history
        records, residuals = history.records, history.residuals
        found = digest([replay_traces(cluster.job, records, residuals, meetings=history.meetings)])
    finally:
        torch.set_num_threads(threads)
    if found != end.figures["digest"]:
        raise InvariantViolation(
            f"a replay of the traces ends with {found}, the run with {end.figures['digest']}"
        )


def run_schedules(seeds: range, jobs: int = 1) -> Iterator[Result]:
    """Results in the order of the seeds, from ``jobs`` processes."""
    if jobs == 1:
        yield from map(run_schedule, seeds)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context) as pool:
        yield from pool.map(run_schedule, seeds, chunksize=16)


def describe(result: Result) -> str:
    """The failure, and how to see it again."""
    commit = _commit()
    return (
        f"seed {result.seed}{f' at commit {commit}' if commit else ''}: {result.problem}\n"
        f"  see it again: {Path(sys.executable).name} -m tardygrad.testing.fuzz "
        f"--only {result.seed} -v"
    )


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tardygrad.testing.fuzz",
        description="Simulate random fault schedules and check every invariant.",
    )
    parser.add_argument("--count", type=int, default=1000, help="how many schedules (1000)")
    parser.add_argument("--seed", type=int, default=0, help="the first one's seed (0)")
    parser.add_argument("--jobs", type=int, default=1, help="processes to use (1)")
    parser.add_argument("--only", type=int, metavar="SEED", help="this schedule alone")
    parser.add_argument("-v", "--verbose", action="store_true", help="print every event")
    arguments = parser.parse_args(argv)
    if arguments.count < 1 or arguments.jobs < 1:
        parser.error("--count and --jobs must be at least 1")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    arguments = _arguments(argv)
    started = time.perf_counter()
    if arguments.only is not None:
        log = print if arguments.verbose else None
        results: Iterator[Result] = iter([run_schedule(arguments.only, log)])
    else:
        seeds = range(arguments.seed, arguments.seed + arguments.count)
        results = run_schedules(seeds, arguments.jobs)
    outcomes: dict[str, int] = {}
    events = 0
    for result in results:
        outcomes[result.outcome] = outcomes.get(result.outcome, 0) + 1
        events += result.events
        if result.problem:
            print(describe(result), flush=True)
    seconds = time.perf_counter() - started
    # A run may end as failed: with no worker left and no restart, say. Only "broken" is a fault.
    words = {"failed": "ended as failed, as they had to"}
    counts = sorted(outcomes.items())
    total = ", ".join(f"{count} {words.get(outcome, outcome)}" for outcome, count in counts)
    print(f"{sum(outcomes.values())} schedules: {total}; {events} events in {seconds:.1f} s")
    return 1 if "broken" in outcomes else 0


if __name__ == "__main__":
    sys.exit(main())
