"""How a running run is asked about its workers, and for more of them or fewer.

Theory of operation. The main process listens on a socket of its own in the run's runtime
directory, which only its owner may enter; requests and answers are msgpack tables, and nothing that
comes in is executed. Whoever asks knows the run's directory on disk, which names the run; the
runtime directory that says it serves this run, and whose main process lives, is the one. So nothing
that a dead run has left can mislead.

The desk answers questions at once, from what the run counts anyway. Wishes go to the scheduler, and
its answer travels back under the number of the wish.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgpack
import zmq

from tardygrad.engines import runtime_directory, wire
from tardygrad.engines.statistics import RunStatistics
from tardygrad.errors import RunDirectoryError, StorageError, UsageError
from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev

_SOCKET = "operator"
_RUN = "run.json"
_PATIENCE_S = 10.0
_REQUEST_BYTES_MAX = 1 << 12


def check_change(add: int, remove: int) -> None:
    """See that a wish for more workers or fewer makes sense.

    Raises:
        UsageError: it does not.
    """
    for name, value in (("add", add), ("remove", remove)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise UsageError(f"{name} is {value!r}; expected a number of workers, 0 or more")


class OperatorDesk:
    """The main process's side.

    Args:
        run: the run's id.
        directory: the runtime directory.
        make_room: reserves memory for so many workers; raises ``StorageError`` if there is none.
        statistics: knows the states of all workers.
    """

    def __init__(
        self, run: str, directory: Path, make_room: Callable[[int], None],
        statistics: RunStatistics,
    ) -> None:  # fmt: skip
        self._make_room, self._statistics = make_room, statistics
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 1000)
        self.socket.setsockopt(zmq.MAXMSGSIZE, _REQUEST_BYTES_MAX)
        self.socket.bind(f"ipc://{directory / _SOCKET}")
        (directory / _RUN).write_text(json.dumps({"run": run}))
        self._askers: dict[int, bytes] = {}
        self._number = 0

    def wishes(
        self, own: Iterable[tuple[int, int]], speeds: Mapping[int, float]
    ) -> Iterator[ev.CrewWanted]:
        """What the scheduler is to hear of; all else that has come is answered.

        Args:
            own: wishes of this process, as (add, remove); nobody waits for their answers.
            speeds: of each worker, in samples/s.
        """
        for add, remove in own:
            if self._has_room(wish := ev.CrewWanted(0, add, remove)):
                yield wish
        while (frames := self._next()) is not None:
            request = wire.decode_data(frames[1]) if len(frames) == 2 else None
            if request == {"ask": "workers"}:
                self._answer(frames[0], {"workers": self._statistics.rows(speeds)})
            elif request is not None:
                asked = self._wish(frames[0], request)
                if asked is not None and self._has_room(asked):
                    yield asked

    def _next(self) -> list[bytes] | None:
        try:
            return self.socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None

    def _wish(self, asker: bytes, request: dict[str, Any]) -> ev.CrewWanted | None:
        try:
            add, remove = request["add"], request["remove"]
            check_change(add, remove)
        except (KeyError, UsageError) as error:
            self._answer(asker, {"refused": f"the request is none: {error}"})
            return None
        self._number += 1
        self._askers[self._number] = asker
        return ev.CrewWanted(self._number, add, remove)

    def _has_room(self, wish: ev.CrewWanted) -> bool:
        """Reserve memory for those who join; without it the wish is refused."""
        try:
            self._make_room(self._statistics.places + wish.add)
        except StorageError as error:
            self.answered(ef.CrewAnswered(wish.number, (), (), str(error)))
            return False
        return True

    def answered(self, effect: ef.CrewAnswered) -> None:
        """The scheduler has answered a wish; somebody waits to hear of it, or (0) nobody does."""
        asker = self._askers.pop(effect.number, None)
        if asker is not None:
            self._answer(asker, effect._asdict())

    def _answer(self, asker: bytes, answer: dict[str, Any]) -> None:
        self.socket.send_multipart([asker, msgpack.packb(answer)])

    def close(self) -> None:
        """Nobody is answered any more."""
        self.socket.close()
        self._context.term()


def ask(run: Path, name: str, request: dict[str, Any]) -> dict[str, Any]:
    """The answer of a running run's main process.

    Args:
        run: the run's directory, for messages.
        name: the run's id.
        request: a table that the desk understands.

    Raises:
        RunDirectoryError: the run is not running on this machine, or its main process is busy with
            something else for too long.
    """
    directory = _serving(name)
    if directory is None:
        raise RunDirectoryError(
            f"{run} is not running on this machine; 'tardygrad train --resume {run}' goes on with "
            "it, and its workers can then be changed"
        )
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    try:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(f"ipc://{directory / _SOCKET}")
        socket.send(msgpack.packb(request))
        answer = None
        if socket.poll(round(1000 * _PATIENCE_S)):
            answer = wire.decode_data(socket.recv())
    finally:
        socket.close()
        context.term()
    if answer is None:
        raise RunDirectoryError(
            f"{run} did not answer within {_PATIENCE_S:g} s; it has just ended, or its main "
            "process or its scheduler is away, and the wish may still be carried out: look with "
            "'tardygrad workers' first (a callback asks with self.change_workers, without waiting)"
        )
    return answer


def _serving(name: str) -> Path | None:
    """The runtime directory of a run that lives, or None."""
    for directory in runtime_directory.living():
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            told = json.loads((directory / _RUN).read_text())["run"]
            if told == name and os.access(directory / _SOCKET, os.W_OK):
                return directory
    return None
