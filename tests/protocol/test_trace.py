"""The trace as bytes: what is written is read, what is torn is cut, what is damaged is named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tardygrad.errors import LedgerError
from tardygrad.protocol import trace
from tardygrad.protocol.trace import Encoder, Record, decode_file, file_header, surviving

u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)


@st.composite
def records(draw: st.DrawFn, shards: int) -> Record:
    reads = tuple((draw(u32), draw(u64)) for _ in range(shards))
    return Record(
        draw(st.sampled_from(sorted(trace.KIND_NAMES))), draw(u32), draw(u64), draw(u32),
        draw(u32), draw(u64), draw(u64), draw(u32), draw(u32), draw(u32), draw(u32), draw(u32),
        draw(u64), draw(u64), draw(st.floats(allow_nan=False)), reads,
    )  # fmt: skip


@st.composite
def files(draw: st.DrawFn) -> tuple[int, int, list[Record]]:
    shards = draw(st.integers(1, 3))
    shard = draw(st.integers(0, shards - 1))
    return shard, shards, draw(st.lists(records(shards), min_size=1, max_size=5))


def encoded(shard: int, shards: int, lines: list[Record]) -> bytes:
    encoder = Encoder(shards)
    return file_header(shard, shards) + b"".join(map(encoder.encode, lines))


@given(files())
def test_what_is_written_is_read(file: tuple[int, int, list[Record]]) -> None:
    data = encoded(*file)
    assert decode_file(data, "t") == (*file, len(data))
    shard, shards, lines = file
    assert len(data) == len(file_header(shard, shards)) + len(lines) * trace.record_size(shards)


@given(files(), st.data())
def test_a_torn_tail_is_cut(file: tuple[int, int, list[Record]], data: st.DataObject) -> None:
    shard, shards, lines = file
    whole = encoded(*file)
    size = trace.record_size(shards)
    cut = data.draw(st.integers(len(whole) - size + 1, len(whole) - 1))
    assert decode_file(whole[:cut], "t") == (shard, shards, lines[:-1], len(whole) - size)


@given(files(), st.data())
def test_a_flipped_bit_is_found(file: tuple[int, int, list[Record]], data: st.DataObject) -> None:
    shard, shards, lines = file
    damaged = bytearray(encoded(*file))
    header, size = len(file_header(shard, shards)), trace.record_size(shards)
    at = data.draw(st.integers(header, len(damaged) - 1))
    damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    number = (at - header) // size
    if number == len(lines) - 1:
        assert decode_file(bytes(damaged), "t") == (
            shard,
            shards,
            lines[:-1],
            header + number * size,
        )
    else:
        with pytest.raises(LedgerError, match=f"byte {header + number * size} is damaged"):
            decode_file(bytes(damaged), "t")


@pytest.mark.parametrize("data", [b"", b"tardytr", b"something else entirely"])
def test_another_file_is_no_trace(data: bytes) -> None:
    with pytest.raises(LedgerError, match=r"x\.trace is not a trace file"):
        decode_file(data, "x.trace")


def line(kind: int, version: int, seq: int = 0) -> Record:
    return Record(kind, 0, version, seq=seq)


def versions(lines: list[Record]) -> list[int]:
    return [r.version for r in surviving(lines)]


def test_a_restoration_takes_back_what_came_after_its_snapshot() -> None:
    history = [
        line(trace.APPLIED, 1),
        line(trace.SNAPSHOT, 1, seq=1),
        line(trace.DUPLICATE, 1),
        line(trace.APPLIED, 2),
        line(trace.DROPPED, 2),
        line(trace.SNAPSHOT, 2, seq=2),
        line(trace.APPLIED, 3),
    ]
    assert versions(history) == [1, 2, 2, 3]
    assert versions([*history, line(trace.RESTORED, 2, seq=2)]) == [1, 2, 2]
    assert versions([*history, line(trace.RESTORED, 1, seq=1)]) == [1]
    assert versions([*history, line(trace.RESTORED, 0, seq=0)]) == []


def test_restored_twice_and_gone_on() -> None:
    history = [
        line(trace.APPLIED, 1),
        line(trace.SNAPSHOT, 1, seq=4),
        line(trace.APPLIED, 2),
        line(trace.RESTORED, 1, seq=4),
        line(trace.APPLIED, 2),
        line(trace.APPLIED, 3),
        line(trace.RESTORED, 1, seq=4),
        line(trace.REFUSED, 1),
        line(trace.APPLIED, 2),
        line(trace.SNAPSHOT, 2, seq=7),
    ]
    assert versions(history) == [1, 2]
    assert versions([*history, line(trace.RESTORED, 2, seq=7), line(trace.APPLIED, 3)]) == [1, 2, 3]


def test_a_restoration_of_an_unknown_snapshot_is_an_incomplete_trace() -> None:
    with pytest.raises(LedgerError, match="restores snapshot 3, which it never recorded"):
        surviving([line(trace.APPLIED, 1), line(trace.RESTORED, 1, seq=3)])


def test_a_checkpoint_that_became_visible_late() -> None:
    """The shard goes back to snapshot 1, and when that life ends to 2, taken in the life before."""
    history = [
        line(trace.APPLIED, 1),
        line(trace.SNAPSHOT, 1, seq=1),
        line(trace.APPLIED, 2),
        line(trace.APPLIED, 3),
        line(trace.SNAPSHOT, 3, seq=2),
        line(trace.RESTORED, 1, seq=1),
        line(trace.APPLIED, 20),
        line(trace.RESTORED, 3, seq=2),
        line(trace.APPLIED, 4),
    ]
    assert versions(history) == [1, 2, 3, 4]
    assert versions([*history, line(trace.RESTORED, 1, seq=1)]) == [1]


@given(st.lists(st.sampled_from("aasr"), max_size=30), st.data())
def test_surviving_is_what_a_copy_of_each_state_says(
    script: list[str], data: st.DataObject
) -> None:
    history: list[Record] = []
    state: list[int] = []
    saved: dict[int, list[int]] = {0: []}
    for number, what in enumerate(script, 1):
        if what == "a":
            history.append(line(trace.APPLIED, number))
            state.append(number)
        elif what == "s":
            history.append(line(trace.SNAPSHOT, number, seq=number))
            saved[number] = list(state)
        else:
            step = data.draw(st.sampled_from(sorted(saved)))
            history.append(line(trace.RESTORED, number, seq=step))
            state = list(saved[step])
    assert versions(history) == state
