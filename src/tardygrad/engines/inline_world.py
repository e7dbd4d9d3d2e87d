"""The simulator's world: virtual time, the members that live in it, and what befalls them.

Theory of operation. A heap of (time, number, address, incarnation, event, payload) is all there is.
Whoever wants something to happen puts it in; the loop takes out the earliest and hands it to the
member at that address, if one is there, is up, and is not frozen. An incarnation of -1 reaches
whichever process is at the address, as a message does; any other reaches that one process alone, as
its own timers do. Nothing is delivered to a process that is still starting: in a real run its
socket would not be there yet. What carries parameters or updates takes its time on the links, if
those have a limit.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from typing import Any, NamedTuple, Protocol

import torch

from tardygrad.engines.base import Job, Tensors
from tardygrad.engines.inline_links import Arriving, Links, links_of
from tardygrad.engines.network import Fate, Sampler
from tardygrad.engines.shard_host import TraceSink
from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev
from tardygrad.protocol.invariants import Auditor
from tardygrad.protocol.meetings import Met
from tardygrad.protocol.residuals import Residual
from tardygrad.protocol.trace import Record

ANYONE = -1
"""For whichever incarnation is at the address."""
LINK: ev.Address = ("link", 0)
"""Where a message goes that has come to the link of who receives it."""


class Crash(NamedTuple):
    """The fault plan kills a member, the scheduler for so many seconds."""

    for_s: float = 0.0


class Back(NamedTuple):
    """The scheduler is there again."""


class Served(NamedTuple):
    """A server has come to this push, after those before it."""

    push: ev.Push


class Stored(NamedTuple):
    """A disk is done with a snapshot (of these tensors) or with a manifest."""

    effect: ef.SaveSnapshot | ef.CommitCheckpoint
    tensors: Tensors | None


class Follow(NamedTuple):
    """A backup has come to this entry of its server's log."""

    number: int


class Filled(NamedTuple):
    """A backup gets all that its server was at entry ``reached``."""

    image: dict[str, Any]
    tensors: Tensors
    pushed: dict[int, torch.Tensor | None]
    reached: int


Anything = ev.Event | Crash | Back | Served | Stored | Arriving | Follow | Filled


class Watcher(Protocol):
    """Who looks on: tests, and whoever wants to see a history event by event."""

    def record(self, shard: int, record: Record) -> None:
        """A shard wrote a record in its trace."""
        ...

    def residual(self, entry: Residual) -> None:
        """Something happened to a worker's residual."""
        ...

    def met(self, entry: Met) -> None:
        """A worker may have averaged its replica with another's, and is about to compute."""
        ...

    def handled(
        self, now: float, address: ev.Address, machine: Any, event: Any, effects: list[ef.Effect]
    ) -> None:
        """A machine has handled an event; its effects have not been carried out yet."""
        ...


class WatchedTrace:
    """Feeds every record to the auditor, then to the file and to the watcher if there are any."""

    def __init__(
        self, auditor: Auditor, shard: int, sink: TraceSink | None, watcher: Watcher | None
    ) -> None:
        self._auditor, self._shard, self._sink, self._watcher = auditor, shard, sink, watcher

    def write(self, record: Record) -> None:
        """Check the record and keep it."""
        self._auditor.feed(self._shard, record)
        if self._sink is not None:
            self._sink.write(record)
        if self._watcher is not None:
            self._watcher.record(self._shard, record)

    def close(self) -> None:
        """No more records."""
        if self._sink is not None:
            self._sink.close()


class Computing(NamedTuple):
    """What a worker computes: the update of which number, at which versions, since when.

    ``seconds`` is how long it takes; the other fields are what is counted when it is done.
    """

    seq: int
    reads: tuple[ev.Read, ...]
    began: float
    seconds: float
    epoch: int
    samples: int
    batches: int
    loss: float

    def spent_s(self, now: float) -> float:
        """Seconds of it up to ``now``."""
        return min(max(now - self.began, 0.0), self.seconds)


class Member:
    """A simulated process: its machine and what its engine would keep for it."""

    __slots__ = ("alive", "born", "busy_until", "computing", "counters", "deferred", "frozen_until",
                 "held", "host", "incarnation", "machine", "parts", "pull", "pushed", "reads",
                 "since", "slots", "started", "steps")  # fmt: skip

    def __init__(self, machine: Any, incarnation: int, born: float) -> None:
        self.machine = machine
        self.incarnation = incarnation
        self.alive = True
        self.born = born
        self.started = False
        self.busy_until = born
        self.frozen_until = 0.0
        self.deferred: list[tuple[Anything, Any]] = []
        self.host: Any = None
        self.counters: Any = None
        self.steps = 0
        self.slots: dict[int, torch.Tensor | None] = {}
        self.pushed: dict[int, torch.Tensor | None] = {}
        self.pull: ef.Pull | None = None
        # Up to when its time is accounted for, and since when shards keep its pull waiting.
        self.since = born
        self.held: dict[int, float] = {}
        self.reads: tuple[ev.Read, ...] = ()
        self.computing: Computing | None = None
        self.parts: dict[int, tuple[ev.ShardPulled, torch.Tensor | None]] = {}


class World(ABC):
    """Time, members and faults; the interpreter of effects is built on top of it."""

    def __init__(self, job: Job) -> None:
        config, seed = job.config, job.config.seed
        sim = config.simulation
        self.job = job
        self.now = 0.0
        self.fate = Fate(sim, seed)
        # Each worker's way to the servers.
        self.network: list[Sampler] = []
        self.links: Links | None = links_of(sim.bandwidth, config.workers_max, len(job.ranges))
        self.control = Sampler(sim.control, [seed, 2])
        self.apply_time = Sampler(sim.apply, [seed, 3])
        self.compute: list[Sampler] = []
        self.workers: list[Member | None] = []
        self.make_room(config.workers)
        self.servers: list[Member | None] = [None] * len(job.ranges)
        self.backups: list[Member | None] = [None] * (len(job.ranges) * config.replicas)
        self.heap: list[tuple[float, int, ev.Address, int, Anything, Any]] = []
        self._number = 0
        for fault in self.fate.crashes:
            self.later(fault.at_s, _address(fault.target), Crash(fault.for_s or 0.0))
        for change in sim.changes:
            wanted = ev.CrewWanted(0, change.add, change.remove)
            self.later(change.at_s, ev.SCHEDULER, wanted)

    def make_room(self, workers: int) -> None:
        """There can be so many workers."""
        sim, seed = self.job.config.simulation, self.job.config.seed
        for worker in range(len(self.workers), workers):
            self.workers.append(None)
            self.compute.append(Sampler(sim.compute_of(worker), [seed, 4, worker]))
            if isinstance(sim.network, tuple):
                self.network.append(Sampler(sim.network_of(worker), [seed, 1, worker]))
            else:
                # Where all are alike, one stream of numbers serves all.
                self.network.append(self.network[0] if worker else Sampler(sim.network, [seed, 1]))

    # --- what the interpreter defines ---------------------------------------------------------

    @abstractmethod
    def to_scheduler(self, event: Any) -> None:
        """An event has reached the scheduler."""

    @abstractmethod
    def to_worker(self, address: ev.Address, member: Member, event: Any, payload: Any) -> None:
        """An event has reached a worker that is up."""

    @abstractmethod
    def to_server(self, address: ev.Address, member: Member, event: Any, payload: Any) -> None:
        """An event has reached a server that is up."""

    @abstractmethod
    def to_backup(self, address: ev.Address, member: Member, event: Any) -> None:
        """An event has reached a backup that is up."""

    @abstractmethod
    def to_store(self) -> None:
        """The main process's disk is done with a manifest."""

    @abstractmethod
    def tick(self) -> None:
        """The clock ticks."""

    # --- time ---------------------------------------------------------------------------------

    def later(
        self, delay: float, to: ev.Address, event: Anything, incarnation: int = ANYONE,
        payload: Any = None,
    ) -> None:  # fmt: skip
        """Deliver ``event`` after ``delay`` virtual seconds."""
        self._number = number = self._number + 1
        heapq.heappush(self.heap, (self.now + delay, number, to, incarnation, event, payload))

    def clock(self, address: ev.Address) -> float:
        """What a process takes for the time: its clock may have jumped."""
        return self.fate.clock(address, self.now) if self.fate.jumps else self.now

    def step(self) -> None:
        """Deliver the earliest event."""
        self.now, _, address, incarnation, event, payload = heapq.heappop(self.heap)
        self.deliver(address, incarnation, event, payload)

    def member(self, address: ev.Address) -> Member | None:
        """Who is at a worker's or server's address."""
        kind, index = address
        return {"worker": self.workers, "server": self.servers, "backup": self.backups}[kind][index]

    def at(self, address: ev.Address) -> Member:
        """Who is at the address of a machine that has just acted."""
        member = self.member(address)
        assert member is not None
        return member

    def deliver(self, address: ev.Address, incarnation: int, event: Anything, payload: Any) -> None:
        """Hand the event to whoever is at the address."""
        kind = address[0]
        if kind == "worker":
            member = self.workers[address[1]]
        elif kind == "server":
            member = self.servers[address[1]]
        elif kind == "backup":
            member = self.backups[address[1]]
        elif kind == "scheduler":
            self.to_scheduler(event)
            return
        elif kind == "store":
            self.to_store()
            return
        elif kind == "link":
            self._arrive(event, payload)
            return
        else:
            self.tick()
            return
        if member is None or not member.alive:
            return
        if incarnation != ANYONE and incarnation != member.incarnation:
            return
        if not member.started:
            if type(event) in (ev.Started, ev.Promoted):
                member.started = True
            elif type(event) is not Crash:
                return
        if type(event) is Crash:
            self._crash(address, member)
        elif self.fate.hangs and self.frozen(address, member):
            member.deferred.append((event, payload))
        elif kind == "worker":
            self.to_worker(address, member, event, payload)
        elif kind == "server":
            self.to_server(address, member, event, payload)
        else:
            self.to_backup(address, member, event)

    def send(
        self, source: ev.Address, to: ev.Address, message: ev.Event, payload: Any = None
    ) -> None:
        """Put a message on its way; fate decides when, how often and whether it arrives."""
        if to[0] == "scheduler" or source[0] == "scheduler":
            delay = self.control()
        else:
            delay = self.network[source[1] if source[0] == "worker" else to[1]]()
        if self.fate.quiet:
            self._number = number = self._number + 1
            heapq.heappush(self.heap, (self.now + delay, number, to, ANYONE, message, payload))
            return
        for after in self.fate.deliveries(source, to, delay, self.now):
            self.later(after, to, message, ANYONE, payload)

    def carry(
        self, source: ev.Address, to: ev.Address, message: ev.Push | ev.ShardPulled, payload: Any,
        count: int,
    ) -> None:  # fmt: skip
        """Put a message of ``count`` bytes on its way: it queues behind others on its links."""
        links = self.links
        if links is None:
            self.send(source, to, message, payload)
            return
        if links.travels(source, to, message.seq, self.now):
            # Sent again for want of an answer, which would only lengthen the queue it stands in.
            return
        latency = self.network[source[1] if source[0] == "worker" else to[1]]()
        began, sent = links.up(source).take(self.now, count)
        # What gets lost gets lost on its way: it has left all the same.
        for after in self.fate.deliveries(source, to, latency, self.now):
            links.leaves(source, to, message.seq)
            arriving = Arriving(source, to, message, count, sent + after)
            self.later(began + after - self.now, LINK, arriving, payload=payload)

    def _arrive(self, event: Any, payload: Any) -> None:
        # Its first byte is there; its last one is when the slower of both links has let it through.
        arriving: Arriving = event
        links = self.links
        assert links is not None
        _, taken = links.down(arriving.to).take(self.now, arriving.size)
        at = max(taken, arriving.last)
        links.arrives(arriving, at)
        self.later(at - self.now, arriving.to, arriving.message, ANYONE, payload)

    # --- signs of life, freezing, death -------------------------------------------------------

    def everybody(self) -> list[tuple[ev.Address, Member]]:
        """All processes that are up."""
        return [
            ((kind, index), member)
            for kind, members in (
                ("server", self.servers),
                ("backup", self.backups),
                ("worker", self.workers),
            )
            for index, member in enumerate(members)
            if member is not None and member.alive and member.started
        ]

    def beat(self) -> None:
        """Every process that runs sends a sign of life."""
        for address, member in self.everybody():
            if self.frozen(address, member):
                continue
            beat = ev.Heartbeat(*address, member.incarnation, member.steps)
            if address[0] == "worker":
                machine = member.machine
                beat = beat._replace(session=machine.session, clock=machine.reached_clock)
            if self.fate.quiet:
                self.to_scheduler(beat)
            else:
                self.send(address, ev.SCHEDULER, beat)

    def frozen(self, address: ev.Address, member: Member) -> bool:
        """Whether the process is stopped; what waited for it is delivered when it goes on."""
        if not self.fate.hangs:
            return False
        if not member.frozen_until:
            # A freeze meets the process that is there when it begins, not its successor.
            member.frozen_until = self.fate.freeze(address, member.born, self.now)
        if member.frozen_until > self.now:
            return True
        if member.frozen_until:
            member.frozen_until = 0.0
            deferred, member.deferred = member.deferred, []
            for event, payload in deferred:
                self.deliver(address, member.incarnation, event, payload)
        return False

    def ends(self, address: ev.Address, member: Member) -> None:
        """A process ends, whatever the reason."""
        member.alive = False

    def _crash(self, address: ev.Address, member: Member) -> None:
        self.ends(address, member)
        kind, number = address
        why = "killed by the fault plan"
        died: ev.Event = ev.BackupDied(number, member.incarnation, why)
        if kind != "backup":
            report = ev.WorkerDied if kind == "worker" else ev.ServerDied
            died = report(number, member.incarnation, why, fatal=False)
        self.later(self.control(), ev.SCHEDULER, died)


def _address(target: str | None) -> ev.Address:
    kind, _, index = (target or "").partition("-")
    return (kind, int(index or 0))
