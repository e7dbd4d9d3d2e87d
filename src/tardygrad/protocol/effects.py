"""Everything that a machine can ask of its engine.

A machine never acts: it returns effects, and its engine carries them out in order. What an effect
means is the same in every engine; how it is done (virtual time, shared memory, sockets) is not the
machine's business.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from tardygrad.protocol.events import Address, Event, Group, Lease, Push, Read
from tardygrad.protocol.trace import Record

Outcome: TypeAlias = Literal["done", "preempted", "failed"]
"""How a run ends."""


class Send(NamedTuple):
    """Deliver a message to another machine."""

    to: Address
    message: Event


# --- worker -----------------------------------------------------------------------------------


class Pull(NamedTuple):
    """Fetch all shards' parameters, each once its clock has reached ``needs[shard]``.

    ``needs`` is empty if nothing is waited for.
    ``fresh``: the first pull of a session; the replica, buffers and all local state start anew.
    With ``shards``, theirs alone are fetched, and kept until a ``Compute`` takes them in.
    Answered by ``Pulled``.
    """

    seq: int
    needs: tuple[int, ...]
    fresh: bool
    shards: tuple[int, ...] = ()


class Compute(NamedTuple):
    """Train batches ``[first, stop)`` of the lease and leave the update in slot ``seq``.

    Before the first batch what was pulled of the shards in ``arrived`` is taken into the replica.
    Where shards are exchanged in turns there may be several of one ``seq``, and without batches.
    What was being pulled when it came is of no use any more. Answered by ``Computed``.
    """

    seq: int
    lease: Lease
    first: int
    stop: int
    arrived: tuple[int, ...] = ()


class JoinGroup(NamedTuple):
    """Connect to the other ranks of ``group``. Answered by ``Joined``."""

    group: Group


class Reduce(NamedTuple):
    """Replace the update in slot ``seq`` by its mean over the group, weighted by ``samples``.

    Buffers stay the worker's own. Answered by ``Reduced``.
    """

    seq: int
    group: Group
    samples: int


class Follow(NamedTuple):
    """Take the servers' step with the group's mean in slot ``seq``, on the worker's own replica."""

    seq: int


class LeaveGroup(NamedTuple):
    """Close the connections of group ``generation``: whoever waits there for this worker learns it.

    What is under way there ends with an error that nobody hears.
    """

    generation: int


class Publish(NamedTuple):
    """Make the update in slot ``push.seq`` known to ``shards`` (all, or again those named)."""

    push: Push
    shards: tuple[int, ...]


class Release(NamedTuple):
    """Slot ``seq`` may be used again: it was answered everywhere, or never published.

    ``lost``: the shards that have not taken what it held.
    """

    seq: int
    lost: tuple[int, ...] = ()


class Leave(NamedTuple):
    """The machine's life is over."""

    reason: str


# --- server -----------------------------------------------------------------------------------


class Apply(NamedTuple):
    """Apply the update of ``push`` to the shard.

    The trace's ``record`` is made durable first. ``scale`` multiplies the learning rate (staleness
    policy); ``consumed`` is the number of samples booked on this shard before this update (the
    learning-rate schedule's clock).
    """

    push: Push
    scale: float
    consumed: int
    record: Record


class Include(NamedTuple):
    """Book ``push``, whose update is in the mean that the next ``Gather`` takes in.

    The record is made durable first; the pusher's buffers are taken in.
    """

    push: Push
    record: Record


class Gather(NamedTuple):
    """Take the update of ``push`` into the shard's open round, the record made durable first.

    It counts in the round's mean with ``weight``.
    """

    push: Push
    weight: float
    record: Record


class Commit(NamedTuple):
    """End the round: apply its mean to the shard as one update, the record made durable first.

    ``consumed``: samples booked on this shard before the round began.
    """

    consumed: int
    record: Record


class Log(NamedTuple):
    """Add a record to the shard's trace; nothing is applied."""

    record: Record


class SendParameters(NamedTuple):
    """Answer a pull with the shard's newest parameters."""

    worker: int
    seq: int
    read: Read
    clock: int


class PublishClock(NamedTuple):
    """The shard's clock, for pulls that do not pass through the machine."""

    clock: int


class SaveSnapshot(NamedTuple):
    """Write the shard's tensors and, with the version, its ``state``: ledger and open round.

    Answered by ``SnapshotWritten``.
    """

    step: int
    version: int
    samples: int
    state: dict[str, object]


# --- scheduler --------------------------------------------------------------------------------


class SpawnWorker(NamedTuple):
    """Start a worker's process after ``delay_s``."""

    worker: int
    incarnation: int
    delay_s: float


class KillWorker(NamedTuple):
    """End a worker's process now, whatever it does."""

    worker: int
    incarnation: int
    reason: str


class SpawnServer(NamedTuple):
    """Start a server from its newest snapshot; it refuses every fence below ``floor``."""

    shard: int
    incarnation: int
    floor: int


class KillServer(NamedTuple):
    """End a server's process now."""

    shard: int
    incarnation: int
    reason: str


class SpawnBackup(NamedTuple):
    """Start a backup of the shard; the shard's server fills it as soon as it asks for that."""

    number: int
    shard: int
    incarnation: int


class KillBackup(NamedTuple):
    """End a backup's process now, if there is one; its server does not wait for it any more."""

    number: int
    shard: int
    incarnation: int
    reason: str


class Promote(NamedTuple):
    """A backup becomes the shard's server, as ``incarnation``, once the last one is surely gone.

    It was number ``number``, as ``backup``, and does all that its predecessor decided before.
    """

    shard: int
    incarnation: int
    number: int
    backup: int


class CommitCheckpoint(NamedTuple):
    """All snapshots of ``step`` are on storage: write the manifest."""

    step: int
    files: tuple[tuple[str, int, str], ...]
    state: dict[str, object]


class EpochEnded(NamedTuple):
    """Every sample of an epoch (counted from 0) is booked on every shard."""

    epoch: int


class MemberChanged(NamedTuple):
    """A worker or server changed its state (for the people who watch)."""

    kind: str
    id: int
    incarnation: int
    state: str
    reason: str


class CrewAnswered(NamedTuple):
    """What became of the wish ``number`` for more workers or fewer.

    ``added`` and ``leaving`` are slots; ``refused`` says why nothing is done, or is empty.
    """

    number: int
    added: tuple[int, ...]
    leaving: tuple[int, ...]
    refused: str


class Decided(NamedTuple):
    """A decision and its reason, for the log."""

    decision: str
    reason: str


class Finished(NamedTuple):
    """The run is over."""

    outcome: Outcome
    reason: str


Effect: TypeAlias = (
    Send | Pull | Compute | JoinGroup | Reduce | Follow | LeaveGroup | Publish | Release | Leave
    | Apply | Include | Gather | Commit | Log | SendParameters | PublishClock | SaveSnapshot
    | SpawnWorker | KillWorker | SpawnServer | KillServer | SpawnBackup | KillBackup | Promote
    | CommitCheckpoint | EpochEnded | MemberChanged | CrewAnswered | Decided | Finished
)  # fmt: skip
