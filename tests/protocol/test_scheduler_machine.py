"""The scheduler against anything: servers are real, workers and the mail do whatever they like.

Messages between scheduler, servers and workers lie in a heap and arrive in any order, twice, or
never; workers and servers die at any moment, workers fall silent, late pushes of the dead arrive.
At the end everybody behaves, and the run must end with everything booked.
"""

from __future__ import annotations

from typing import Any

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scheduler_desk import LEASE_S, PLAN, RESEND_S

from tardygrad.consistency import ASP
from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev
from tardygrad.protocol.membership import LEFT
from tardygrad.protocol.scheduler import OVER, SAVING, STOPPING, Scheduler
from tardygrad.protocol.scheduler_settings import SchedulerSettings
from tardygrad.protocol.server import Server, ServerSettings
from tardygrad.protocol.silence import SilenceLimits
from tardygrad.staleness import Constant

EPOCHS, WORKERS, SLOTS, SHARDS = 3, 3, 5, 2
LINEAGE = 1

numbers = st.integers(0, 1 << 16)
workers = st.integers(0, SLOTS - 1)
shards = st.integers(0, SHARDS - 1)


class Laborer:
    """A worker that has no machine: it does what the test wants, within the protocol."""

    def __init__(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self.leases: list[ev.Lease] = []
        self.received = self.session = self.steps = 0
        self.asks = incarnation << 16
        self.asked: ev.LeaseAsked | None = None
        self.stopping = False

    def take(self, granted: ev.Granted) -> None:
        if granted.ask == self.asks and self.asked is not None:
            self.asked = None
            self.received = granted.lease.fence
            if granted.lease.session != self.session:
                self.leases = []
            self.session = granted.lease.session
            self.leases.append(granted.lease)


class SchedulerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.mail: list[tuple[ev.Address, ev.Event]] = []
        self.workers = {slot: Laborer(-1) for slot in range(SLOTS)}
        self.servers: dict[int, Server] = {}
        self.written: dict[tuple[int, int], dict[str, Any]] = {}
        self.newest = 0
        self.granted: dict[int, ev.Lease] = {}
        self.fences = 0
        self.finished: ef.Finished | None = None
        self.server_settings = ServerSettings(
            lineage=LINEAGE, plan=PLAN, workers=WORKERS, staleness=Constant(),
            consistency=ASP(), resend_s=RESEND_S,
        )  # fmt: skip
        self.machine = Scheduler(
            SchedulerSettings(
                plan=PLAN, epochs=EPOCHS, workers=WORKERS, workers_max=SLOTS, shards=SHARDS,
                lease_s=LEASE_S, silence=SilenceLimits(LEASE_S, 2.0, 20.0), put_aside_after=3,
                counts_crew=True, start_s=20.0, stop_s=8.0, resend_s=RESEND_S, restarts=10_000,
                backoff_s=0.5, backoff_max_s=2.0, checkpoint_every_s=3.0, uses_clocks=False,
            )
        )  # fmt: skip

    # --- what the scheduler wants ---------------------------------------------------------------

    def scheduler(self, event: ev.Event) -> None:
        for effect in self.machine.handle(event, self.now):
            self.carry_out(effect)

    def carry_out(self, effect: ef.Effect) -> None:
        assert self.finished is None, "nothing comes after the end"
        if isinstance(effect, ef.Send):
            self.mail.append((effect.to, effect.message))
            if isinstance(effect.message, ev.Granted):
                self.check_grant(effect.message.lease)
        elif isinstance(effect, ef.SpawnWorker):
            self.workers[effect.worker] = Laborer(effect.incarnation)
        elif isinstance(effect, ef.KillWorker):
            if self.workers[effect.worker].incarnation == effect.incarnation:
                self.workers[effect.worker] = Laborer(-1)
        elif isinstance(effect, ef.SpawnServer):
            self.spawn_server(effect)
        elif isinstance(effect, ef.CommitCheckpoint):
            assert effect.step > self.newest
            assert all((effect.step, shard) in self.written for shard in range(SHARDS))
            self.newest = effect.step
        elif isinstance(effect, ef.Finished):
            self.finished = effect

    def check_grant(self, lease: ev.Lease) -> None:
        """Every shard refuses whatever came of earlier leases of the fragment."""
        if lease.fence in self.granted:
            return  # told again: the first message was lost
        where = (lease.epoch, lease.fragment)
        assert self.machine.serving and self.machine.book.leases[lease.fence] == lease
        for other in self.granted.values():
            if (other.epoch, other.fragment) == where:
                assert other.fence < lease.fence
                for server in self.servers.values():
                    least = max(server.floor, server.ledger.fence(*where))
                    assert other.fence < least or server.ledger.next(*where) == other.stop
        self.granted[lease.fence] = lease

    def spawn_server(self, effect: ef.SpawnServer) -> None:
        snapshot = self.written.get((self.newest, effect.shard))
        server = Server(
            effect.shard, self.server_settings, incarnation=effect.incarnation,
            floor=effect.floor, restored_step=self.newest, snapshot=snapshot,
        )  # fmt: skip
        self.servers[effect.shard] = server
        self.serve(effect.shard, ev.Started())

    def serve(self, shard: int, event: ev.Event) -> None:
        server = self.servers[shard]
        for effect in server.handle(event, self.now):
            if isinstance(effect, ef.Send) and effect.to == ev.SCHEDULER:
                self.mail.append((ev.SCHEDULER, effect.message))
            elif isinstance(effect, ef.SaveSnapshot):
                assert effect.step > self.newest, "a visible checkpoint never changes"
                state = {"version": effect.version, **effect.state}
                self.written[(effect.step, shard)] = state
                written = ev.SnapshotWritten(effect.step, 0, 0, (f"{shard}", 1, ""), "")
                self.mail.append((("disk", shard + (server.incarnation << 8)), written))

    # --- the mail -------------------------------------------------------------------------------

    def deliver(self, to: ev.Address, message: ev.Event) -> None:
        kind, number = to
        if self.finished is not None:
            return
        if kind == "scheduler":
            self.scheduler(message)
        elif kind == "server":
            self.serve(number, message)
        elif kind == "disk":
            if self.servers[number & 0xFF].incarnation == number >> 8:
                self.serve(number & 0xFF, message)
        elif isinstance(message, ev.Granted):
            self.workers[number].take(message)
        elif isinstance(message, ev.StopAsked):
            self.workers[number].stopping = True

    @initialize()
    def begin(self) -> None:
        self.scheduler(ev.Started())

    @precondition(lambda self: self.mail)
    @rule(which=numbers, twice=st.booleans())
    def some_message_arrives(self, which: int, twice: bool) -> None:
        at = which % len(self.mail)
        letter = self.mail[at] if twice else self.mail.pop(at)
        self.deliver(*letter)

    @precondition(lambda self: self.mail)
    @rule(how_many=st.integers(1, 12))
    def the_oldest_messages_arrive(self, how_many: int) -> None:
        letters, self.mail = self.mail[:how_many], self.mail[how_many:]
        for letter in letters:
            self.deliver(*letter)

    @precondition(lambda self: any(to[0] != "disk" for to, _ in self.mail))
    @rule(which=numbers)
    def a_message_is_lost(self, which: int) -> None:
        letters = [letter for letter in self.mail if letter[0][0] != "disk"]
        self.mail.remove(letters[which % len(letters)])

    # --- workers --------------------------------------------------------------------------------

    @rule(worker=workers, prefetch=st.booleans(), abandons=st.booleans())
    def a_worker_asks(self, worker: int, prefetch: bool, abandons: bool) -> None:
        at = self.workers[worker]
        if at.incarnation < 0:
            return
        if at.asked is None or abandons:
            at.asks += 1
            at.asked = ev.LeaseAsked(
                worker, at.incarnation, at.session, at.asks, at.received, prefetch,
                abandons, "refused" if abandons else "", 0,
            )  # fmt: skip
        if at.asked.abandoned:
            at.leases = []
        self.mail.append((ev.SCHEDULER, at.asked))

    @precondition(lambda self: self.granted)
    @rule(which=numbers, shard=shards, batches=st.integers(1, 3))
    def a_push_arrives(self, which: int, shard: int, batches: int) -> None:
        """Of any lease that there ever was: its worker may be dead for long."""
        lease = list(self.granted.values())[which % len(self.granted)]
        self.push(lease, shard, batches)

    def push(self, lease: ev.Lease, shard: int, batches: int) -> None:
        server = self.servers[shard]
        first = server.ledger.next(lease.epoch, lease.fragment)
        stop = min(first + batches, lease.stop)
        if not lease.first <= first < stop:
            return
        reads = tuple((s.incarnation, s.version) for _, s in sorted(self.servers.items()))
        samples = PLAN.samples_in(lease.fragment, first, stop)
        push = ev.Push(
            LINEAGE, lease.worker, lease.session, 1, lease.fence, lease.epoch, lease.fragment,
            first, stop, samples, 0, reads,
        )  # fmt: skip
        self.serve(shard, push)
        self.workers[lease.worker].steps += 1

    @rule(worker=workers)
    def a_worker_dies(self, worker: int) -> None:
        at = self.workers[worker]
        self.workers[worker] = Laborer(-1)
        self.mail.append((ev.SCHEDULER, ev.WorkerDied(worker, at.incarnation, "killed", False)))

    @precondition(lambda self: self.finished is None)
    @rule(add=st.integers(0, 2), remove=st.integers(0, 2))
    def the_crew_changes(self, add: int, remove: int) -> None:
        effects = self.machine.handle(ev.CrewWanted(7, add, remove), self.now)
        [answer] = [e for e in effects if isinstance(e, ef.CrewAnswered)]
        given = (len(answer.added), len(answer.leaving))
        assert answer.number == 7 and given == ((0, 0) if answer.refused else (add, remove))
        for effect in effects:
            self.carry_out(effect)

    @rule(worker=workers)
    def a_worker_leaves(self, worker: int) -> None:
        at = self.workers[worker]
        if at.stopping:
            self.mail.append((ev.SCHEDULER, ev.WorkerLeft(worker, at.incarnation)))
            self.workers[worker] = Laborer(-1)

    # --- everything else ------------------------------------------------------------------------

    @precondition(lambda self: self.finished is None)
    @rule(shard=shards)
    def a_server_dies(self, shard: int) -> None:
        # Its death is the first thing that the scheduler hears of it: a successor starts after it.
        self.scheduler(ev.ServerDied(shard, self.servers[shard].incarnation, "killed", False))

    @rule(which=numbers)
    def a_stale_death_is_told(self, which: int) -> None:
        self.mail.append((ev.SCHEDULER, ev.WorkerDied(which % WORKERS, 0, "late news", False)))

    @precondition(lambda self: self.finished is None)
    @rule(seconds=st.sampled_from((0.1, 0.5, 1.5, 4.0)), silent=st.sets(workers))
    def time_passes(self, seconds: float, silent: set[int]) -> None:
        self.now += seconds
        for worker, at in self.workers.items():
            if worker not in silent:
                self.scheduler(ev.Heartbeat("worker", worker, at.incarnation, at.steps))
        for shard, server in self.servers.items():
            self.scheduler(ev.Heartbeat("server", shard, server.incarnation, 0))
            self.serve(shard, ev.Tick())
        self.scheduler(ev.Tick())

    @rule(often=st.integers(0, 9))
    def an_interrupt(self, often: int) -> None:
        if often == 0:
            self.scheduler(ev.Interrupted("SIGTERM"))

    # --- what must be true ----------------------------------------------------------------------

    @invariant()
    def one_lease_a_fragment(self) -> None:
        book = self.machine.book
        fragments = [(x.epoch, x.fragment) for x in book.leases.values()]
        assert len(set(fragments)) == len(fragments)
        assert not set(fragments) & set(book.fencing)
        for lease in book.leases.values():
            entry = self.machine.workers[lease.worker]
            # Who leaves because the run stops may leave in the middle of a lease, for good.
            stops = self.machine.phase in (STOPPING, SAVING, OVER)
            assert entry.alive or (entry.state == LEFT and stops), entry.state
            assert entry.session == lease.session

    @invariant()
    def somebody_stays(self) -> None:
        crew = self.machine.workers
        assert len(crew) <= SLOTS
        if self.machine.phase not in (STOPPING, SAVING, OVER):
            assert any(entry.wanted and entry.alive for entry in crew)

    @invariant()
    def fences_only_grow(self) -> None:
        assert self.machine.book.next_fence >= self.fences
        self.fences = self.machine.book.next_fence
        assert all(fence < self.fences for fence in self.machine.book.leases)

    @invariant()
    def two_epochs_are_open(self) -> None:
        # Once a server was restored, older ones may be open again.
        if all(server.incarnation == 0 for server in self.machine.servers):
            leased = {x.epoch for x in self.machine.book.leases.values()}
            assert len(leased | {epoch for epoch, _ in self.machine.book.fencing}) <= 2

    def teardown(self) -> None:
        """Everybody behaves from now on, and the run ends."""
        if not self.servers:
            return
        for _ in range(600):
            if self.finished is not None:
                break
            self.everybody_works()
        assert self.finished is not None, f"{self.machine.phase}, {self.machine.book.remaining()}"
        if self.finished.outcome == "failed":
            assert "died in a row" in self.finished.reason
        elif self.finished.outcome == "done":
            for shard in range(SHARDS):
                ledger = self.written[(self.newest, shard)]["ledger"]
                assert ledger["complete"] == list(range(EPOCHS))

    def everybody_works(self) -> None:
        for worker, at in self.workers.items():
            if at.incarnation >= 0 and at.stopping:
                self.a_worker_leaves(worker)
            elif at.incarnation >= 0 and at.asked is None:
                live = [x for x in at.leases if x.fence in self.machine.book.leases]
                for lease in live:
                    for shard in range(SHARDS):
                        self.push(lease, shard, 3)
                at.leases = []
                self.a_worker_asks(worker, prefetch=False, abandons=not live)
            elif at.asked is not None:
                self.mail.append((ev.SCHEDULER, at.asked))
        self.the_oldest_messages_arrive(len(self.mail))
        if self.finished is None:
            self.time_passes(0.5, set())


TestScheduler = SchedulerMachine.TestCase
# Not shrunk: every attempt plays a run to its end, and that takes minutes.
TestScheduler.settings = settings(
    max_examples=80,
    stateful_step_count=60,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
