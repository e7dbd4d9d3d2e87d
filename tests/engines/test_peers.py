"""Meetings on a board: what one side gains the other loses, whoever dies, waits or never comes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tardygrad.engines.inline_board import SimulatedBoard
from tardygrad.engines.inline_world import World
from tardygrad.engines.peers import Board, Peer, halve, take_up
from tardygrad.engines.shared_board import SharedBoard, make_board
from tardygrad.errors import StorageError
from tardygrad.protocol.effects import Compute
from tardygrad.protocol.events import Lease
from tardygrad.protocol.meetings import Met, order
from tardygrad.testing.simulation import null_job

WORKERS, SIZE = 3, 5


class _World(World):
    """Time that a test sets, and nothing that happens."""

    def to_scheduler(self, event: Any) -> None: ...
    def to_worker(self, address: Any, member: Any, event: Any, payload: Any) -> None: ...
    def to_server(self, address: Any, member: Any, event: Any, payload: Any) -> None: ...
    def to_backup(self, address: Any, member: Any, event: Any) -> None: ...
    def to_store(self) -> None: ...
    def tick(self) -> None: ...


def simulated(directory: Path) -> tuple[Board, Callable[[], None]]:
    faults = [{"kind": "loss", "rate": 0.2}, {"kind": "delay", "rate": 0.3, "factor": 5.0}]
    world = _World(null_job(workers=WORKERS, simulation={"network": 0.4, "faults": faults}))

    def later() -> None:
        world.now += 0.3

    return SimulatedBoard(world, SIZE, lambda met: None), later


def shared(directory: Path) -> tuple[Board, Callable[[], None]]:
    make_board(directory, SIZE, WORKERS, WORKERS)
    return SharedBoard(directory, SIZE, WORKERS), lambda: None


class Swarm:
    """Workers over a board, each with a replica, and the entries that they wrote."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.entries: list[Met] = []
        self.sessions, self.seq, self.born = 0, 0, [0] * WORKERS
        self.replicas = [torch.zeros(SIZE) for _ in range(WORKERS)]
        self.peers: dict[int, Peer] = {}
        for worker in range(WORKERS):
            self.restart(worker)

    def restart(self, worker: int) -> None:
        """A new process in the slot, which begins at zero."""
        self.sessions += 1
        self.born[worker] = self.sessions
        self.peers[worker] = Peer(self.board, worker, WORKERS, 7, self.entries.append)
        self.replicas[worker] = torch.zeros(SIZE)

    def exchange(self, worker: int, step: float) -> None:
        """Meet, then go a step."""
        self.seq += 1
        lease = Lease(1, self.born[worker], worker, 0, 0, 0, 1, ())
        effect = Compute(self.seq, lease, 0, 1)
        self.peers[worker].meet(effect, (), self.replicas[worker])
        self.replicas[worker] += step

    def pending(self) -> torch.Tensor:
        """What was left for those who live, and not taken up yet."""
        total = torch.zeros(SIZE)
        taken = {m.took for m in self.entries if m.took is not None}
        back = {(m.worker, m.back.seq) for m in self.entries if m.back is not None}
        for took in taken - back:
            session = next(m.session for m in self.entries if m[0::2][:2] == tuple(took))
            difference = self.board.difference(took.worker)
            if session == self.born[took.worker] and difference is not None:
                total += difference
        return total


BOARDS = pytest.mark.parametrize("make", [simulated, shared], ids=lambda make: make.__name__)
ACTIONS = st.lists(
    st.tuples(st.sampled_from(["step", "step", "step", "wait"]), st.integers(0, WORKERS - 1)),
    max_size=40,
)


@BOARDS
@settings(max_examples=60, deadline=None)
@given(actions=ACTIONS)
def test_the_sum_is_what_the_steps_make_it(
    make: Any, actions: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    board, later = make(tmp_path_factory.mktemp("board"))
    swarm, total = Swarm(board), 0.0
    for number, (what, worker) in enumerate(actions):
        if what == "wait":
            later()
        else:
            swarm.exchange(worker, 1.0 + number)
            total += 1.0 + number
        held = torch.stack(swarm.replicas).sum(dim=0) + swarm.pending()
        assert torch.allclose(held, torch.full((SIZE,), total), rtol=1e-5)


@BOARDS
@settings(max_examples=60, deadline=None)
@given(actions=ACTIONS, deaths=st.sets(st.integers(0, 39), max_size=4))
def test_no_offer_counts_twice_and_all_stays_between(
    make: Any, actions: Any, deaths: set[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    board, later = make(tmp_path_factory.mktemp("board"))
    swarm = Swarm(board)
    for number, (what, worker) in enumerate(actions):
        if number in deaths:
            swarm.restart(worker)
        elif what == "wait":
            later()
        else:
            swarm.exchange(worker, 1.0)
    taken = [m.took for m in swarm.entries if m.took is not None]
    back = [(m.worker, m.back.seq) for m in swarm.entries if m.back is not None]
    assert len(set(taken)) == len(taken)
    assert len(set(back)) == len(back)
    # What is taken up was taken, from this very session.
    sessions = {(m.worker, m.seq): m.session for m in swarm.entries}
    for met in swarm.entries:
        if met.back is not None:
            giver = next(m for m in swarm.entries if m[0::2][:2] == met.back[1:])
            assert giver.took == (met.worker, met.back.seq)
            assert sessions[(met.worker, met.back.seq)] == met.session
    assert all(0 <= float(r.min()) <= float(r.max()) <= len(actions) for r in swarm.replicas)


@BOARDS
def test_whoever_never_comes_again_is_met_once(make: Any, tmp_path: Path) -> None:
    board, later = make(tmp_path)
    swarm = Swarm(board)
    swarm.exchange(0, 8.0)
    for _ in range(12):
        for _ in range(20):
            later()
        swarm.exchange(1, 0.0)
    assert [m.took for m in swarm.entries if m.took is not None] == [(0, 1)]


def test_a_difference_that_is_on_its_way_keeps_the_place() -> None:
    world = _World(null_job(workers=WORKERS, simulation={"network": 0.4}))
    swarm = Swarm(SimulatedBoard(world, SIZE, lambda met: None))
    swarm.exchange(0, 1.0)
    world.now = 0.5
    swarm.exchange(1, 0.0)
    swarm.exchange(0, 1.0)
    assert swarm.entries[-1].back is None
    world.now = 1.0
    swarm.exchange(0, 1.0)
    assert swarm.entries[-1].back == (1, 1, 2)


@pytest.mark.parametrize("way", ["both", "in", "out"])
def test_who_is_cut_off_meets_nobody(way: str) -> None:
    blackout = {"kind": "blackout", "target": "worker-0", "way": way, "at_s": 1.0, "for_s": 1.0}
    simulation = {"network": 0.0, "faults": [blackout]}
    world = _World(null_job(workers=WORKERS, simulation=simulation))
    swarm = Swarm(SimulatedBoard(world, SIZE, lambda met: None))
    swarm.exchange(0, 1.0)
    world.now = 1.5
    swarm.exchange(1, 0.0)
    swarm.exchange(0, 0.0)
    assert all(m.took is None for m in swarm.entries)
    world.now = 2.5
    swarm.exchange(2, 0.0)
    assert swarm.entries[-1].took is not None


# --- processes that are killed -------------------------------------------------------------------


class _Fatal(SharedBoard):
    """Its process dies at one of its calls."""

    fatal = ""

    def _die(self, call: str) -> None:
        if call == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def offered(self, place: int) -> torch.Tensor:
        self._die("before it looks at what is offered")
        return super().offered(place)

    def take(self, place: int, worker: int, at: int) -> None:
        self._die("before it says that it took")
        super().take(place, worker, at)
        self._die("after it said that it took")

    def offer(self, place: int, seq: int, replica: torch.Tensor | None) -> None:
        assert replica is not None
        if self.fatal == "while it writes an offer":
            self._vectors[2 * place][: SIZE // 2] = torch.nan
        self._die("while it writes an offer")
        super().offer(place, seq, replica)


@pytest.mark.parametrize(
    ("fatal", "taken"),
    [
        ("before it looks at what is offered", False),
        ("before it says that it took", False),
        ("after it said that it took", True),
        ("while it writes an offer", True),
    ],
)
def test_a_worker_that_is_killed_at_it_poisons_nobody(
    fatal: str, taken: bool, tmp_path: Path
) -> None:
    make_board(tmp_path, SIZE, WORKERS, WORKERS)
    swarm = Swarm(SharedBoard(tmp_path, SIZE, WORKERS))
    swarm.exchange(0, 8.0)
    child = os.fork()
    if child == 0:
        try:
            board = _Fatal(tmp_path, SIZE, WORKERS)
            board.fatal = fatal
            doomed = Swarm(board)
            doomed.seq = 1
            doomed.exchange(1, 4.0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    # It held places when it died, and they can be held again.
    swarm.seq = 10
    swarm.exchange(0, 0.0)
    assert swarm.entries[-1].back == ((1, 1, 2) if taken else None)
    swarm.exchange(2, 0.0)
    assert swarm.entries[-1].took == (0, 11)
    swarm.restart(1)
    swarm.exchange(1, 0.0)
    assert swarm.entries[-1].took == (2, 12)
    swarm.exchange(0, 0.0)
    assert swarm.entries[-1].took == (1, 13)
    assert all(bool(torch.isfinite(replica).all()) for replica in swarm.replicas)


def test_a_place_that_another_process_holds_is_passed_over(tmp_path: Path) -> None:
    make_board(tmp_path, SIZE, WORKERS, WORKERS)
    swarm = Swarm(SharedBoard(tmp_path, SIZE, WORKERS))
    swarm.exchange(0, 8.0)
    here, there = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(here[1])
            held = SharedBoard(tmp_path, SIZE, WORKERS).hold(0)
            os.write(there[1], b"y" if held else b"n")
            os.read(here[0], 1)
        finally:
            os._exit(0)
    assert os.read(there[0], 1) == b"y"
    swarm.exchange(2, 0.0)
    assert swarm.entries[-1].took is None
    # Its own place is held: it goes on, and what it had offered stays.
    swarm.exchange(0, 0.0)
    assert swarm.entries[-1][-2:] == (None, None)
    assert swarm.board.open(0) == 1
    os.write(here[1], b"x")
    os.waitpid(child, 0)
    swarm.exchange(2, 0.0)
    assert swarm.entries[-1].took == (0, 1)
    swarm.exchange(0, 0.0)
    assert swarm.entries[-1].back == (1, 2, 4)
    for descriptor in (*here, *there):
        os.close(descriptor)


def test_no_board() -> None:
    with pytest.raises(StorageError, match="cannot open shared memory /nowhere/board"):
        SharedBoard(Path("/nowhere"), SIZE, WORKERS)


# --- whose offers come first ---------------------------------------------------------------------


def test_the_order_comes_from_the_seed_and_favours_nobody() -> None:
    assert list(order(1, 2, 3, 6)) == list(order(1, 2, 3, 6))
    assert list(order(1, 0, 5, 1)) == []
    firsts = [0] * 6
    for seq in range(5000):
        found = list(order(1, 2, (7 << 32) + seq, 6))
        assert sorted(found) == [0, 1, 3, 4, 5]
        firsts[found[0]] += 1
    assert firsts[2] == 0
    assert all(900 < count < 1100 for i, count in enumerate(firsts) if i != 2)
    seeds = {tuple(order(seed, 2, 3, 6)) for seed in range(50)}
    workers = {tuple(order(1, worker, 3, 6)) for worker in range(6)}
    assert len(seeds) > 20 and len(workers) == 6


def test_both_sides_come_to_the_mean() -> None:
    mine, theirs = torch.tensor([1.0, 5.0]), torch.tensor([3.0, 1.0])
    difference = torch.empty(2)
    halve(mine, theirs, difference)
    take_up(theirs, difference)
    assert mine.tolist() == theirs.tolist() == [2.0, 3.0]
