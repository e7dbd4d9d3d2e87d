"""The crew: which workers there are, and how their number changes while a run goes on.

Theory of operation. Workers live in numbered slots. A slot is *wanted* or not; a process that dies
in a wanted one is replaced (see ``Restarts``), or the slot is put aside. Whoever is added takes a
slot that is free, else the next number, and comes to work as a replacement would: it is started, it
asks for a lease. Whoever is to leave is asked to stop, which means: finish the range at hand, wait
for its answers, say so, go. Its leases then go through fencing like those of a dead worker, so that
another goes on with the first batch that is not booked, and nothing is trained twice.

The *live number* counts the wanted slots that have a process, or are about to. Servers that reckon
with it are told whenever it changes, and what they are told is repeated until it is answered.
"""

from __future__ import annotations

from tardygrad.protocol import events as ev
from tardygrad.protocol import membership as mb
from tardygrad.protocol.effects import CrewAnswered, Decided, Effect, KillWorker, Send, SpawnWorker
from tardygrad.protocol.leasing import LeaseDesk
from tardygrad.protocol.outbox import Outbox
from tardygrad.protocol.scheduler_settings import SchedulerSettings


class Crew:
    """A part of the scheduler, which alone uses it.

    Args:
        settings: the scheduler's.
        workers: its entries; new ones are appended.
        desk: who takes back what those that leave hold.
        outbox: where what servers are told is kept until they answer.
    """

    def __init__(
        self, settings: SchedulerSettings, workers: list[mb.WorkerEntry], desk: LeaseDesk,
        outbox: Outbox,
    ) -> None:  # fmt: skip
        s = self._settings = settings
        self._workers, self._desk, self._outbox = workers, desk, outbox
        self.restarts = mb.Restarts(
            s.restarts, first_s=s.backoff_s, most_s=s.backoff_max_s,
            put_aside_after=s.put_aside_after,
        )  # fmt: skip
        self._told = s.workers
        self._generation = 0

    @property
    def live(self) -> int:
        """How many workers there are, or are about to be, that nobody has asked to leave."""
        return sum(w.wanted and w.alive for w in self._workers)

    # --- beginning, dying, coming again -------------------------------------------------------

    def spawn(
        self, entry: mb.WorkerEntry, incarnation: int, delay_s: float, now: float
    ) -> list[Effect]:
        """Start a process in the slot, after ``delay_s``."""
        entry.born(incarnation, now + delay_s)
        entry.session = self._desk.new_session()
        return [
            SpawnWorker(entry.worker, incarnation, delay_s),
            entry.changed("started", f"after {delay_s:g} s" if delay_s else ""),
        ]

    def died(self, entry: mb.WorkerEntry, *, own: bool) -> str:
        """Take in a death; why no replacement would do better, or an empty string."""
        slots = sum(w.wanted and w.state != mb.PUT_ASIDE for w in self._workers)
        return self.restarts.died(entry, slots, own=own)

    def others_work(self, entry: mb.WorkerEntry) -> bool:
        """Whether somebody else has shown that there is nothing wrong with the run itself."""
        return any(
            w.wanted and w.state == mb.READY and w.has_worked
            for w in self._workers
            if w is not entry
        )

    def replace(
        self, entry: mb.WorkerEntry, death: str, now: float, *, fatal: bool = False
    ) -> tuple[list[Effect], str]:
        """Fill the slot of a dead worker again, or put it aside.

        Args:
            entry: the slot.
            death: what it died of.
            now: the time in seconds.
            fatal: it would die of that again.

        Returns:
            The effects, and why the run cannot go on, or an empty string.
        """
        aside = ""
        if self.others_work(entry):
            again = "another try would fail the same way"
            aside = again if fatal else self.restarts.hopeless(entry)
        delay = None if aside else self.restarts.delay_s(entry)
        if delay is not None:
            return self.spawn(entry, entry.incarnation + 1, delay, now), ""
        entry.turn("put_aside")
        reason = aside or f"all {self._settings.restarts} restarts are used up"
        put_aside = entry.changed("put_aside", f"{reason}; the last death: {death}")
        if self.live:
            return [put_aside], ""
        return [put_aside], f"no worker is left and {reason}; the last one: {death}"

    # --- joining and leaving ------------------------------------------------------------------

    def change(self, event: ev.CrewWanted, now: float, refusal: str) -> list[Effect]:
        """Add or remove workers; all that is asked for, or nothing.

        Args:
            event: the wish.
            now: the time in seconds.
            refusal: why no wish can be granted now, or an empty string.
        """
        refusal = refusal or self._refusal(event)
        if refusal:
            told = Decided(f"the crew stays (asked: +{event.add} -{event.remove})", refusal)
            return [told, CrewAnswered(event.number, (), (), refusal)]
        effects: list[Effect] = []
        added = [self._free_slot() for _ in range(event.add)]
        for entry in added:
            effects += self.spawn(entry, entry.incarnation, 0.0, now)
        wanted = [w for w in self._workers if w.wanted and w.alive]
        leaving = sorted(wanted, key=lambda w: -w.worker)[: event.remove]
        for entry in leaving:
            effects += self._dismiss(entry, now)
        came, go = (tuple(sorted(e.worker for e in found)) for found in (added, leaving))
        for numbers, what in ((came, "join"), (go, "are to leave")):
            if numbers:
                names = f"workers {', '.join(map(str, numbers))} {what}"
                effects.append(Decided(names, f"live workers: {self.live}"))
        return [*effects, CrewAnswered(event.number, came, go, "")]

    def _refusal(self, event: ev.CrewWanted) -> str:
        live, most = self.live, self._settings.workers_max
        if event.remove >= live and event.remove:
            return f"there are {live} workers, and one must stay"
        there = sum(w.alive for w in self._workers)
        if there + event.add > most:
            return (
                f"there are {there} workers, and there can be {most}; resume the run with a "
                "larger elastic.workers_max"
            )
        return ""

    def _free_slot(self) -> mb.WorkerEntry:
        """A slot for one more worker, as new: one that was left, the next number, one put aside."""
        gone = [w for w in self._workers if not w.wanted and not w.alive]
        if not gone and len(self._workers) >= self._settings.workers_max:
            gone = [w for w in self._workers if w.state == mb.PUT_ASIDE]
        if gone:
            entry = gone[0]
            # Nobody else takes it meanwhile.
            entry.turn("joins")
            entry.incarnation += 1
        else:
            first = self._settings.generation << 10
            entry = mb.WorkerEntry(len(self._workers), first)
            self._workers.append(entry)
        entry.wanted, entry.deaths, entry.in_vain = True, 0, 0
        return entry

    def _dismiss(self, entry: mb.WorkerEntry, now: float) -> list[Effect]:
        entry.wanted = False
        leaving = entry.changed("leaving", "")
        if entry.state == mb.STARTING and entry.due > now:
            killed = KillWorker(entry.worker, entry.incarnation, ev.ASKED_TO_LEAVE)
            return [killed, leaving, *self.gone(entry, now)]
        return [leaving, self.ask_to_leave(entry)]

    def ask_to_leave(self, entry: mb.WorkerEntry) -> Send:
        """What a worker hears that is not wanted any more."""
        return Send(("worker", entry.worker), ev.StopAsked(ev.ASKED_TO_LEAVE))

    def gone(self, entry: mb.WorkerEntry, now: float) -> list[Effect]:
        """A worker has left as it was asked to: others go on with what it held."""
        entry.turn("leaves")
        return [entry.changed("left", ev.ASKED_TO_LEAVE), *self.hand_back(entry, now)]

    def hand_back(self, entry: mb.WorkerEntry, now: float) -> list[Effect]:
        """A worker is gone: what it held goes to others, and nobody waits for it."""
        if self._settings.uses_clocks:
            for other in self._workers:
                # Whoever stood still may have waited for this one.
                other.moved = max(other.moved, now)
        self._desk.forget(entry.worker)
        return self._desk.release(entry, now)

    def remind(self) -> list[Effect]:
        """Ask those again that have not left yet: what they were told may be lost."""
        return [self.ask_to_leave(w) for w in self._workers if w.alive and not w.wanted]

    # --- what servers know --------------------------------------------------------------------

    def tell(self, now: float) -> list[Effect]:
        """Tell the servers how many workers there are, if that has changed."""
        live = self.live
        if not self._settings.counts_crew or live in (self._told, 0):
            return []
        self._told = live
        self._generation += 1
        return [self._told_to(shard, now) for shard in range(self._settings.shards)]

    def tell_again(self, shard: int, now: float) -> list[Effect]:
        """A new server knows the configured number alone."""
        return [self._told_to(shard, now)] if self._generation else []

    def _told_to(self, shard: int, now: float) -> Send:
        message = ev.CrewCounted(self._generation, self._told)
        return self._outbox.command(("crew", shard), shard, message, now)

    def seen(self, event: ev.CrewSeen) -> None:
        """A server knows a number."""
        if event.generation == self._generation:
            self._outbox.forget(("crew", event.shard))
