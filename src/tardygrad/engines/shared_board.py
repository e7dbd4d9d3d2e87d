"""The board on which worker processes of one host meet, in shared memory.

Theory of operation. One file: a line of words for each place, then for each place two vectors, the
offer and the difference. Whoever holds a place has locked its byte of a second file. The kernel
takes the lock back when its owner dies, whatever it was at; so a place is never held by the dead,
and what a killed worker has left half written is no offer (``peers``).
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import numpy as np
import torch

from tardygrad.engines.mapped import map_file
from tardygrad.engines.runtime_directory import Piece, reserve, reserve_more
from tardygrad.engines.shared_memory import fence
from tardygrad.errors import StorageError

_LINE = 64
_WORDS = _LINE // 8
_OPEN, _TAKEN, _TAKER, _AT = range(4)
_BOARD, _LOCKS = "board", "board-locks"


def make_board(directory: Path, parameters: int, workers: int, workers_max: int) -> None:
    """Make the files of a board: ``workers_max`` places for vectors of ``parameters`` floats.

    Raises:
        StorageError: there is no room for those of ``workers``.
    """
    path, size = directory / _BOARD, _size(parameters, workers_max)
    os.close(reserve(path, size, _pieces(parameters, workers, workers_max)))
    (directory / _LOCKS).touch(mode=0o600)


def make_room(directory: Path, parameters: int, workers: int, workers_max: int) -> None:
    """Reserve the places of so many workers.

    Raises:
        StorageError: there is no room.
    """
    reserve_more(directory / _BOARD, _pieces(parameters, workers, workers_max))


def _stride(parameters: int) -> int:
    return -(-4 * parameters // _LINE) * _LINE


def _pieces(parameters: int, workers: int, workers_max: int) -> list[Piece]:
    begin = workers_max * _LINE
    return [(0, begin), (begin, 2 * workers * _stride(parameters))]


def _size(parameters: int, workers: int) -> int:
    return workers * (_LINE + 2 * _stride(parameters))


class SharedBoard:
    """A process's view of the board.

    Args:
        directory: the run's runtime directory.
        parameters: floats of a replica.
        workers: number of places, those of workers who may join included.

    Raises:
        StorageError: the files are not there.
    """

    def __init__(self, directory: Path, parameters: int, workers: int) -> None:
        mapping = map_file(directory / _BOARD, _size(parameters, workers))
        self._words = memoryview(mapping).cast("B").cast("q")
        begin, stride = workers * _LINE, _stride(parameters)
        self._vectors = [
            torch.from_numpy(np.frombuffer(mapping, np.float32, parameters, begin + i * stride))
            for i in range(2 * workers)
        ]
        try:
            # Never closed: with any descriptor of a file a process gives up all its locks.
            self._locks = os.open(directory / _LOCKS, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise StorageError(f"cannot open {directory / _LOCKS}: {error.strerror}") from error

    def hold(self, place: int) -> bool:
        """Hold a place; False if another process does."""
        try:
            fcntl.lockf(self._locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except OSError:
            return False
        return True

    def let_go(self, place: int) -> None:
        """Hold it no longer."""
        fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, place)

    def open(self, place: int) -> int:
        """The number of the offer that can be taken; 0 if there is none."""
        return self._words[place * _WORDS + _OPEN]

    def close(self, place: int) -> None:
        """Nobody takes the offer any more."""
        self._words[place * _WORDS + _OPEN] = 0
        fence()

    def taken(self, place: int, seq: int) -> tuple[int, int] | None:
        """Which worker took offer ``seq`` before which exchange of its own, if one did."""
        words, at = self._words, place * _WORDS
        return (words[at + _TAKER], words[at + _AT]) if words[at + _TAKEN] == seq else None

    def take(self, place: int, worker: int, at: int) -> None:
        """The difference is there: ``worker`` takes the offer before its exchange ``at``."""
        words, line = self._words, place * _WORDS
        seq = words[line + _OPEN]
        # Closed first: what is half said must not be taken once more.
        self.close(place)
        words[line + _TAKER], words[line + _AT] = worker, at
        fence()
        words[line + _TAKEN] = seq

    def offer(self, place: int, seq: int, replica: torch.Tensor | None) -> None:
        """Make a new offer."""
        assert replica is not None
        self._vectors[2 * place].copy_(replica)
        fence()
        self._words[place * _WORDS + _OPEN] = seq

    def offered(self, place: int) -> torch.Tensor:
        """What the offer is, float32 ``[parameters]``."""
        return self._vectors[2 * place]

    def difference(self, place: int) -> torch.Tensor:
        """What is left by who took the offer, float32 ``[parameters]``."""
        return self._vectors[2 * place + 1]
