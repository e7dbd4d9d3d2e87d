"""Messages as bytes: all come through, and nothing else does."""

from __future__ import annotations

from typing import Any, get_type_hints

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tardygrad.engines import wire
from tardygrad.protocol import events as ev

NUMBERS = st.integers(-(2**63), 2**64 - 1)
st.register_type_strategy(int, NUMBERS)
MESSAGES = st.one_of([st.from_type(kind) for kind in ev.MESSAGES])


@given(MESSAGES)
def test_every_message_comes_through(message: Any) -> None:
    found = wire.decode(wire.encode(message))
    # By what they read like: a number that is none is not equal to itself.
    assert repr(found) == repr(message) and type(found) is type(message)


@given(st.binary(max_size=200))
def test_random_bytes_are_no_message(data: bytes) -> None:
    found = wire.decode(data)
    assert found is None or type(found) in ev.MESSAGES
    table = wire.decode_data(data)
    assert table is None or isinstance(table, dict)


@given(MESSAGES, st.data())
def test_truncated_messages_are_none(message: Any, data: st.DataObject) -> None:
    whole = wire.encode(message)
    cut = data.draw(st.integers(0, len(whole) - 1))
    assert wire.decode(whole[:cut]) is None
    assert wire.decode(whole + b"\x00") is None


@given(MESSAGES, st.data())
@settings(max_examples=200)
def test_flipped_bytes_give_a_sound_message_or_none(message: Any, data: st.DataObject) -> None:
    raw = bytearray(wire.encode(message))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] = data.draw(st.integers(0, 255))
    found = wire.decode(bytes(raw))
    if found is not None:
        _assert_sound(found)


def _assert_sound(message: Any) -> None:
    assert type(message) in ev.MESSAGES
    hints = get_type_hints(type(message))
    for name, value in message._asdict().items():
        if hints[name] in (int, float, str, bool):
            assert type(value) is hints[name]
        else:
            assert isinstance(value, tuple)


WRONG = [
    [],
    7,
    {},
    ["Nothing", 1],
    ["BookedSeen"],
    ["BookedSeen", 1, 2],
    ["BookedSeen", "1"],
    ["BookedSeen", True],
    ["BookedSeen", 1.0],
    ["StopAsked", b"bytes"],
    [["BookedSeen"], 1],
    [None, 1],
    ["MembersChanged", 1, 5],
    ["MembersChanged", 1, ["a"]],
    ["Granted", 1, [1, 2, 3]],
    ["Granted", 1, [1, 2, 3, 4, 5, 6, 7, [None]]],
    ["ShardPulled", 1, 2, [3], 4],
    ["Started"],
]


@pytest.mark.parametrize("content", WRONG)
def test_wrong_names_numbers_and_types_are_none(content: Any) -> None:
    assert wire.decode(msgpack.packb(content)) is None


def test_oversized_and_bottomless_messages_are_none() -> None:
    assert wire.decode(wire.encode(ev.StopAsked("x" * (1 << 24)))) is None
    assert wire.decode(b"\x91" * 100_000 + b"\x00") is None
    assert wire.decode_data(b"\x81\xa1a" * 100_000 + b"\x00") is None
    assert wire.decode_data(b"\x80" + b" " * (1 << 24)) is None
    # An array that claims four thousand million entries.
    assert wire.decode(b"\xdd\xff\xff\xff\xff\x01") is None


def test_nothing_is_ever_unpickled() -> None:
    import pickle

    assert wire.decode(pickle.dumps(ev.BookedSeen(1))) is None


# --- what only the scheduler's own process is sent -------------------------------------------

REPORTS = st.one_of(
    [st.from_type(k) for k in (ev.Started, ev.Tick, ev.WorkerDied, ev.ServerDied, ev.Interrupted)]
)


@given(st.integers(0, 2**62), st.floats(0, 1e9), st.one_of(MESSAGES, REPORTS))
def test_every_entry_comes_through(number: int, now: float, event: Any) -> None:
    entry = wire.Entry(number, max(number - 1, 0), now, event)
    found = wire.decode_entry(wire.encode_entry(entry))
    assert repr(found) == repr(entry)


@given(REPORTS)
def test_no_peer_can_send_what_the_engine_reports(report: Any) -> None:
    assert wire.decode(wire.encode(report)) is None


@given(st.binary(max_size=100))
def test_random_bytes_are_no_entry(data: bytes) -> None:
    found = wire.decode_entry(data)
    assert found is None or isinstance(found, wire.Entry)
