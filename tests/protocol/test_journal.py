"""Records of the journal, states, and the supervisor's account of what was carried out."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tardygrad.data.fragments import FragmentPlan
from tardygrad.protocol import journal
from tardygrad.protocol.scheduler import Scheduler
from tardygrad.protocol.scheduler_settings import SchedulerSettings
from tardygrad.protocol.silence import SilenceLimits

SETTINGS = SchedulerSettings(
    plan=FragmentPlan(samples=14, batch_size=4, fragment_batches=2, seed=0),
    epochs=1, workers=2, workers_max=4, shards=2, lease_s=1.0, start_s=5.0, stop_s=5.0,
    silence=SilenceLimits(1.0, 1.0, 1.0), put_aside_after=3, resend_s=0.5, restarts=1,
    backoff_s=0.1, backoff_max_s=1.0, checkpoint_every_s=1.0, uses_clocks=False,
)  # fmt: skip
PAYLOADS = st.lists(st.binary(max_size=30), max_size=8)


@given(PAYLOADS)
def test_records_come_through(payloads: list[bytes]) -> None:
    data = b"".join(journal.record(p) for p in payloads)
    found = list(journal.scan(data))
    assert [p for p, _ in found] == payloads
    assert [end for _, end in found][-1:] == [len(data)] * bool(payloads)


@given(PAYLOADS, st.data())
def test_a_torn_tail_is_cut_and_nothing_else(payloads: list[bytes], draw: st.DataObject) -> None:
    data = b"".join(journal.record(p) for p in payloads)
    size = draw.draw(st.integers(0, len(data)))
    found = [p for p, _ in journal.scan(data[:size])]
    assert found == payloads[: len(found)]
    whole = [end for _, end in journal.scan(data) if end <= size]
    assert len(found) == len(whole)


@given(PAYLOADS.filter(bool), st.data())
def test_a_flipped_bit_ends_the_journal_before_it(
    payloads: list[bytes], draw: st.DataObject
) -> None:
    data = bytearray(b"".join(journal.record(p) for p in payloads))
    at = draw.draw(st.integers(0, len(data) - 1))
    data[at] ^= 1 << draw.draw(st.integers(0, 7))
    before = [end for _, end in journal.scan(bytes(data))]
    assert all(end <= at for end in before)
    assert [p for p, _ in journal.scan(data)] == payloads[: len(before)]


@given(st.integers(1, 100))
def test_zeros_are_no_record(count: int) -> None:
    assert not list(journal.scan(bytes(count)))


def test_a_state_is_what_was_frozen_and_the_beginning_is_nothing() -> None:
    machine = Scheduler(SETTINGS)
    machine.reason = "a reason"
    machine.workers[1].deaths = 3
    thawed = journal.thaw(SETTINGS, journal.freeze(machine))
    assert journal.state_of(thawed) == journal.state_of(machine)
    assert journal.state_of(thawed) != journal.state_of(Scheduler(SETTINGS))
    assert journal.state_of(journal.thaw(SETTINGS, b"")) == journal.state_of(Scheduler(SETTINGS))
    # The parts that know each other still do.
    thawed.workers[0].deaths = 7
    assert journal.state_of(thawed) != journal.state_of(machine)
    assert thawed.book is thawed._desk.book


class Stranger:
    pass


@pytest.mark.parametrize("value", [Stranger(), print, pickle.loads, 5])
def test_what_is_no_state_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="not a state of the scheduler"):
        journal.thaw(SETTINGS, pickle.dumps(value))


@given(st.binary(min_size=1, max_size=60))
def test_random_bytes_are_no_state(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a state"):
        journal.thaw(SETTINGS, data)


def test_each_effect_is_carried_out_once_and_entries_are_kept_until_a_base_has_them() -> None:
    entries = journal.Entries()
    for data in (b"1", b"2", b"3", b"4"):
        entries.keep(data)
    assert entries.behind
    assert [entries.takes(n) for n in (1, 2, 1, 2, 3)] == [True, True, False, False, True]
    assert entries.since(3) == [b"4"]
    entries.forget(2)
    assert entries.since(2) == [b"3", b"4"]
    # Who lacks what only the base has cannot be helped; who knows more is of another run.
    assert entries.since(1) is None and entries.since(5) is None
    assert entries.takes(4) and not entries.behind
