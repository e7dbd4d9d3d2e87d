"""A small cluster as a graph: its states, and every step that leads from one to another.

Theory of operation. A *state* is the states of all machines (``machines``), what is on its way,
what the disk holds, and how much misfortune is left. What is on its way has no order: any of it may
come next, so messages overtake each other freely. A fault loses a message, doubles one, or kills a
worker or a server. A killed server goes back to the newest checkpoint whose manifest is written.
Patience runs out (a machine ticks, and sends again what was not answered) only where nothing is on
its way: timeouts are long; who resends too early makes a double, which is a fault of its own.

In a *prompt* world pushes and deaths take any time, disks too, and each other message arrives *at
once*, in order, with what follows from it, unless a fault is spent on it: then it is lost, doubled,
or late, which is as much disorder as one message can make. So are ends of computations, unless the
worker is killed meanwhile. (To bound how often the order departs from a plain one is how schedules
are searched in Emmi, Qadeer and Rakamaric, "Delay-bounded scheduling", POPL 2011.) In one that is
not prompt only acknowledgements that end a repetition arrive at once. In both a pull that waits for
nobody reads the shards as they are at that moment.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator
from typing import Any

from tardygrad.admission import AtOnce
from tardygrad.balancing import Fixed
from tardygrad.consistency import ASP, SSP
from tardygrad.data.fragments import FragmentPlan
from tardygrad.errors import InvariantViolation
from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev
from tardygrad.protocol import trace
from tardygrad.protocol.invariants import Auditor
from tardygrad.protocol.scheduler import OVER
from tardygrad.protocol.scheduler_settings import SchedulerSettings
from tardygrad.protocol.server import ServerSettings
from tardygrad.protocol.silence import SilenceLimits
from tardygrad.protocol.worker_settings import WorkerSettings
from tardygrad.staleness import Constant
from tardygrad.testing.machines import Audited, Nodes, look_at_scheduler, look_at_server
from tardygrad.testing.small_states import (
    ACKNOWLEDGEMENTS,
    ANYONE,
    DISK,
    GONE,
    SLOW,
    Item,
    Machines,
    Manifest,
    Setup,
    State,
    Step,
    Waits,
    describe,
)

_FOREVER = float("inf")
_NEVER = SilenceLimits(_FOREVER, _FOREVER, _FOREVER)
_CASCADE_MAX = 100


class World:
    """Everything that can happen to one small cluster."""

    def __init__(self, setup: Setup, machines: Machines | None = None) -> None:
        self.setup, self.machines = setup, machines or Machines()
        self.plan = plan = FragmentPlan(
            samples=setup.batches, batch_size=1, fragment_batches=setup.fragment_batches, seed=0
        )
        consistency = ASP() if setup.bound is None else SSP(bound=setup.bound)
        scheduler = SchedulerSettings(
            plan=plan, epochs=setup.epochs, workers=setup.workers, workers_max=setup.workers,
            shards=setup.shards, put_aside_after=setup.faults + setup.workers, lease_s=_FOREVER,
            silence=_NEVER, start_s=_FOREVER, stop_s=_FOREVER, resend_s=0.0, backoff_s=0.0,
            backoff_max_s=0.0, restarts=setup.faults + setup.workers, balance=Fixed(),
            checkpoint_every_s=_FOREVER, uses_clocks=consistency.uses_clocks,
        )  # fmt: skip
        self._save_now = dataclasses.replace(scheduler, checkpoint_every_s=0.0)
        server = ServerSettings(
            lineage=1, plan=plan, workers=setup.workers, staleness=Constant(),
            consistency=consistency, admission=AtOnce(), resend_s=0.0,
        )  # fmt: skip
        worker = WorkerSettings(
            lineage=1, shards=setup.shards, exchange_period=lambda _: 1, plan=plan,
            in_flight=setup.in_flight, consistency=consistency, resend_s=0.0,
        )  # fmt: skip
        self.schedulers = Nodes(scheduler, plan, look_at_scheduler)
        self.servers = Nodes(server, plan, look_at_server)
        self.workers = Nodes(worker, plan, lambda machine: machine.phase)
        self.settings = (scheduler, server, worker)
        self.items: list[Item] = []
        self._numbers: dict[Item, int] = {}
        self.snapshots: list[dict[str, Any]] = []
        self._snapshot_numbers: dict[str, int] = {}

    def number(self, item: Item) -> int:
        """The number of something on its way."""
        found = self._numbers.get(item)
        if found is None:
            found = self._numbers[item] = len(self.items)
            self.items.append(item)
        return found

    def is_prompt(self, kind: str) -> bool:
        """Whether what is of that kind arrives at once."""
        return kind not in SLOW if self.setup.prompt else kind in ACKNOWLEDGEMENTS

    def snapshot(self, state: dict[str, Any]) -> int:
        """The number of a snapshot."""
        key = repr(state)
        if key not in self._snapshot_numbers:
            self._snapshot_numbers[key] = len(self.snapshots)
            self.snapshots.append(state)
        return self._snapshot_numbers[key]

    def first(self) -> State:
        """Nothing has begun."""
        setup = self.setup
        self._unstarted = self.schedulers.put(self.machines.scheduler(self.settings[0]))
        return State(
            self._unstarted, ((GONE, 0),) * setup.workers, ((GONE, False),) * setup.shards, (),
            Manifest(0, ()), setup.faults, setup.checkpoints,
        )  # fmt: skip

    # --- what may come next -------------------------------------------------------------------

    def is_over(self, state: State) -> bool:
        """Whether the run has ended."""
        return bool(self.schedulers.seen[state.scheduler].phase == OVER)

    def check_end(self, state: State) -> str:
        """What is wrong with a run that has ended, or an empty string."""
        seen = self.schedulers.seen[state.scheduler]
        if seen.outcome != "done":
            return f"the run ends as {seen.outcome or 'failed'}: {seen.reason}"
        try:
            for shard, (node, _) in enumerate(state.servers):
                self.servers.take(node).auditor.finished_shard(shard, self.setup.epochs)
        except InvariantViolation as error:
            return str(error)
        return ""

    def steps(self, state: State) -> Iterator[Step]:
        """Everything that may happen next."""
        if state.scheduler == self._unstarted:
            moment = Moment(self, state)
            yield moment.step(moment.begin(None))
            if state.faults and self.setup.prompt:
                yield from self._struck(state, None)
            return
        ready = [n for n in dict.fromkeys(state.items) if self._can_arrive(state, self.items[n])]
        for number in ready:
            yield self._arrives(state, number)
            if state.faults and self.setup.prompt:
                yield from self._struck(state, number)
        if state.checkpoints and self.schedulers.seen[state.scheduler].may_save:
            moment = Moment(self, state._replace(checkpoints=state.checkpoints - 1))
            moment.scheduler(ev.Tick(), self._save_now)
            yield moment.step("a checkpoint is due")
        if state.faults:
            yield from self._misfortunes(state, ready)
        if not ready:
            yield from self._patience(state)

    def _can_arrive(self, state: State, item: Item) -> bool:
        kind, number = item.to
        if kind == "worker":
            node, incarnation = state.workers[number]
            if node == GONE or item.incarnation not in (ANYONE, incarnation):
                return False
            if type(item.event) is Waits:
                clocks = [self.servers.seen[node][2] for node, _ in state.servers]
                return all(c >= n for c, n in zip(clocks, item.event.needs, strict=True))
            return True
        if kind == "server":
            node, alive = state.servers[number]
            seen = self.servers.seen[node]
            return alive and item.incarnation in (ANYONE, seen[0])
        if type(item.event) is Manifest:
            older = (self.items[n].event for n in state.items)
            return not any(type(o) is Manifest and o.step < item.event.step for o in older)
        return True

    def _arrives(self, state: State, number: int, *, doubled: bool = False) -> Step:
        item = self.items[number]
        items = list(state.items)
        if not doubled:
            items.remove(number)
        faults = state.faults - doubled
        moment = Moment(self, state._replace(items=tuple(items), faults=faults))
        moment.arrive(item)
        return moment.step(f"{'a double of ' if doubled else ''}{describe(item)}", fault=doubled)

    def _struck(self, state: State, number: int | None) -> Iterator[Step]:
        """Something arrives (or the run begins), and a misfortune befalls what follows at once."""
        items = list(state.items)
        if number is not None:
            items.remove(number)
        after = state._replace(items=tuple(items), faults=state.faults - 1)
        for kind in [k for k in self.setup.kinds if k != "server crash"]:
            for count in range(_CASCADE_MAX):
                moment = Moment(self, after, (kind, count))
                words = moment.begin(number)
                step = moment.step(words, fault=True)
                if not moment.struck:
                    break
                yield step._replace(words=f"{words}; {moment.struck}")

    def _misfortunes(self, state: State, ready: list[int]) -> Iterator[Step]:
        kinds = self.setup.kinds
        fewer = state._replace(faults=state.faults - 1)
        for number in dict.fromkeys(state.items):
            item = self.items[number]
            if item.incarnation != ANYONE or item.kind in ("WorkerDied", "ServerDied", "Manifest"):
                continue  # a process's own affair is not lost
            if "loss" in kinds:
                items = list(state.items)
                items.remove(number)
                lost = fewer._replace(items=tuple(items))
                yield Step(f"lost: {describe(item)}", lost, True, "")
            if "duplicate" in kinds and number in ready:
                yield self._arrives(state, number, doubled=True)
        if "worker crash" in kinds:
            for worker, (node, _) in enumerate(state.workers):
                if node != GONE:
                    moment = Moment(self, fewer)
                    moment.worker_ends(worker, "killed")
                    yield moment.step(f"worker {worker} is killed", fault=True)
        if "server crash" in kinds:
            for shard, (node, alive) in enumerate(state.servers):
                if alive:
                    moment = Moment(self, fewer)
                    moment.servers[shard] = (node, False)
                    incarnation = self.servers.seen[node][0]
                    moment.drop_own(("server", shard), incarnation)
                    died = ev.ServerDied(shard, incarnation, "killed", fatal=False)
                    moment.put(Item(ev.SCHEDULER, ANYONE, "ServerDied", died))
                    yield moment.step(f"server {shard} is killed", fault=True)

    def _patience(self, state: State) -> Iterator[Step]:
        """Nothing is on its way: somebody's patience runs out."""
        everybody: list[ev.Address] = [ev.SCHEDULER]
        everybody += [("server", s) for s, (_, alive) in enumerate(state.servers) if alive]
        everybody += [("worker", w) for w, (node, _) in enumerate(state.workers) if node != GONE]
        for address in everybody:
            moment = Moment(self, state)
            moment.arrive(Item(address, ANYONE, "Tick", ev.Tick()))
            step = moment.step(f"the patience of {address[0]} {address[1]} runs out")
            if step.state != state or step.broken:
                yield step


class Moment:
    """One step in the making: a state that changes until everything at once is done.

    Args:
        world: where.
        state: the state before.
        mishap: a kind of misfortune, and which of the things that happen at once it befalls.
    """

    def __init__(self, world: World, state: State, mishap: tuple[str, int] = ("", -1)) -> None:
        self.world, self._before = world, state
        self._mishap, self._left = mishap
        self.struck = ""
        self._scheduler = state.scheduler
        self.workers, self.servers = list(state.workers), list(state.servers)
        self.items = list(state.items)
        self.disk = state.disk
        self.broken = ""
        self._queue: deque[Item] = deque()

    def begin(self, number: int | None) -> str:
        """An item arrives, or the run begins; what happens, in words."""
        if number is None:
            self.scheduler(ev.Started())
            return "the run begins"
        self.arrive(self.world.items[number])
        return describe(self.world.items[number])

    def step(self, words: str, *, fault: bool = False) -> Step:
        """The finished step: all that follows at once is done."""
        while self._queue:
            item = self._queue.popleft()
            if self._is_there(item.to) and self._concerns(item):
                self.arrive(item)
        before = self._before
        state = State(
            self._scheduler, tuple(self.workers), tuple(self.servers), tuple(sorted(self.items)),
            self.disk, before.faults, before.checkpoints,
        )  # fmt: skip
        return Step(words, state, fault, self.broken)

    def _concerns(self, item: Item) -> bool:
        kind, number = item.to
        there = self.workers[number][1] if kind == "worker" else item.incarnation
        return item.incarnation in (ANYONE, there)

    # --- events -------------------------------------------------------------------------------

    def arrive(self, item: Item) -> None:
        """Hand an item to whom it is for."""
        kind, number = item.to
        if kind == "scheduler":
            self.scheduler(item.event)
        elif kind == "worker":
            event = self._pulled(item.event) if type(item.event) is Waits else item.event
            self._worker(number, event)
        elif kind == "server":
            self._server(number, item.event)
        elif item.event.step > self.disk.step:
            self.disk = item.event

    def scheduler(self, event: Any, settings: Any = None) -> None:
        """The scheduler handles an event."""
        answer = self.world.schedulers.answer(self._scheduler, event, settings)
        self._scheduler = answer.node
        self._do(answer.effects, answer.broken, ev.SCHEDULER)

    def _worker(self, worker: int, event: Any) -> None:
        node, incarnation = self.workers[worker]
        answer = self.world.workers.answer(node, event)
        self.workers[worker] = (answer.node, incarnation)
        self._do(answer.effects, answer.broken, ("worker", worker))

    def _server(self, shard: int, event: Any) -> None:
        answer = self.world.servers.answer(self.servers[shard][0], event)
        self.servers[shard] = (answer.node, True)
        self._do(answer.effects, answer.broken, ("server", shard))

    def _do(self, effects: tuple[ef.Effect, ...], broken: str, source: ev.Address) -> None:
        self.broken = self.broken or broken
        for effect in effects:
            action = _ACTIONS.get(type(effect))
            if action is not None:
                action(self, effect, source)

    def put(self, item: Item) -> None:
        """Something is on its way."""
        if not self._is_there(item.to):
            return
        if not self.world.is_prompt(item.kind):
            self.items.append(self.world.number(item))
        elif not self._strikes(item):
            self._queue.append(item)

    def _strikes(self, item: Item) -> bool:
        """Whether a misfortune befalls it, so that it does not arrive at once."""
        own = item.incarnation != ANYONE
        if not self._mishap or self.struck or own != (self._mishap == "worker crash"):
            return False
        self._left -= 1
        if self._left >= 0:
            return False
        self.struck = f"{_MISHAPS[self._mishap]}: {describe(item)}"
        if self._mishap == "worker crash":
            self.worker_ends(item.to[1], "killed")
        elif self._mishap != "loss":
            self.items.append(self.world.number(item))
        return self._mishap != "duplicate"

    def _is_there(self, address: ev.Address) -> bool:
        kind, number = address
        if kind == "worker":
            return self.workers[number][0] != GONE
        return kind != "server" or self.servers[number][1]

    def drop_own(self, address: ev.Address, incarnation: int) -> None:
        """A process is gone, and with it what only it has in hand."""
        items = self.world.items
        self.items = [
            n for n in self.items if (items[n].to, items[n].incarnation) != (address, incarnation)
        ]

    # --- effects ------------------------------------------------------------------------------

    def _send(self, effect: ef.Send, source: ev.Address) -> None:
        self.put(Item(effect.to, ANYONE, type(effect.message).__name__, effect.message))

    def _publish(self, effect: ef.Publish, source: ev.Address) -> None:
        for shard in effect.shards:
            self.put(Item(("server", shard), ANYONE, "Push", effect.push))

    def _pull(self, effect: ef.Pull, source: ev.Address) -> None:
        waits = Waits(effect.seq, effect.needs or (-1,) * len(self.servers))
        item = Item(source, self.workers[source[1]][1], "Waits", waits)
        if effect.needs:
            number = self.world.number(item)
            if number not in self.items:
                self.items.append(number)
        else:
            self.arrive(item)

    def _pulled(self, waits: Waits) -> ev.Pulled:
        seen = [self.world.servers.seen[node] for node, _ in self.servers]
        reads = tuple((incarnation, version) for incarnation, version, _ in seen)
        return ev.Pulled(waits.seq, reads, min(clock for _, _, clock in seen))

    def _compute(self, effect: ef.Compute, source: ev.Address) -> None:
        samples = self.world.plan.samples_in(effect.lease.fragment, effect.first, effect.stop)
        done = ev.Computed(effect.seq, samples)
        self.put(Item(source, self.workers[source[1]][1], "Computed", done))

    def _leave(self, effect: ef.Leave, source: ev.Address) -> None:
        self.worker_ends(source[1], "exited with status 0")

    def worker_ends(self, worker: int, reason: str, *, told: bool = True) -> None:
        """A worker's process is gone."""
        _, incarnation = self.workers[worker]
        self.workers[worker] = (GONE, 0)
        self.drop_own(("worker", worker), incarnation)
        if told:
            died = ev.WorkerDied(worker, incarnation, reason, fatal=False)
            self.put(Item(ev.SCHEDULER, ANYONE, "WorkerDied", died))

    def _spawn_worker(self, effect: ef.SpawnWorker, source: ev.Address) -> None:
        world = self.world
        machine = world.machines.worker(
            effect.worker, world.settings[2], incarnation=effect.incarnation
        )
        self.workers[effect.worker] = (world.workers.put(machine), effect.incarnation)
        self._worker(effect.worker, ev.Started())

    def _kill_worker(self, effect: ef.KillWorker, source: ev.Address) -> None:
        node, incarnation = self.workers[effect.worker]
        if node != GONE and incarnation == effect.incarnation:
            self.worker_ends(effect.worker, "", told=False)

    def _spawn_server(self, effect: ef.SpawnServer, source: ev.Address) -> None:
        world, shard = self.world, effect.shard
        before, _ = self.servers[shard]
        auditor = Auditor(world.plan, world.setup.shards)
        snapshot = None
        if before != GONE:
            auditor = world.servers.take(before).auditor
            if self.disk.step:
                snapshot = world.snapshots[self.disk.snapshots[shard]]
        machine = world.machines.server(
            shard, world.settings[1], incarnation=effect.incarnation, floor=effect.floor,
            restored_step=self.disk.step, snapshot=snapshot,
        )  # fmt: skip
        self.servers[shard] = (world.servers.put(Audited(machine, auditor)), True)
        self._server(shard, ev.Started())

    def _save(self, effect: ef.SaveSnapshot, source: ev.Address) -> None:
        number = self.world.snapshot({"version": effect.version, **effect.state})
        written = ev.SnapshotWritten(
            effect.step, effect.version, effect.samples, (f"{source[1]}", number, ""), ""
        )
        incarnation = self.world.servers.seen[self.servers[source[1]][0]][0]
        self.put(Item(source, incarnation, "SnapshotWritten", written))

    def _commit(self, effect: ef.CommitCheckpoint, source: ev.Address) -> None:
        manifest = Manifest(effect.step, tuple(number for _, number, _ in effect.files))
        self.put(Item(DISK, ANYONE, "Manifest", manifest))

    def _book(self, effect: Any, source: ev.Address) -> None:
        """A shard takes in an update: nobody but the holder of the newest lease may change it."""
        record = effect.record
        if record.kind not in trace.BOOKED:
            return
        where = (record.epoch, record.fragment)
        seen = self.world.schedulers.seen[self._scheduler]
        fences = seen.fences
        if seen.phase == OVER:
            self.broken = f"shard {source[1]} takes in {record} after the end"
        elif fences.get(where, record.fence) != record.fence:
            self.broken = (
                f"shard {source[1]} takes in an update under fence {record.fence}, while fragment "
                f"{where} is leased under {fences[where]}; the record is {record}"
            )


_MISHAPS = {
    "loss": "lost",
    "duplicate": "doubled",
    "delay": "late",
    "worker crash": "killed before",
}
_ACTIONS: dict[type, Any] = {
    ef.Send: Moment._send,
    ef.Publish: Moment._publish,
    ef.Pull: Moment._pull,
    ef.Compute: Moment._compute,
    ef.Leave: Moment._leave,
    ef.SpawnWorker: Moment._spawn_worker,
    ef.KillWorker: Moment._kill_worker,
    ef.SpawnServer: Moment._spawn_server,
    ef.SaveSnapshot: Moment._save,
    ef.CommitCheckpoint: Moment._commit,
    ef.Apply: Moment._book,
    ef.Gather: Moment._book,
    ef.Log: Moment._book,
}
"""What becomes of an effect; the others change nothing here."""
