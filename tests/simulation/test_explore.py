"""Every history of small clusters; and machines with a fault in them, which are found out."""

from __future__ import annotations

from typing import Any

import pytest

from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev
from tardygrad.protocol.server import Server
from tardygrad.protocol.workbook import Fragment, WorkBook
from tardygrad.protocol.worker import Worker
from tardygrad.testing.explore import Found, explore, main
from tardygrad.testing.small_states import Machines, Setup

CRASHES = ("worker crash", "server crash")
WHOLE = [
    # Two workers, two shards, three batches; any one misfortune.
    (Setup(), 40_000),
    # A checkpoint on the way, to which a server goes back.
    (Setup(workers=1, batches=2, checkpoints=1, kinds=("loss", "server crash")), 5_000),
    # Two misfortunes, one after the other or one in the other.
    (Setup(workers=1, batches=2, faults=2, kinds=CRASHES), 3_000),
    # Workers that wait for each other.
    (Setup(bound=0, batches=2, fragment_batches=1, kinds=("worker crash",)), 5_000),
    # Every message in any order.
    (Setup(workers=1, batches=2, faults=0, prompt=False), 1_000),
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("setup", "floor"), WHOLE)
def test_no_history_breaks_anything(setup: Setup, floor: int) -> None:
    found = explore(setup)
    print(found.describe())
    assert not found.problem, found.describe()
    assert found.whole and found.states > floor, found.describe()


# --- machines with a fault ------------------------------------------------------------------------


class ForgetsFences(Server):
    """Says where it stands, and lets the old lease go on."""

    def _fence(self, event: ev.FenceAsked, now: float) -> list[ef.Effect]:
        standing = self.ledger.next(event.epoch, event.fragment)
        return [ef.Send(ev.SCHEDULER, ev.Fenced(self.shard, self.incarnation, *event, standing))]


class AppliesTwice(Server):
    """Takes what is booked for new."""

    def _known(self, push: ev.Push, now: float) -> list[ef.Effect]:
        return self._new(push, now)


class ForgetsItsLedger(Server):
    """Keeps parameters, and not what is in them."""

    def _snapshot(self, event: ev.SnapshotAsked, now: float) -> list[ef.Effect]:
        empty: Any = {"consumed": 0, "complete": [], "applied": [], "dropped": [], "entries": []}
        return [
            e._replace(state={**e.state, "ledger": empty}) if isinstance(e, ef.SaveSnapshot) else e
            for e in super()._snapshot(event, now)
        ]


class SaysItOnce(Server):
    """Does not repeat that a fragment is whole."""

    def _tick(self, event: ev.Tick, now: float) -> list[ef.Effect]:
        self._unseen = {}
        return super()._tick(event, now)


class AnswersForAnother(Server):
    """Lets the end of an earlier snapshot stand for the newest one's."""

    def _snapshot_written(self, event: ev.SnapshotWritten, now: float) -> list[ef.Effect]:
        step, self._snapshot_step = self._snapshot_step, event.step
        effects = super()._snapshot_written(event, now)
        self._snapshot_step = step
        return effects


class AsksOnce(Worker):
    """Never asks again for a lease."""

    def _tick(self, event: ev.Tick, now: float) -> list[ef.Effect]:
        return [
            e for e in super()._tick(event, now)
            if not (isinstance(e, ef.Send) and isinstance(e.message, ev.LeaseAsked))
        ]  # fmt: skip


LATE = Setup(faults=2, batches=2, fragment_batches=1, workers=1)
BROKEN = {
    "fences": (Machines(server=ForgetsFences), Setup(kinds=("worker crash",)), "while fragment"),
    "twice": (Machines(server=AppliesTwice), Setup(kinds=("duplicate",)), "counted twice"),
    "ledger": (
        Machines(server=ForgetsItsLedger),
        Setup(workers=1, checkpoints=1, kinds=("server crash",)),
        "counted twice",
    ),
    "once": (Machines(server=SaysItOnce), Setup(kinds=("loss",)), "no history leads to the end"),
    "asks": (Machines(worker=AsksOnce), Setup(kinds=("loss",)), "no history leads to the end"),
    "snapshot": (
        Machines(server=AnswersForAnother),
        LATE._replace(kinds=("loss", "server crash")),
        "no history leads to the end",
    ),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", BROKEN)
def test_a_machine_with_a_fault_is_found_out(name: str) -> None:
    machines, setup, what = BROKEN[name]
    found: Found = explore(setup, machines)
    assert what in found.problem, found.describe()
    # The history can be read: what befell the run, and what it led to.
    text = found.describe()
    print(text)
    assert any(word in text for word in ("killed", "lost", "double"))
    assert f"broken: {found.problem}" in text and len(found.history) < 40


def test_a_book_that_does_not_wait_for_all_shards_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first answer to a fence is taken for all."""
    wait = WorkBook.fenced

    def hurry(self: WorkBook, shard: int, where: Fragment, fence: int, next_batch: int) -> bool:
        entry = self.fencing.get(where)
        if entry is not None and entry.fence == fence:
            for other in list(entry.waiting - {shard}):
                entry.waiting.discard(other)
                entry.nexts[other] = next_batch
        return wait(self, shard, where, fence, next_batch)

    monkeypatch.setattr(WorkBook, "fenced", hurry)
    found = explore(Setup(faults=2, kinds=("worker crash", "delay")), limit=60_000)
    assert found.problem, found.describe()


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--workers", "1", "--faults", "0", "--batches", "2"]) == 0
    assert "nothing is broken, and every state leads to an end" in capsys.readouterr().out
    assert main(["--workers", "2", "--faults", "1", "--limit", "50"]) == 0
    assert "there are more" in capsys.readouterr().out
