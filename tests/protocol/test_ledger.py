"""The ledger against a naive model that remembers every single batch."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tardygrad.data.fragments import FragmentPlan
from tardygrad.protocol.ledger import ACROSS, AHEAD, KNOWN, NEW, Ledger

PLAN = FragmentPlan(samples=41, batch_size=4, fragment_batches=3, seed=0)
EPOCHS = 2

fragments = st.integers(0, PLAN.fragments_per_epoch - 1)
epochs = st.integers(0, EPOCHS - 1)


class LedgerMachine(RuleBasedStateMachine):
    """The model: for each fragment the list of its booked batches, with how each was booked."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(PLAN)
        self.booked: dict[tuple[int, int], list[bool]] = {}
        self.fences: dict[tuple[int, int], int] = {}
        self.snapshots: list[tuple[Any, Any, Any]] = []

    def naive_place(self, epoch: int, fragment: int, first: int, stop: int) -> str:
        there = [b < len(self.booked.get((epoch, fragment), [])) for b in range(first, stop)]
        if all(there):
            return KNOWN
        if any(there):
            return ACROSS
        ahead = first > len(self.booked.get((epoch, fragment), []))
        return AHEAD if ahead else NEW

    @rule(epoch=epochs, fragment=fragments, data=st.data(), applied=st.booleans())
    def push(self, epoch: int, fragment: int, data: st.DataObject, applied: bool) -> None:
        batches = PLAN.batches(fragment)
        first = data.draw(st.integers(0, batches - 1))
        stop = data.draw(st.integers(first + 1, batches))
        place = self.ledger.place(epoch, fragment, first, stop)
        assert place == self.naive_place(epoch, fragment, first, stop)
        if place != NEW:
            return
        where = (epoch, fragment)
        fence = self.fences.get(where, 0) + data.draw(st.integers(0, 2))
        samples = PLAN.samples_in(fragment, first, stop)
        whole = self.ledger.book(epoch, fragment, stop, samples, fence, applied=applied)
        self.fences[where] = fence
        self.booked.setdefault(where, []).extend([applied] * (stop - first))
        assert whole == (stop == batches)

    @rule(epoch=epochs, fragment=fragments, fence=st.integers(0, 9))
    def raise_fence(self, epoch: int, fragment: int, fence: int) -> None:
        self.ledger.raise_fence(epoch, fragment, fence)
        where = (epoch, fragment)
        self.fences[where] = max(self.fences.get(where, 0), fence)

    @rule()
    def snapshot(self) -> None:
        state = json.loads(json.dumps(self.ledger.state()))
        copy = ({k: list(v) for k, v in self.booked.items()}, dict(self.fences))
        self.snapshots.append((state, *copy))

    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        if self.snapshots:
            state, booked, fences = data.draw(st.sampled_from(self.snapshots))
            self.ledger = Ledger.from_state(PLAN, state)
            self.booked = {k: list(v) for k, v in booked.items()}
            self.fences = dict(fences)

    @invariant()
    def standings_agree(self) -> None:
        for epoch in range(EPOCHS):
            for fragment in range(PLAN.fragments_per_epoch):
                done = len(self.booked.get((epoch, fragment), []))
                assert self.ledger.next(epoch, fragment) == done
                assert self.ledger.standing().get((epoch, fragment), 0) == done
                if epoch not in self.ledger.complete():
                    fence = self.fences.get((epoch, fragment), 0)
                    assert self.ledger.fence(epoch, fragment) == fence

    @invariant()
    def the_last_epoch_begun_agrees(self) -> None:
        begun = [epoch + 1 for (epoch, _), batches in self.booked.items() if batches]
        assert self.ledger.epochs_begun == max(begun, default=0)
        whole = [epoch in self.ledger.complete() for epoch in range(EPOCHS)]
        assert self.ledger.epochs_complete == [*whole, False].index(False)

    @invariant()
    def samples_agree(self) -> None:
        total = 0
        for epoch in range(EPOCHS):
            counted = {True: 0, False: 0}
            for (e, fragment), how in self.booked.items():
                for batch, applied in enumerate(how):
                    counted[applied] += (e == epoch) * PLAN.samples_in(fragment, batch, batch + 1)
            state = self.ledger.state()
            assert dict(state["applied"]).get(epoch, 0) == counted[True]
            assert dict(state["dropped"]).get(epoch, 0) == counted[False]
            assert (epoch in self.ledger.complete()) == (sum(counted.values()) == PLAN.samples)
            total += sum(counted.values())
        assert self.ledger.consumed == total

    @invariant()
    def nexts_name_what_is_touched_and_unfinished(self) -> None:
        for epoch, fragment, standing in self.ledger.nexts():
            assert epoch not in self.ledger.complete()
            assert standing == len(self.booked.get((epoch, fragment), []))


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
