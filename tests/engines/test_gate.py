"""The main process's sockets: who is let in, who is not, and where answers go."""

from __future__ import annotations

import itertools
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from tardygrad.engines import seals, wire
from tardygrad.engines.child import Link
from tardygrad.engines.gate import FAILURE, MESSAGE, Gate, Letter, packed
from tardygrad.engines.seals import Secret
from tardygrad.protocol import events as ev
from tardygrad.testing.simulation import SilentObserver

PATIENCE_S = 30.0
SECRET = Secret.draw(5)


@pytest.fixture
def observer() -> SilentObserver:
    return SilentObserver()


@pytest.fixture
def gate(tmp_path: Path, observer: SilentObserver) -> Iterator[Gate]:
    made = Gate(tmp_path, SECRET, observer.decided)
    yield made
    made.close()


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    made: zmq.Context[Any] = zmq.Context()
    yield made
    made.destroy(linger=0)


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Link]]:
    monkeypatch.setattr(seals, "_inherited", SECRET)
    made = [Link(tmp_path, "worker", n, incarnation) for n, incarnation in ((0, 0), (1, 3))]
    yield made
    for link in made:
        link.close()


def intruder(context: zmq.Context[Any], gate: Gate, name: bytes = b"") -> zmq.Socket[Any]:
    peer = context.socket(zmq.DEALER)
    if name:
        peer.setsockopt(zmq.IDENTITY, name)
    peer.connect(gate.control.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0").decode())
    return peer


def letters(gate: Gate, count: int) -> list[Letter]:
    found: list[Letter] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(found) < count:
        assert time.monotonic() < deadline, found
        found += gate.letters()
        time.sleep(0.001)
    return found


def refuses(gate: Gate, count: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while gate.refused.total() < count:
        assert time.monotonic() < deadline, gate.refused
        assert list(gate.letters()) == []
        time.sleep(0.001)


def test_children_are_heard_and_answered(gate: Gate, links: list[Link]) -> None:
    links[0].send(ev.WorkerReady(0, 0))
    links[1].send_data(FAILURE, {"reason": "no", "fatal": True})
    found = sorted(letters(gate, 2))
    assert found[0] == Letter(("worker", 0), 0, MESSAGE, ev.WorkerReady(0, 0))
    assert found[1] == Letter(("worker", 1), 3, FAILURE, {"reason": "no", "fatal": True})
    gate.send(("worker", 1), 2, b"for an earlier process, which is not there")
    gate.send(("worker", 2), 0, b"for one that has not spoken")
    gate.send(("worker", 1), 3, wire.encode(ev.StopAsked("why")))
    deadline = time.monotonic() + PATIENCE_S
    while not (heard := links[1].receive()):
        assert time.monotonic() < deadline
    assert heard == [ev.StopAsked("why")] and links[0].receive() == []
    gate.send(("worker", 0), 0, packed({"epoch": 3}))
    assert links[0].receive_data() == {"epoch": 3}
    assert gate.refused.total() == 0


def test_everything_else_is_refused_and_counted(
    gate: Gate, context: zmq.Context[Any], observer: SilentObserver
) -> None:
    way, name, data = seals.TO_MAIN, b"worker-0.0", wire.encode(ev.WorkerReady(0, 0))
    nobody = Secret.draw(SECRET.lineage)
    cases = {
        seals.MALFORMED: [[b""], [b"\x00" * 64], [b"x" * 40, b"m", data], [b"m"] * 5, [b"m"] * 500],
        seals.WRONG_KEY: [
            nobody.close(way, name, MESSAGE, data),
            SECRET.close(seals.BEATS, name, MESSAGE, data),
            [*SECRET.close(way, name, MESSAGE, data)[:-1], data[:-1]],
        ],
        seals.OTHER_RUN: [Secret(SECRET.key, 6).close(way, name, MESSAGE, data)],
        seals.UNDECODABLE: [
            SECRET.close(way, name, MESSAGE, b"\xff\xff"),
            SECRET.close(way, name, b"?", data),
            SECRET.close(way, name, FAILURE, msgpack.packb([1])),
            SECRET.close(way, name, data),
        ],
        seals.STRANGER: [
            SECRET.close(way, b"worker-x.0", MESSAGE, data),
            SECRET.close(way, b"\xff\xfe", MESSAGE, data),
        ],
    }
    peer = intruder(context, gate)
    for message in itertools.chain(*cases.values()):
        peer.send_multipart(message)
    refuses(gate, sum(map(len, cases.values())))
    assert gate.refused == {reason: len(messages) for reason, messages in cases.items()}
    # The first of each reason, and the sum when it is time.
    assert [d for d, _ in observer.decisions] == ["a message is refused"] * len(cases)
    gate.tell(100.0)
    gate.tell(101.0)
    gate.tell(101.0, end=True)
    total = gate.refused.total()
    told = [f"{total} messages were refused so far", f"{total} messages were refused in all"]
    assert [d for d, _ in observer.decisions[len(cases) :]] == told
    assert f"3 {seals.WRONG_KEY}" in observer.decisions[-1][1]


def test_signs_of_life_must_be_their_senders_own(gate: Gate, context: zmq.Context[Any]) -> None:
    peer = context.socket(zmq.DEALER)
    peer.connect(gate.heartbeats.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0").decode())
    beat = wire.encode(ev.Heartbeat("worker", 0, 4, 17))
    for name in (b"worker-0.5", b"worker-1.4", b"server-0.4", b"worker-0.4"):
        peer.send_multipart(SECRET.close(seals.BEATS, name, beat, packed({"steps": 17})))
    peer.send_multipart(SECRET.close(seals.BEATS, b"worker-0.4", packed({}), beat))
    found = []
    deadline = time.monotonic() + PATIENCE_S
    while gate.refused.total() < 4 or not found:
        assert time.monotonic() < deadline
        found += gate.beats()
    assert [f.beat for f in found] == [ev.Heartbeat("worker", 0, 4, 17)]
    assert gate.refused == {seals.STRANGER: 3, seals.UNDECODABLE: 1}


def test_who_calls_itself_a_child_takes_nothing_from_it(
    gate: Gate, links: list[Link], context: zmq.Context[Any]
) -> None:
    links[0].send(ev.WorkerReady(0, 0))
    letters(gate, 1)
    thief = intruder(context, gate, b"worker-0.0")
    thief.send_multipart(
        Secret.draw(5).close(seals.TO_MAIN, b"worker-0.0", MESSAGE, wire.encode(ev.Tick()))
    )
    refuses(gate, 1)
    gate.send(("worker", 0), 0, wire.encode(ev.StopAsked("why")))
    deadline = time.monotonic() + PATIENCE_S
    while not (heard := links[0].receive()):
        assert time.monotonic() < deadline
    assert heard == [ev.StopAsked("why")]
    assert not thief.poll(50)


def test_a_huge_frame_costs_its_sender_the_connection(
    gate: Gate, links: list[Link], context: zmq.Context[Any]
) -> None:
    monster = intruder(context, gate)
    monster.send_multipart([b"x" * (seals.MESSAGE_BYTES_MAX + 1)])
    links[0].send(ev.WorkerReady(0, 0))
    assert len(letters(gate, 1)) == 1
    assert gate.refused.total() == 0


def test_who_has_only_come_up_can_be_told(gate: Gate, links: list[Link]) -> None:
    """A backup gives signs of life on the other socket, and must hear of its promotion."""
    links[1].become("server", 2, 4)
    deadline = time.monotonic() + PATIENCE_S
    for link, address, incarnation in ((links[0], ("worker", 0), 0), (links[1], ("server", 2), 4)):
        while not gate.send(address, incarnation, wire.encode(ev.Promoted(7))):
            assert time.monotonic() < deadline
            assert list(gate.letters()) == []
        while not (heard := link.receive()):
            assert time.monotonic() < deadline
        assert heard == [ev.Promoted(7)]


def test_what_is_not_even_of_the_transport_does_no_harm(gate: Gate, links: list[Link]) -> None:
    path = gate.control.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0").decode().removeprefix("ipc://")
    assert stat.S_ISSOCK(Path(path).stat().st_mode)
    for junk in (b"", b"\x00", b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), b"\xff" * 10 + b"\x7f"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as raw:
            raw.connect(path)
            raw.sendall(junk)
    links[0].send(ev.WorkerReady(0, 0))
    assert len(letters(gate, 1)) == 1
