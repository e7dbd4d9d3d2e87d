"""How long a member may be silent: learned, within bounds, and patient after a mistake."""

from __future__ import annotations

import random
from collections import deque

from hypothesis import given
from hypothesis import strategies as st
from scheduler_desk import Desk

from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev
from tardygrad.protocol.silence import MARGIN, Silence, SilenceLimits

LIMITS = SilenceLimits(first_s=5.0, least_s=2.0, most_s=20.0)
gaps = st.lists(st.floats(0.0, 100.0), max_size=400)


def silence_of(gaps: list[float]) -> Silence:
    found, now = Silence(), 0.0
    found.heard(now)
    for gap in gaps:
        now += gap
        found.heard(now)
    return found


@given(gaps)
def test_the_limit_lies_between_its_bounds(gaps: list[float]) -> None:
    limit = silence_of(gaps).limit_s(LIMITS)
    if len(gaps) < 8:
        assert limit == LIMITS.first_s
    else:
        assert LIMITS.least_s <= limit <= LIMITS.most_s


@given(st.lists(st.floats(0.0, 6.0), min_size=8, max_size=200))
def test_no_gap_that_was_seen_is_a_death(gaps: list[float]) -> None:
    assert silence_of(gaps).limit_s(LIMITS) >= max(gaps)


@given(gaps, st.floats(0.0, 100.0))
def test_a_longer_gap_never_makes_it_shorter(gaps: list[float], gap: float) -> None:
    before = silence_of(gaps[:150]).limit_s(LIMITS)
    after = silence_of([*gaps[:150], gap]).limit_s(LIMITS)
    assert after >= before or len(gaps) < 8


def test_what_happened_once_is_forgotten() -> None:
    assert silence_of([5.0] + [0.25] * 100).limit_s(LIMITS) == MARGIN * 5.0
    assert silence_of([5.0] + [0.25] * 200).limit_s(LIMITS) == LIMITS.least_s


def test_a_new_process_begins_a_new_series() -> None:
    silence = silence_of([0.25] * 20)
    silence.breaks_off()
    silence.heard(1000.0)
    assert silence.limit_s(LIMITS) == LIMITS.least_s


# --- in the scheduler -------------------------------------------------------------------------

TICK_S = 0.25


class Room(Desk):
    """Two workers and a server whose signs of life come as the test says."""

    def __init__(self) -> None:
        super().__init__(shards=1, silence=LIMITS, restarts=100)
        self.serve()
        self.quiet = {("worker", 0): 0.0, ("worker", 1): 0.0, ("server", 0): 0.0}
        for worker in (0, 1):
            self.do(ev.WorkerReady(worker, 0))

    def step(self, silent: set[tuple[str, int]]) -> list[ef.KillWorker]:
        self.now += TICK_S
        for kind, number in self.quiet:
            if (kind, number) not in silent:
                entries = self.machine.workers if kind == "worker" else self.machine.servers
                at = entries[number].incarnation
                self.do(ev.Heartbeat(kind, number, at, 0))
        self.do(ev.Tick())
        return self.of(ef.KillWorker)

    def until_killed(self, *silent: tuple[str, int]) -> float:
        began = self.now
        while self.now - began < 100.0:
            if self.step(set(silent)):
                return self.now - began
        return float("inf")


def test_who_freezes_on_an_idle_machine_is_found_out_early() -> None:
    room = Room()
    for _ in range(40):
        room.step(set())
    assert LIMITS.least_s < room.until_killed(("worker", 0)) <= LIMITS.least_s + 2 * TICK_S


def test_before_anything_is_known_the_first_limit_holds() -> None:
    room = Room()
    assert LIMITS.first_s < room.until_killed(("worker", 0)) <= LIMITS.first_s + 2 * TICK_S


def test_jitter_and_slow_phases_kill_nobody() -> None:
    """As load comes on gaps grow, and none is more than twice the longest before."""
    rng = random.Random(1)
    room = Room()
    for _ in range(40):
        room.step(set())
    recent = {who: deque([0.9], maxlen=150) for who in room.quiet}
    for _ in range(300):
        who = rng.choice(list(room.quiet))
        steps = int(min(rng.uniform(0, 2 * max(recent[who])), 6.0) / TICK_S)
        for _ in range(steps):
            assert not room.step({who}), (steps, recent[who])
            for other in recent.keys() - {who}:
                recent[other].append(TICK_S)
        assert not room.step(set())
        recent[who].append(steps * TICK_S)


def test_what_all_share_is_nobodys_fault() -> None:
    room = Room()
    for _ in range(40):
        room.step(set())
    everybody = tuple(room.quiet)
    # Only when the longest limit is over is it taken for what it may be.
    assert room.until_killed(*everybody) >= LIMITS.most_s


def test_after_a_false_death_the_next_process_gets_more_time() -> None:
    room = Room()
    for _ in range(40):
        room.step(set())
    first = room.until_killed(("worker", 0))
    incarnation = room.machine.workers[0].incarnation
    room.do(ev.WorkerReady(0, incarnation), after=1.0)
    room.step(set())
    assert room.until_killed(("worker", 0)) >= MARGIN * first - TICK_S
