"""The tables of states: whole, reachable, and the only way from state to state."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import tardygrad.protocol
from tardygrad.data.fragments import FragmentPlan
from tardygrad.errors import InvariantViolation
from tardygrad.protocol import membership, scheduler, states, workbook, worker
from tardygrad.protocol.states import LIVES, Life


@pytest.mark.parametrize("life", LIVES, ids=lambda life: life.name)
def test_every_state_is_reached(life: Life) -> None:
    reached, queue = {life.start}, [life.start]
    while queue:
        state = queue.pop()
        new = {row.next for row in life.rows if row.state == state} - reached
        reached |= new
        queue += new
    assert reached == set(life.states())


def test_the_machines_know_the_same_names() -> None:
    s, w, m, b = scheduler, worker, membership, workbook
    assert set(states.RUN.states()) == {s.STARTING, s.RUNNING, s.STOPPING, s.SAVING, s.OVER}
    of_worker = {w.IDLE, w.PULLING, w.COMPUTING, w.JOINING, w.REDUCING, w.HOLDING, w.GONE}
    assert set(states.WORKER.states()) == of_worker
    assert set(states.SLOT.states()) == {m.STARTING, m.READY, m.DEAD, m.LEFT, m.PUT_ASIDE}
    assert set(states.SHARD.states()) == {m.STARTING, m.READY}
    assert set(states.FRAGMENT.states()) == {b.FRESH, b.LEASED, b.FENCING, b.PENDING, b.DONE}


def test_what_has_no_row_is_an_error_that_says_what_has() -> None:
    with pytest.raises(InvariantViolation, match=r"that is 'done' met 'leased'.*lacking"):
        states.FRAGMENT.after("done", "leased")
    with pytest.raises(InvariantViolation, match=r"'over' met 'serves'.*nothing any more"):
        states.RUN.after("over", "serves")


def test_a_machine_in_a_wrong_state_says_so() -> None:
    entry = membership.WorkerEntry(0, 0)
    entry.turn("dies")
    with pytest.raises(InvariantViolation, match="worker's slot that is 'dead' met 'ready'"):
        entry.turn("ready")
    book = workbook.WorkBook(
        FragmentPlan(samples=8, batch_size=1, fragment_batches=4, seed=0), 1, 1, 1
    )
    lease = book.grant(0, 1)
    assert lease is not None and book.state((0, 0)) == workbook.LEASED
    book.check()
    book._books[0].states[0] = workbook.PENDING
    with pytest.raises(InvariantViolation, match="the fragments are"):
        book.check()


def test_no_machine_sets_a_state_by_hand() -> None:
    for path in sorted(Path(tardygrad.protocol.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Assign):
                continue
            for target in node.targets:
                if isinstance(target, ast.Attribute) and target.attr in ("phase", "state"):
                    value = ast.unparse(node.value)
                    assert ".after(" in value or value.endswith(".start"), f"{path.name}: {value}"
