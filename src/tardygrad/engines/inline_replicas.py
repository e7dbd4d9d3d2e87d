"""The simulator's backups: the logs that they follow, and what is checked of them.

Theory of operation. As on one machine, a server's *log* outlives it: each event goes there before
the server handles it. Its backups handle it a little later. Only when all of them have does the
server answer the worker; whoever takes its place finds in the log what is still unanswered.

What would be wrong is found at once: a backup must come, after each entry, to the same records and
answers, the same ledger and the same bits as its server did, and no worker may be free to write a
slot again that a backup has yet to read. A server that is killed by plan may have put one more
event into its log, of which nothing else has come: its successor does that, too.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tardygrad.engines.base import Job, Snapshot, Tensors
from tardygrad.engines.inline_world import ANYONE, Filled, Follow, Member, Served
from tardygrad.engines.shard_host import NoTrace, ShardHost
from tardygrad.engines.statistics import ServerCounters
from tardygrad.errors import InvariantViolation
from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev
from tardygrad.protocol.invariants import Auditor
from tardygrad.protocol.trace import Record

if TYPE_CHECKING:
    from tardygrad.engines.inline_members import Members


class Outcome(NamedTuple):
    """What came of an entry: records, answers, and what the shard was then, in short."""

    records: list[Record]
    answers: list[ef.Send]
    print: str


class Entry:
    """An event in a log; ``outcome`` is what came of it at the server, if it came to that."""

    __slots__ = ("event", "now", "number", "outcome", "payload")

    def __init__(self, number: int, now: float, event: ev.Event, payload: Any) -> None:
        self.number, self.now = number, now
        self.event, self.payload = event, payload
        self.outcome: Outcome | None = None


class Follower:
    """A backup that its server waits for; it has handled all entries up to ``cursor``."""

    __slots__ = ("cursor", "member", "shard", "torn")

    def __init__(self, shard: int, member: Member, cursor: int) -> None:
        self.shard, self.member, self.cursor = shard, member, cursor
        self.torn: Outcome | None = None


class Log:
    """One shard's log."""

    def __init__(self) -> None:
        self.head = 0
        self.entries: deque[Entry] = deque()
        self.followers: dict[int, Follower] = {}
        self.reading: dict[tuple[int, int], int] = {}
        """The newest entry that needs the bytes of a worker's push."""

    def append(self, now: float, event: ev.Event, payload: Any) -> Entry:
        """Add an event."""
        self.head += 1
        entry = Entry(self.head, now, event, payload)
        if self.followers:
            self.entries.append(entry)
        return entry

    def reached(self) -> int:
        """What all followers have handled."""
        return min((f.cursor for f in self.followers.values()), default=self.head)


class Replicas:
    """What the simulator does for backups.

    Args:
        world: the members' side of the simulator.
        job: the run's job.
        auditor: knows what is on record.
    """

    def __init__(self, world: Members, job: Job, auditor: Auditor) -> None:
        self._world, self._job, self._auditor = world, job, auditor
        self._replicas = job.config.replicas
        self._logs = [Log() for _ in job.ranges]
        self._promoted: dict[int, Follower] = {}

    # --- servers ------------------------------------------------------------------------------

    def begins(self, shard: int) -> None:
        """A server begins from a snapshot: nobody follows it yet."""
        log = self._logs[shard]
        log.entries.clear()
        log.followers.clear()

    def handle(self, address: ev.Address, member: Member, event: ev.Event, payload: Any) -> None:
        """Put an event into the log, have the server handle it, and let its backups know."""
        world, shard = self._world, address[1]
        log = self._logs[shard]
        if type(event) is ev.Promoted:
            self._take_over(address, member)
        entry = log.append(world.clock(address), event, payload)
        effects = world.handle(address, member, event)
        if type(event) is ev.Promoted:
            machine = member.machine
            self._auditor.holds(shard, machine.ledger.booked(), machine.round.gathered)
        if log.followers:
            entry.outcome = self._outcome(member, effects)
            if isinstance(event, ev.Push) and any(_takes(effect) for effect in effects):
                log.reading[(event.worker, event.seq)] = entry.number
            self._tell(log, entry)
        self.flush(shard)

    def _tell(self, log: Log, entry: Entry) -> None:
        world = self._world
        for number, follower in log.followers.items():
            way = world.control()
            seconds = world.apply_time() if type(entry.event) is ev.Push else 0.0
            ready = max(world.now + way, follower.member.busy_until) + seconds
            follower.member.busy_until = ready
            incarnation = follower.member.incarnation
            world.later(ready - world.now, ("backup", number), Follow(entry.number), incarnation)

    def holds_back(self, shard: int) -> bool:
        """Whether an answer waits for the server's backups; then :meth:`flush` sends it."""
        return bool(self._logs[shard].followers)

    def flush(self, shard: int) -> None:
        """Send the answers to what all backups have."""
        log, address = self._logs[shard], ("server", shard)
        member = self._world.servers[shard]
        if member is None or not member.alive or not member.started:
            return
        reached = log.reached()
        while log.entries and log.entries[0].number <= reached:
            outcome = log.entries[0].outcome
            if outcome is None or self._world.frozen(address, member):
                return
            log.entries.popleft()
            for send in outcome.answers:
                self._world.send(address, send.to, send.message)

    def dies(self, address: ev.Address, member: Member) -> None:
        """A server is killed by plan: just after a push that was coming went into its log."""
        log = self._logs[address[1]]
        if not log.followers:
            return
        coming: list[tuple[float, int, ev.Push, Any]] = []
        for at, number, to, incarnation, event, payload in self._world.heap:
            if to != address or incarnation not in (member.incarnation, ANYONE):
                continue
            if isinstance(event, ev.Push):
                coming.append((at, number, event, payload))
            elif isinstance(event, Served):
                coming.append((at, number, event.push, payload))
        if coming:
            _, _, push, payload = min(coming, key=lambda item: item[:2])
            self._tell(log, log.append(self._world.clock(address), push, payload))

    def released(self, worker: int, seq: int, lost: Sequence[int]) -> None:
        """A worker's slot is free; shards in ``lost`` are said not to have taken its push.

        Where messages overtake one another, a late answer may say so of a push that was repeated
        and taken since. In shared memory an answer to an earlier stamp counts for nothing.

        Raises:
            InvariantViolation: a backup has yet to read it.
        """
        for shard, log in enumerate(self._logs):
            number = log.reading.pop((worker, seq), 0)
            if shard in lost:
                continue
            late = [n for n, follower in log.followers.items() if follower.cursor < number]
            if late:
                raise InvariantViolation(
                    f"worker {worker} may write the slot of push {seq} again, and backup {late[0]} "
                    f"of shard {shard} has not read it"
                )

    # --- backups ------------------------------------------------------------------------------

    def spawn(self, effect: ef.SpawnBackup, source: ev.Address) -> None:
        """Start a backup."""
        world = self._world
        member = Member(None, effect.incarnation, world.now)
        world.backups[effect.number] = member
        address = ("backup", effect.number)
        world.later(world.control(), address, ev.Started(), effect.incarnation)

    def kill(self, effect: ef.KillBackup, source: ev.Address) -> None:
        """End a backup; its server does not wait for it any more."""
        member = self._world.backups[effect.number]
        if member is None or member.incarnation != effect.incarnation:
            return
        self._world.ends(("backup", effect.number), member)
        self._logs[effect.shard].followers.pop(effect.number, None)
        self.flush(effect.shard)

    def to_backup(self, number: int, member: Member, event: Any) -> None:
        """Something reaches a backup that is up."""
        shard = number // self._replicas
        follower = self._logs[shard].followers.get(number)
        if type(event) is Filled:
            if follower is not None and follower.member is member:
                self._fill(shard, member, event)
                self._follow(follower, event.reached)
        elif type(event) is Follow:
            # What came while it was being filled is handled by the next that comes.
            if follower is not None and follower.member is member and member.steps:
                self._follow(follower, event.number)
                self.flush(shard)
        elif follower is None:
            self._ask(shard, number, member)
        elif member.steps and follower.cursor < self._logs[shard].head:
            self._follow(follower, self._logs[shard].head)
            self.flush(shard)

    def _ask(self, shard: int, number: int, member: Member) -> None:
        """Be filled, if the server is there; else the next tick asks again."""
        world, address = self._world, ("server", shard)
        server = world.servers[shard]
        if server is None or not server.alive or not server.started:
            return
        if world.frozen(address, server):
            return
        log = self._logs[shard]
        log.followers[number] = Follower(shard, member, log.head)
        tensors = server.host.image() if world.real else {}
        filled = Filled(server.machine.image_of(), tensors, dict(server.pushed), log.head)
        wait = 2 * world.control() + world.apply_time()
        world.later(wait, ("backup", number), filled, member.incarnation)

    def _fill(self, shard: int, member: Member, event: Filled) -> None:
        job = self._job
        member.machine = job.server(shard, 0, 0)
        member.machine.take_over(event.image)
        member.pushed = event.pushed
        parameters = job.initial[job.ranges[shard].slice].clone()
        buffers = None if shard else job.initial[job.layout.parameters_size :].clone()
        member.host = ShardHost(job.method, parameters, buffers, NoTrace())
        if self._world.real:
            member.host.restore(event.tensors)
        member.steps = 1

    def _follow(self, follower: Follower, until: int) -> None:
        """Handle what the server has handled, and come to the same."""
        for entry in list(self._logs[follower.shard].entries):
            if not follower.cursor < entry.number <= until:
                continue
            outcome = self._repeat(follower, entry)
            follower.cursor = entry.number
            follower.member.steps += 1
            if entry.outcome is None:
                follower.torn = outcome
            elif outcome != entry.outcome:
                raise InvariantViolation(
                    f"a backup of shard {follower.shard} comes to {outcome} by {entry.event}, its "
                    f"server came to {entry.outcome}"
                )

    def _repeat(self, follower: Follower, entry: Entry) -> Outcome:
        member, shard, event = follower.member, follower.shard, entry.event
        if isinstance(event, ev.Push) and event.ranks > 1:
            member.pushed[event.worker] = entry.payload
        effects = member.machine.handle(event, entry.now)
        for effect in effects:
            self._change(member.host, shard, effect, member.pushed, entry.payload)
        return self._outcome(member, effects)

    def _change(
        self, host: ShardHost, shard: int, effect: ef.Effect, pushed: dict[int, Any], payload: Any
    ) -> None:
        world = self._world
        if type(effect) is ef.Commit and world.real:
            host.commit(effect)
        elif type(effect) is ef.Include and pushed.get(effect.push.worker) is not None:
            host.include(effect, world.form.buffers(pushed[effect.push.worker]))
        elif payload is not None and type(effect) is ef.Apply:
            host.apply(effect, *world.unpacked(payload, shard))
        elif payload is not None and type(effect) is ef.Gather:
            host.gather(effect, *world.unpacked(payload, shard))

    def _outcome(self, member: Member, effects: list[ef.Effect]) -> Outcome:
        records = [e.record for e in effects if isinstance(e, _RECORDED)]
        answers = [e for e in effects if type(e) is ef.Send and type(e.message) is ev.Acked]
        return Outcome(records, answers, self._print(member))

    def _print(self, member: Member) -> str:
        machine = member.machine
        books = (machine.incarnation, machine.version, machine.floor, machine.ledger.state())
        hasher = hashlib.sha256(repr((books, machine.round.state())).encode())
        if self._world.real:
            tensors: Tensors = member.host.image()
            for name in sorted(tensors):
                hasher.update(name.encode() + tensors[name].numpy().tobytes())
        return hasher.hexdigest()

    # --- promotion ----------------------------------------------------------------------------

    def promote(self, effect: ef.Promote, source: ev.Address) -> None:
        """A backup takes the address of its server."""
        world, shard = self._world, effect.shard
        member = world.backups[effect.number]
        assert member is not None
        follower = self._logs[shard].followers.pop(effect.number, None)
        world.backups[effect.number] = None
        world.servers[shard] = member
        member.incarnation, member.counters = effect.incarnation, ServerCounters()
        if not member.alive or follower is None:
            died = ev.ServerDied(shard, effect.incarnation, "it was killed before", fatal=False)
            world.later(world.control(), ev.SCHEDULER, died)
            return
        # It hears nothing else before, and what it was to hear as a backup is in the log.
        member.started = False
        member.deferred.clear()
        self._promoted[shard] = follower
        promoted = ev.Promoted(effect.incarnation)
        world.later(world.control(), ("server", shard), promoted, effect.incarnation)

    def _take_over(self, address: ev.Address, member: Member) -> None:
        """Do what the predecessor had decided, write what it had not, and own the shard."""
        world, shard = self._world, address[1]
        log, follower = self._logs[shard], self._promoted.pop(address[1])
        self._follow(follower, log.head)
        snapshot = Snapshot(0, member.host.image(), {})
        member.host = world.shard_host(shard, snapshot if world.real else None)
        for entry in log.entries:
            if entry.outcome is None:
                assert follower.torn is not None
                entry.outcome = follower.torn
                for record in follower.torn.records:
                    member.host.trace.write(record)


_RECORDED = (ef.Apply, ef.Include, ef.Gather, ef.Commit, ef.Log)


def _takes(effect: ef.Effect) -> bool:
    return type(effect) in (ef.Apply, ef.Include, ef.Gather)
