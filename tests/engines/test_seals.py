"""Seals: what is ours opens, and nothing else does, whatever is done to it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tardygrad.engines import seals
from tardygrad.engines.seals import Refused, Secret

OURS = Secret(bytes(range(32)), 7 << 50)
WAYS = st.sampled_from((seals.TO_MAIN, seals.BEATS, seals.TO_CHILD))
FRAMES = st.lists(st.binary(max_size=60), min_size=1, max_size=2)
NAMES = st.binary(max_size=20)


def why(secret: Secret, way: bytes, message: list[bytes]) -> str:
    with pytest.raises(Refused) as caught:
        secret.open(way, message)
    assert caught.value.reason in seals.REASONS
    return caught.value.reason


@given(WAYS, NAMES, FRAMES)
def test_what_is_sealed_opens(way: bytes, name: bytes, frames: list[bytes]) -> None:
    assert OURS.open(way, OURS.close(way, name, *frames)) == (name, frames)


@given(WAYS, st.lists(st.binary(max_size=120), max_size=5))
def test_random_frames_are_refused(way: bytes, message: list[bytes]) -> None:
    why(OURS, way, message)


@given(WAYS, NAMES, FRAMES, st.data())
def test_a_changed_message_is_refused(
    way: bytes, name: bytes, frames: list[bytes], data: st.DataObject
) -> None:
    message = OURS.close(way, name, *frames)
    at = data.draw(st.integers(0, len(message) - 1))
    kind = data.draw(st.sampled_from(("flip", "cut", "longer", "drop", "again", "swap")))
    frame = bytearray(message[at])
    if kind == "flip" and frame:
        frame[data.draw(st.integers(0, len(frame) - 1))] ^= data.draw(st.integers(1, 255))
    elif kind == "cut" and frame:
        del frame[data.draw(st.integers(0, len(frame) - 1)) :]
    elif kind == "longer":
        frame += b"\x00"
    changed = [*message[:at], bytes(frame), *message[at + 1 :]]
    if kind == "drop":
        del changed[at]
    elif kind == "again":
        changed.insert(at, changed[at])
    elif kind == "swap":
        changed.reverse()
    if changed != message:
        why(OURS, way, changed)


@given(WAYS, WAYS, NAMES, FRAMES)
def test_a_message_is_not_turned_around(
    way: bytes, other: bytes, name: bytes, frames: list[bytes]
) -> None:
    if way != other:
        assert why(OURS, other, OURS.close(way, name, *frames)) == seals.WRONG_KEY


def test_nothing_moves_between_the_parts_of_a_message() -> None:
    # Equal bytes, cut elsewhere.
    seal, first, second = OURS.close(seals.TO_MAIN, b"worker-1.0", b"ab", b"cd")
    assert why(OURS, seals.TO_MAIN, [seal, first + b"c", b"d"]) == seals.WRONG_KEY
    assert why(OURS, seals.TO_MAIN, [seal[:-1], b"0" + first, second]) == seals.WRONG_KEY


def test_each_refusal_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    way, frames = seals.TO_MAIN, (b"m", b"data")
    stranger = Secret.draw(OURS.lineage)
    assert why(OURS, way, stranger.close(way, b"worker-0.0", *frames)) == seals.WRONG_KEY
    elsewhere = Secret(OURS.key, OURS.lineage + 1)
    assert why(OURS, way, elsewhere.close(way, b"worker-0.0", *frames)) == seals.OTHER_RUN
    large = OURS.close(way, b"worker-0.0", b"m", bytes(seals.MESSAGE_BYTES_MAX))
    assert why(OURS, way, large) == seals.TOO_LARGE
    assert why(OURS, way, []) == why(OURS, way, [b"m", b""]) == seals.MALFORMED
    assert why(OURS, way, OURS.close(way, b"n" * 65, *frames)) == seals.MALFORMED
    monkeypatch.setattr(seals, "VERSION", seals.VERSION + 1)
    newer = OURS.close(way, b"worker-0.0", *frames)
    monkeypatch.undo()
    assert why(OURS, way, newer) == seals.OTHER_VERSION


def test_each_run_has_its_own_key() -> None:
    assert Secret.draw(1).key != Secret.draw(1).key
    assert len(Secret.draw(1).key) == seals.KEY_BYTES
