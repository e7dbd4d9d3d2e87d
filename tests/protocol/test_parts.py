"""Parts of a group's sum at the server: all are booked, or all are refused."""

from __future__ import annotations

from typing import Any

from tardygrad.admission import Quorum
from tardygrad.consistency import ASP
from tardygrad.data.fragments import FragmentPlan
from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev
from tardygrad.protocol import trace
from tardygrad.protocol.invariants import Auditor
from tardygrad.protocol.server import Server, ServerSettings
from tardygrad.staleness import CutOff

PLAN = FragmentPlan(samples=46, batch_size=4, fragment_batches=4, seed=0)
RANKS = 2
GENERATION = 3


class Bench:
    """A server of a group of two, whose records an auditor follows."""

    def __init__(self, *members: int) -> None:
        settings = ServerSettings(
            lineage=7, plan=PLAN, workers=3, staleness=CutOff(below=1, again=True),
            consistency=ASP(), admission=Quorum(), resend_s=1.0,
        )  # fmt: skip
        self.machine = Server(0, settings)
        self.auditor = Auditor(PLAN, 1, limit=1)
        self.effects: list[ef.Effect] = []
        self.members(1, *(members or (0, 1)))

    def do(self, event: ev.Event) -> list[ef.Effect]:
        self.effects = self.machine.handle(event, 0.0)
        for effect in self.effects:
            if isinstance(effect, ef.Include | ef.Gather | ef.Commit | ef.Log):
                self.auditor.feed(0, effect.record)
        return self.effects

    def members(self, generation: int, *workers: int) -> None:
        self.do(ev.MembersChanged(generation, tuple((w, 10 + w, 0) for w in workers)))

    def kinds(self) -> list[str]:
        """The records that were written, in order."""
        return [trace.KIND_NAMES[e.record.kind] for e in self.effects if hasattr(e, "record")]

    def answers(self) -> dict[int, str]:
        """What each worker was answered."""
        return {
            e.to[1]: e.message.outcome
            for e in self.effects
            if isinstance(e, ef.Send) and isinstance(e.message, ev.Acked)
        }


def part(worker: int, first: int = 0, version: int = 0, **changes: Any) -> ev.Push:
    made = ev.Push(
        7, worker=worker, session=10 + worker, seq=5 + first, fence=20 + worker, epoch=0,
        fragment=worker, first=first, stop=first + 1, samples=4, clock=0, reads=((0, version),),
        generation=GENERATION, ranks=RANKS,
    )  # fmt: skip
    return made._replace(**changes)


def test_parts_wait_for_each_other_and_are_booked_together() -> None:
    bench = Bench()
    assert bench.do(part(1)) == []
    bench.do(part(0))
    assert bench.kinds() == ["included", "gathered", "committed"]
    assert bench.answers() == {0: ev.APPLIED, 1: ev.APPLIED}
    [gather] = [e for e in bench.effects if isinstance(e, ef.Gather)]
    assert gather.push.worker == 0 and gather.weight == 8.0
    assert bench.machine.version == 1
    bench.do(part(0, 1, version=1))
    bench.do(part(1, 1, version=1))
    assert bench.machine.version == 2 and bench.machine.ledger.consumed == 16


def test_what_comes_again_is_known_before_and_after() -> None:
    bench = Bench()
    bench.do(part(1))
    assert bench.do(part(1)) == []
    bench.do(part(0))
    bench.do(part(1))
    assert bench.answers() == {1: ev.APPLIED}
    assert bench.machine.ledger.consumed == 8


def test_the_end_of_the_group_frees_those_that_wait() -> None:
    bench = Bench()
    bench.do(part(1))
    bench.members(2, 2)
    assert bench.answers() == {1: ev.REFUSED}
    # And nothing more of that group is taken in.
    bench.do(part(1, seq=9))
    assert bench.answers() == {1: ev.REFUSED}
    assert bench.machine.ledger.consumed == 0


def test_who_is_no_member_is_refused_and_its_group_with_it() -> None:
    bench = Bench(1)
    bench.do(part(1))
    bench.do(part(0))
    assert bench.answers() == {0: ev.REFUSED, 1: ev.REFUSED}


def test_one_part_that_is_booked_already_refuses_the_others() -> None:
    bench = Bench()
    bench.do(part(0, generation=0, ranks=1))
    bench.do(part(1, generation=0, ranks=1))
    assert bench.machine.version == 1
    bench.do(part(1, 1, version=1))
    bench.do(part(0, seq=77, version=1))
    assert bench.answers() == {0: ev.DUPLICATE, 1: ev.REFUSED}


def test_a_fence_that_rises_while_a_part_waits_refuses_all() -> None:
    bench = Bench()
    bench.do(part(1))
    bench.do(ev.FenceAsked(0, 1, 50))
    bench.do(part(0))
    assert bench.answers() == {0: ev.REFUSED, 1: ev.REFUSED}
    assert bench.machine.ledger.consumed == 0


def test_a_part_at_old_parameters_is_computed_again_and_the_others_refused() -> None:
    bench = Bench(0, 1, 2)
    bench.do(part(1))
    # A worker that trains for itself: its round waits for the two, which it makes too old.
    for worker in (0, 1, 2):
        bench.do(part(worker, fragment=2, first=worker, generation=0, ranks=1, seq=1))
    assert bench.machine.version == 1
    bench.do(part(0))
    assert bench.answers() == {0: ev.AGAIN, 1: ev.REFUSED}


def test_a_newer_group_ends_what_waits_of_an_older_one() -> None:
    bench = Bench()
    bench.do(part(1))
    bench.do(part(0, generation=GENERATION + 1))
    assert bench.answers() == {1: ev.REFUSED}
    bench.do(part(1, seq=8, generation=GENERATION + 1))
    assert bench.answers() == {0: ev.APPLIED, 1: ev.APPLIED}
    bench.do(part(0, 1, version=1))
    assert bench.answers() == {0: ev.REFUSED}


def test_a_sum_shares_its_round_with_nobody() -> None:
    # Its ranks may have taken the step themselves, with nothing else in it.
    bench = Bench(0, 1, 2)
    bench.do(part(2, generation=0, ranks=1, samples=4))
    bench.do(part(1))
    bench.do(part(0))
    assert bench.answers() == {0: ev.REFUSED, 1: ev.REFUSED}
    assert bench.machine.ledger.consumed == 4
