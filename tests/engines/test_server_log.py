"""A server's log: whole entries, in order, kept until all who are waited for have them."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tardygrad.engines.server_log import ServerLog, decode, encode
from tardygrad.errors import InvariantViolation
from tardygrad.protocol import events as ev

PUSH = ev.Push(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ((0, 12), (1, 13)), 14, 2)


@pytest.fixture
def log(tmp_path: Path) -> ServerLog:
    made = ServerLog(tmp_path, 0, 2, create=True)
    made.own(0)
    return made


@pytest.mark.parametrize(
    "event",
    [
        PUSH,
        ev.Tick(),
        ev.MembersChanged(3, ((0, 1, 2), (1, 2, 3))),
        ev.SnapshotWritten(1, 2, 3, ("name", 4, "sum"), ""),
        ev.Promoted(7),
    ],
)
def test_an_event_comes_back_as_it_was(event: ev.Event) -> None:
    found = decode(encode(1.25, 2, 1, 99, event))
    assert found == (1.25, 2, 1, 99, event)
    assert type(found[4]) is type(event)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 300_000), min_size=1, max_size=12))
def test_entries_are_read_as_they_were_written(tmp_path: Path, sizes: list[int]) -> None:
    (tmp_path / "log-0").unlink(missing_ok=True)
    writer = ServerLog(tmp_path, 0, 1, create=True)
    writer.own(0)
    reader = ServerLog(tmp_path, 0, 1)
    at = writer.begin(0, 0)
    for number, size in enumerate(sizes):
        data = bytes([number]) * size
        writer.append(data)
        found = reader.read(at)
        assert found is not None and found[0] == data
        at = found[1]
        assert reader.read(at) is None
        reader.handled(0, at)
    assert writer.reached() == writer.head == at


def test_a_server_waits_for_room_until_its_backup_is_out(log: ServerLog) -> None:
    log.begin(0, 5)
    log.append(bytes(1_000_000))
    writer = threading.Thread(target=log.append, args=(bytes(500_000),))
    writer.start()
    time.sleep(0.01)
    assert writer.is_alive()
    log.bar(0, 5)
    writer.join(10)
    assert not writer.is_alive() and not log.followed


def test_who_is_waited_for(log: ServerLog) -> None:
    log.wish(1, 0)
    assert log.wishes() == [(1, 0)]
    begun = log.begin(1, 0)
    assert not log.wishes() and log.followed
    end = log.append(b"x")
    assert log.reached() == begun
    log.handled(1, end)
    assert log.reached() == end
    log.bar(1, 0)
    log.wish(1, 0)
    # One that is out is not waited for again, whatever it wishes; its successor is.
    assert not log.wishes() and not log.followed
    log.wish(1, 1)
    assert log.wishes() == [(1, 1)]


def test_a_server_that_was_replaced_writes_nothing(tmp_path: Path, log: ServerLog) -> None:
    log.append(b"before")
    ServerLog(tmp_path, 0, 2).own(1)
    with pytest.raises(
        InvariantViolation, match="incarnation 0 writes to a log that incarnation 1"
    ):
        log.append(b"after")
