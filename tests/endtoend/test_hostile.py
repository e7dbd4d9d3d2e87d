"""A process of the same user, without the run's key, throws what it can at a run that trains."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import socket
import stat
import struct
from pathlib import Path

import pytest
import zmq
from real_runs import (
    SAMPLES,
    assert_exact,
    command,
    events,
    finish,
    leftovers,
    send,
    training,
    wait_until,
)

from tardygrad.engines import seals, wire
from tardygrad.engines.gate import MESSAGE
from tardygrad.engines.seals import Secret
from tardygrad.protocol import events as ev

pytestmark = pytest.mark.slow

ROUNDS = 400
LINGER_MS = 20_000
"""How long a loaded machine may take to read what is thrown."""
DEATH = wire.encode(ev.WorkerLeft(0, 0))
BOOKED = wire.encode(ev.Booked(0, 0, 1, 0, 0))


def _messages(lineage: int) -> list[list[bytes]]:
    """One of every kind that is thrown."""
    guess, elsewhere = Secret.draw(lineage), Secret.draw(lineage + 1)
    sealed = guess.close(seals.TO_MAIN, b"worker-0.0", MESSAGE, DEATH)
    other_version = bytearray(sealed[0])
    other_version[2] = 99
    return [
        [secrets.token_bytes(80)],
        [b""] * 3,
        [b"x"] * 40,
        [MESSAGE, DEATH],
        [MESSAGE, BOOKED],
        sealed,
        guess.close(seals.BEATS, b"server-0.0", wire.encode(ev.Heartbeat("server", 0, 0, 9)), b""),
        [sealed[0][:-3], *sealed[1:]],
        [bytes(other_version), *sealed[1:]],
        elsewhere.close(seals.TO_MAIN, b"worker-0.0", MESSAGE, DEATH),
        [sealed[0], MESSAGE, bytes(1 << 20)],
    ]


def _throw(directory: Path, lineage: int) -> int:
    """Throw ``ROUNDS`` times everything at both sockets; how many messages were whole."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sockets = []
    for name in ("control", "heartbeats"):
        for identity in (b"", b"worker-0.0", b"server-1.0", b"evaluator-0.0"):
            peer = context.socket(zmq.DEALER)
            peer.setsockopt(zmq.LINGER, LINGER_MS)
            peer.setsockopt(zmq.SNDTIMEO, LINGER_MS)
            if identity:
                peer.setsockopt(zmq.IDENTITY, identity)
            peer.connect(f"ipc://{directory / name}")
            sockets.append(peer)
    thrown = 0
    messages = _messages(lineage)
    try:
        for number in range(ROUNDS):
            for at, message in enumerate(messages):
                if len(message[-1]) < 1 << 20 or number % 40 == 0:
                    sockets[(number + at) % len(sockets)].send_multipart(message)
                    thrown += 1
        # Larger than any message may be: its sender loses the connection, and what is queued there.
        sockets.append(context.socket(zmq.DEALER))
        sockets[-1].setsockopt(zmq.LINGER, LINGER_MS)
        sockets[-1].connect(f"ipc://{directory / 'control'}")
        sockets[-1].send_multipart([bytes(seals.MESSAGE_BYTES_MAX + 1)])
    finally:
        for peer in sockets:
            peer.close()
        context.term()
    return thrown


def _throw_raw(directory: Path) -> None:
    for name in ("control", "heartbeats"):
        for _ in range(50):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as raw:
                raw.connect(str(directory / name))
                # Without the first byte it might pass for messages of an old version of ZMTP.
                raw.sendall(b"\xff" + os.urandom(199))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as raw:
        raw.setblocking(False)
        for bell in directory.glob("bell-*"):
            for _ in range(200):
                try:
                    raw.sendto(os.urandom(1000), str(bell))
                except BlockingIOError:
                    break


def _listens(pids: set[int]) -> list[str]:
    """Addresses beyond loopback on which one of these processes listens."""
    inodes = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            # One that was closed since the list was read listens to nobody.
            with contextlib.suppress(FileNotFoundError):
                if found := re.fullmatch(r"socket:\[(\d+)\]", str(entry.readlink())):
                    inodes.add(found[1])
    lines = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    local = struct.pack("=4B", 127, 0, 0, 1)[::-1].hex().upper()
    return [f[1] for f in lines if f[9] in inodes and f[3] == "0A" and not f[1].startswith(local)]


def _refused(run: Path) -> int:
    """How many messages the run's log says were refused so far."""
    told = re.findall(r"(\d+) messages were refused", (run / "events.log").read_text())
    return int(told[-1]) if told else 0


def test_a_run_stands_whatever_is_thrown_at_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = training(run, tmp_path, epochs=1000)
    [directory] = leftovers(process.pid)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    [started] = events(run, "run_start")
    lineage = int(started["run"][:12], 16) << 12
    thrown = _throw(directory, lineage)
    assert thrown > 4000
    _throw_raw(directory)
    assert _listens({process.pid}) == []
    # It stops once nearly all are counted: what is thrown last may be told of 10 s later.
    wait_until(
        lambda: _refused(run) >= 0.9 * thrown or process.poll() is not None,
        "what was thrown is counted",
    )
    assert process.poll() is None, process.communicate()
    send(process.pid, signal.SIGTERM)
    assert finish(process)[0] == 75
    [end] = events(run, "run_end")
    assert 0.9 * thrown <= end["messages_refused"] <= thrown
    log = (run / "events.log").read_text()
    assert re.search(rf"{end['messages_refused']} messages were refused in all", log)
    for reason in (seals.MALFORMED, seals.OTHER_VERSION, seals.OTHER_RUN, seals.WRONG_KEY):
        assert f"a message is refused\t{reason}" in log
    # The log tells of it without growing with it.
    assert log.count("refused") < 40
    # Nobody died of it, nobody was taken for dead.
    died = [e for e in events(run, "member") if e["state"] in ("died", "suspected")]
    assert died == []

    # Not a sample came of it, and none was lost.
    epochs = end["samples"] // SAMPLES + 2
    process = command("train", "--resume", str(run), "--set", f"epochs={epochs}", "--quiet")
    assert finish(process)[0] == 0
    assert_exact(run, epochs=epochs, samples=SAMPLES)
