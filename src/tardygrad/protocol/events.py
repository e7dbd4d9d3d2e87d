"""Everything that can reach a machine: messages from its peers and reports of its engine.

A *message* travels between machines (it may be late, doubled or lost; a machine must stand that).
A *report* comes from the engine that hosts the machine (an effect is done, a process died, time
passed) and is reliable. Both are plain named tuples of numbers, strings and tuples: cheap to make,
comparable, and ready for a wire format. Tensors never appear here: a push names a slot of the data
path by ``seq``, and the engine knows which bytes that means.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

Address: TypeAlias = tuple[str, int]
"""Who a message is for: ``("scheduler", 0)``, ``("worker", slot)`` or ``("server", shard)``."""

SCHEDULER: Address = ("scheduler", 0)

Read: TypeAlias = tuple[int, int]
"""What a pull saw on one shard: ``(incarnation, version)``."""

# How a server answers a push.
APPLIED = "applied"
DUPLICATE = "duplicate"
DROPPED = "dropped"
AGAIN = "again"
REFUSED = "refused"
GAP = "gap"

ASKED_TO_LEAVE = "it was asked to leave"


class Lease(NamedTuple):
    """The right to train batches ``[first, stop)`` of one fragment.

    ``fence`` numbers grow over the whole run, so an older lease of the same fragment can be told
    from a newer one. ``session`` names the worker's stretch of local state: a new number means
    "forget your replica and pull everything afresh". A push must not reach across any of ``cuts``
    (batches at which some shard already stands). ``clock`` is the one by which the servers know a
    new session, if the consistency rule uses clocks. ``share``: how many times the method's batches
    of an exchange this worker trains in one (see ``tardygrad.balancing``).
    """

    fence: int
    session: int
    worker: int
    epoch: int
    fragment: int
    first: int
    stop: int
    cuts: tuple[int, ...]
    clock: int = 0
    share: float = 1.0


class Group(NamedTuple):
    """A worker's place among those that average their updates before they push.

    ``generation`` numbers the groups of a run. Each rank pushes for itself; what it pushes is the
    mean of all ``size`` ranks.
    """

    generation: int
    rank: int
    size: int


ALONE = Group(0, 0, 1)
"""Who averages with nobody."""

# --- worker -> server -------------------------------------------------------------------------


class Push(NamedTuple):
    """One update for all shards: what it is, what it was computed from, where its bytes lie.

    With ``ranks`` above 1 its bytes are the mean over the ranks of group ``generation``, which all
    push it, each for the batches that it contributed.
    """

    lineage: int
    worker: int
    session: int
    seq: int
    fence: int
    epoch: int
    fragment: int
    first: int
    stop: int
    samples: int
    clock: int
    reads: tuple[Read, ...]
    generation: int = 0
    ranks: int = 1


class PullAsked(NamedTuple):
    """A worker wants a shard's parameters, once the shard's clock has reached ``need``."""

    worker: int
    seq: int
    need: int


# --- server -> worker -------------------------------------------------------------------------


class Acked(NamedTuple):
    """A server's answer to push ``seq``. ``next`` is the first batch that it has not booked."""

    shard: int
    session: int
    seq: int
    outcome: str
    next: int
    reason: str


class ShardPulled(NamedTuple):
    """One shard's parameters have arrived (engines that pull by message)."""

    shard: int
    seq: int
    read: Read
    clock: int


# --- worker <-> scheduler ---------------------------------------------------------------------


class WorkerReady(NamedTuple):
    """A worker's process is up, its model built."""

    worker: int
    incarnation: int


class LeaseAsked(NamedTuple):
    """A worker wants work. ``abandoned``: it gave up all leases of ``session``.

    ``received`` is the newest fence that reached it: a grant above that was lost on the way.
    ``clock`` counts its exchanges so far. ``samples`` are what its process has computed so far, in
    ``seconds``; its first range is left out, in which things are set up.
    """

    worker: int
    incarnation: int
    session: int
    ask: int
    received: int
    prefetch: bool
    abandoned: bool
    reason: str
    clock: int
    samples: int = 0
    seconds: float = 0.0


class Granted(NamedTuple):
    """The scheduler's answer to ``ask``. ``group``: the one of the lease's session."""

    ask: int
    lease: Lease
    group: Group = ALONE


class SessionEnded(NamedTuple):
    """Whatever the worker holds under a session before this one is over."""

    session: int


class StopAsked(NamedTuple):
    """Finish the range at hand, wait for its answers, leave."""

    reason: str


class WorkerLeft(NamedTuple):
    """A worker has nothing in flight and goes."""

    worker: int
    incarnation: int


class Heartbeat(NamedTuple):
    """A sign of life of a worker, server or backup.

    ``steps`` grows with each unit of work done. ``clock`` is how far a worker is by what others may
    have to wait for: its clock, or the versions that its updates led to; 0 where nobody waits. It
    is of ``session``.
    """

    kind: str
    id: int
    incarnation: int
    steps: int
    session: int = 0
    clock: int = 0


# --- scheduler <-> server ---------------------------------------------------------------------


class ServerReady(NamedTuple):
    """A server is up with this ledger.

    ``complete`` lists its finished epochs, ``nexts`` its ``(epoch, fragment, next batch)`` of
    every other fragment that it has touched.
    """

    shard: int
    incarnation: int
    version: int
    complete: tuple[int, ...]
    nexts: tuple[tuple[int, int, int], ...]


class ServerSeen(NamedTuple):
    """The scheduler has seen :class:`ServerReady` of this incarnation."""

    incarnation: int


class FenceAsked(NamedTuple):
    """Refuse pushes of this fragment under any fence below ``fence``, then say where you stand."""

    epoch: int
    fragment: int
    fence: int


class Fenced(NamedTuple):
    """The answer to :class:`FenceAsked`: ``next`` is the first batch not booked."""

    shard: int
    incarnation: int
    epoch: int
    fragment: int
    fence: int
    next: int


class Booked(NamedTuple):
    """Every batch of a fragment is booked on this shard."""

    shard: int
    incarnation: int
    number: int
    epoch: int
    fragment: int


class BookedSeen(NamedTuple):
    """The scheduler has seen :class:`Booked` ``number``."""

    number: int


class MembersChanged(NamedTuple):
    """The members, each as ``(worker, session, clock)``: only their clocks hold others back."""

    generation: int
    workers: tuple[tuple[int, int, int], ...]


class MembersSeen(NamedTuple):
    """The answer to :class:`MembersChanged`."""

    shard: int
    generation: int


class CrewCounted(NamedTuple):
    """So many workers there are now. ``generation`` grows with each change."""

    generation: int
    workers: int


class CrewSeen(NamedTuple):
    """A server reckons with the number of this generation."""

    shard: int
    generation: int


class SnapshotAsked(NamedTuple):
    """Write a snapshot of your shard for checkpoint ``step``.

    From now on refuse every fence below ``floor``: nothing comes after the last snapshot of a run.
    Only ``incarnation`` is meant: what was asked of a server that is gone must not make its
    successor change a checkpoint that has become visible meanwhile.
    """

    step: int
    floor: int
    incarnation: int


class SnapshotTaken(NamedTuple):
    """A snapshot is on storage. ``file`` describes it (name, bytes, checksum)."""

    shard: int
    incarnation: int
    step: int
    version: int
    samples: int
    file: tuple[str, int, str]


class SnapshotFailed(NamedTuple):
    """A snapshot could not be written."""

    shard: int
    incarnation: int
    step: int
    reason: str


# --- reports of the engine --------------------------------------------------------------------


class Started(NamedTuple):
    """The machine's life begins."""


class Tick(NamedTuple):
    """Some time has passed; look at your deadlines."""


class Pulled(NamedTuple):
    """All shards' parameters are in the worker's hands. ``clock``: the lowest of the shards'."""

    seq: int
    reads: tuple[Read, ...]
    clock: int


class Computed(NamedTuple):
    """The range is computed; its update lies in slot ``seq``."""

    seq: int
    samples: int


class Overtaken(NamedTuple):
    """Computation ``seq`` was ended early: its result would have been too stale for a shard."""

    seq: int
    reason: str


class Joined(NamedTuple):
    """All ranks of the worker's group are connected, or (``error``) will not be."""

    generation: int
    error: str


class Reduced(NamedTuple):
    """Slot ``seq`` holds the mean over the group, or (``error``) is of no use any more."""

    seq: int
    error: str


class SnapshotWritten(NamedTuple):
    """The engine has written the shard's snapshot (``error`` is empty) or failed to."""

    step: int
    version: int
    samples: int
    file: tuple[str, int, str]
    error: str


class WorkerDied(NamedTuple):
    """A worker's process is gone. ``fatal``: trying again would fail the same way.

    ``own``: the reason is its own word, an exception that it raised.
    """

    worker: int
    incarnation: int
    reason: str
    fatal: bool
    own: bool = False


class ServerDied(NamedTuple):
    """A server's process is gone."""

    shard: int
    incarnation: int
    reason: str
    fatal: bool


class BackupDied(NamedTuple):
    """A backup's process is gone. ``number`` counts the backups of all shards."""

    number: int
    incarnation: int
    reason: str


class Promoted(NamedTuple):
    """The server's predecessor is gone; from now on it owns the shard, as ``incarnation``."""

    incarnation: int


class CrewWanted(NamedTuple):
    """Somebody wants ``add`` workers more, or ``remove`` fewer. ``number`` names the wish."""

    number: int
    add: int
    remove: int


class Interrupted(NamedTuple):
    """The user or the machine's owner wants the run to stop; it will be resumed later."""

    reason: str


Event: TypeAlias = (
    Push | PullAsked | Acked | ShardPulled | WorkerReady | LeaseAsked | Granted | SessionEnded
    | StopAsked | Joined | Reduced | WorkerLeft | Heartbeat | ServerReady | ServerSeen
    | FenceAsked | Fenced | Booked | BookedSeen | MembersChanged | MembersSeen | CrewCounted
    | CrewSeen | SnapshotAsked | SnapshotTaken | SnapshotFailed | Started | Tick | Pulled | Computed
    | Overtaken | SnapshotWritten | WorkerDied | ServerDied | BackupDied | Promoted | CrewWanted
    | Interrupted
)  # fmt: skip

MESSAGES: tuple[type[tuple[object, ...]], ...] = (
    Push, PullAsked, Acked, ShardPulled, WorkerReady, LeaseAsked, Granted, SessionEnded, StopAsked,
    WorkerLeft, Heartbeat, ServerReady, ServerSeen, FenceAsked, Fenced, Booked, BookedSeen,
    MembersChanged, MembersSeen, CrewCounted, CrewSeen, SnapshotAsked, SnapshotTaken,
    SnapshotFailed, Promoted,
)  # fmt: skip
"""The event types that travel between machines."""
