"""What a small cluster is made of: how large it is, its states, its steps (see ``small_world``)."""

from __future__ import annotations

from typing import Any, NamedTuple

from tardygrad.protocol import events as ev
from tardygrad.protocol.scheduler import Scheduler
from tardygrad.protocol.server import Server
from tardygrad.protocol.worker import Worker

ANYONE = -1
ACKNOWLEDGEMENTS = ("WorkerReady", "BookedSeen", "ServerSeen", "MembersSeen")
"""Nothing waits for them but a repetition."""
SLOW = ("Push", "WorkerDied", "ServerDied", "SnapshotWritten", "Manifest", "Waits")
"""What takes its time in every world."""
DISK: ev.Address = ("disk", 0)
GONE = -1


class Setup(NamedTuple):
    """What is searched.

    Attributes:
        workers, shards, batches, fragment_batches, epochs: the run.
        faults: how many misfortunes there are in any one history.
        kinds: of which kinds, of ``KINDS``.
        checkpoints: how many there are before the last one.
        in_flight: pushes that a worker need not wait for.
        bound: SSP's; None for workers that wait for nobody.
        prompt: whether messages other than pushes arrive at once, but for faults.
    """

    workers: int = 2
    shards: int = 2
    batches: int = 3
    fragment_batches: int = 2
    epochs: int = 1
    faults: int = 1
    kinds: tuple[str, ...] = ("loss", "duplicate", "delay", "worker crash", "server crash")
    checkpoints: int = 0
    in_flight: int = 0
    bound: int | None = None
    prompt: bool = True


KINDS = Setup().kinds
"""Every kind of misfortune."""


class Machines(NamedTuple):
    """The classes of the machines; a test puts a broken one in."""

    scheduler: type[Scheduler] = Scheduler
    server: type[Server] = Server
    worker: type[Worker] = Worker


class Item(NamedTuple):
    """Something on its way: a message for whoever is there, or one process's own affair.

    ``kind`` is the event's type: named tuples of different types may be equal.
    """

    to: ev.Address
    incarnation: int
    kind: str
    event: Any


class Waits(NamedTuple):
    """A pull that waits until the shards' clocks are far enough."""

    seq: int
    needs: tuple[int, ...]


class Manifest(NamedTuple):
    """A checkpoint that is about to become visible: the numbers of its snapshots."""

    step: int
    snapshots: tuple[int, ...]


class State(NamedTuple):
    """The whole cluster at one moment; machines, items and snapshots by their numbers."""

    scheduler: int
    workers: tuple[tuple[int, int], ...]
    servers: tuple[tuple[int, bool], ...]
    items: tuple[int, ...]
    disk: Manifest
    faults: int
    checkpoints: int


class Step(NamedTuple):
    """What may happen next: in words, what follows, whether it is a misfortune, what it breaks."""

    words: str
    state: State
    fault: bool
    broken: str


def describe(item: Item) -> str:
    """Something that arrives, in words."""
    if item.kind == "Push":
        push: ev.Push = item.event
        what = (
            f"push {push.seq} of worker {push.worker}: fragment {push.fragment} of epoch "
            f"{push.epoch}, batches [{push.first}, {push.stop}), fence {push.fence}"
        )
    else:
        fields = ", ".join(f"{key}={value}" for key, value in item.event._asdict().items())
        what = f"{item.kind}({fields})"
    return f"{item.to[0]} {item.to[1]} gets {what}"
