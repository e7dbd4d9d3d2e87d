"""A real server's side of its backups: the log it writes, answers that wait, backups it fills.

Theory of operation. Whatever the server handles goes into its log first. An answer to a worker is
withheld until all backups have handled what it answers: the slot is not written again before, so a
backup finds the update's bytes there. A backup that asks for it is filled with a copy of all that
the server is; from that moment answers wait for it, and training goes on beside the writing.
"""

from __future__ import annotations

import io
import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tardygrad.engines.base import Tensors
from tardygrad.engines.bells import Ringer
from tardygrad.engines.runtime_directory import reserve
from tardygrad.engines.server_log import ServerLog, encode
from tardygrad.engines.shared_memory import Answer
from tardygrad.engines.slot_views import At
from tardygrad.errors import TardygradError
from tardygrad.protocol import events as ev
from tardygrad.protocol.promotion import PromotableServer
from tardygrad.protocol.trace import Record

Withheld = tuple[At, Answer]


@dataclass
class State:
    """All that a server is, beside its tensors and its machine's image.

    Attributes:
        seen: the newest stamp of each slot that was handled.
        waiting: parts of a sum that have no answer yet: where they lie, and their stamps.
        answers: the newest answer to each slot, as far as it may not have been given.
        trace_bytes: how long the shard's trace is.
        position: up to where the log was handled.
    """

    seen: list[int]
    waiting: dict[tuple[int, int], tuple[At, int]]
    answers: dict[At, Answer]
    trace_bytes: int
    position: int


@dataclass
class Heir:
    """A backup that is to become the server: what it has, and what its last entry recorded."""

    machine: PromotableServer
    tensors: Tensors
    state: State
    records: list[Record] = field(default_factory=list)


class Replication:
    """What a server does for its backups.

    Args:
        directory: the runtime directory.
        shard: the server's.
        replicas: places for backups.
        incarnation: the server's.
        ringer: wakes them.
    """

    def __init__(
        self, directory: Path, shard: int, replicas: int, incarnation: int, ringer: Ringer
    ) -> None:
        self._directory, self._shard, self._replicas = directory, shard, replicas
        self._ringer = ringer
        self.log = ServerLog(directory, shard, replicas)
        self.log.own(incarnation)
        self._until = self.log.head
        self._withheld: deque[tuple[int, At, Answer]] = deque()

    @property
    def due(self) -> bool:
        """Whether an answer was withheld that may be given now."""
        return bool(self._withheld) and self._withheld[0][0] <= self.log.reached()

    def decided(self, event: ev.Event, now: float, at: At, stamp: int) -> None:
        """The server is about to handle an event: a push of this slot and stamp, or another."""
        if self.log.followed:
            self._until = self.log.append(encode(now, *at, stamp, event))
            for place in self.log.asleep():
                self._ringer.ring(f"backup-{self._shard * self._replicas + place}")

    def withhold(self, at: At, answer: Answer) -> bool:
        """Keep an answer to what is handled now, if somebody must have it first."""
        if self.log.reached() >= self._until and not self._withheld:
            return False
        self._withheld.append((self._until, at, answer))
        return True

    def flush(self, give: Callable[[At, Answer], None]) -> None:
        """Give the answers to what all backups have."""
        if not self._withheld:
            return
        reached = self.log.reached()
        while self._withheld and self._withheld[0][0] <= reached:
            _, at, answer = self._withheld.popleft()
            give(at, answer)

    def fill(
        self, machine: PromotableServer, tensors: Callable[[], Tensors], state: State,
        writer: Executor,
    ) -> None:  # fmt: skip
        """Fill whoever asks for it; the file is written beside the work."""
        for place, incarnation in self.log.wishes():
            state.answers |= {at: answer for _, at, answer in self._withheld}
            state.position = self.log.begin(place, incarnation)
            content = {"image": machine.image_of(), "tensors": tensors(), "state": state}
            path = fill_file(self._directory, self._shard, place, incarnation)
            number = self._shard * self._replicas + place
            writer.submit(self._write, path, content, number)

    def _write(self, path: Path, content: dict[str, Any], number: int) -> None:
        try:
            file = io.BytesIO()
            torch.save(content, file)
            unfinished = path.with_suffix(".part")
            with open(reserve(unfinished, file.tell()), "wb") as target:
                target.write(file.getbuffer())
            unfinished.replace(path)
        except (OSError, TardygradError) as error:
            # It is taken for dead when it is not ready in time, and until then the server waits.
            print(f"backup {number} cannot be filled: {error}", file=sys.stderr, flush=True)
            self.log.bar(number % self._replicas, int(path.suffix.removeprefix(".i")))
            return
        self._ringer.ring(f"backup-{number}")


def fill_file(directory: Path, shard: int, place: int, incarnation: int) -> Path:
    """Where a backup finds what it is to be filled with."""
    return directory / f"fill-{shard}-{place}.i{incarnation}"
