"""Backups as the scheduler knows them: who may take a dead server's place, and who comes next.

Theory of operation. Each shard has ``replicas`` places for backups. A backup is *starting* until it
has everything that its server has; its signs of life say so (``steps`` above 0). From then on it is
*ready*: its server acknowledges nothing that it lacks, so it can be promoted at any time. A server
waits for a backup from the moment in which it fills it until it is told by ``KillBackup`` that the
backup is out; only then is a backup out that was ready, so nobody is promoted who lacks something.

When a server dies, the first ready backup is promoted. Without one the shard goes back to its
newest snapshot, as it would have without backups, and those that were still starting go too. A
place is filled again while training goes on, as often as servers may be restarted: at once if its
backup was ready or was not to blame, and after a growing wait if it fails again and again before.
"""

from __future__ import annotations

from collections.abc import Sequence

from tardygrad.protocol import events as ev
from tardygrad.protocol.effects import (
    Decided,
    Effect,
    KillBackup,
    MemberChanged,
    Promote,
    SpawnBackup,
)
from tardygrad.protocol.membership import ServerEntry
from tardygrad.protocol.scheduler_settings import SchedulerSettings
from tardygrad.protocol.silence import Silence
from tardygrad.protocol.states import BACKUP
from tardygrad.protocol.watch import Watch

EMPTY = "empty"
STARTING = "starting"
READY = "ready"


class BackupEntry:
    """One place for a backup."""

    __slots__ = (
        "deaths", "due", "heard", "in_vain", "incarnation", "number", "shard", "silence", "state",
    )  # fmt: skip

    def __init__(self, number: int, shard: int, incarnation: int) -> None:
        self.number, self.shard = number, shard
        self.incarnation = incarnation
        self.state = BACKUP.start
        self.deaths = 0
        self.in_vain = 0
        self.due = 0.0
        self.heard = 0.0
        self.silence = Silence()

    def changed(self, state: str, reason: str) -> MemberChanged:
        """What people are told of it."""
        return MemberChanged("backup", self.number, self.incarnation, state, reason)


class Backups:
    """A part of the scheduler, which alone uses it.

    Args:
        servers: the scheduler's entries.
        settings: ``replicas`` places for each shard; each is filled again ``restarts`` times: at
            once, or after ``backoff_s`` if its backup did not get ready, doubled for each further
            one in a row; a backup is ready within ``start_s``, or counts as dead.
        watch: knows for how long one that is ready may be silent.
    """

    def __init__(
        self, servers: Sequence[ServerEntry], settings: SchedulerSettings, watch: Watch
    ) -> None:
        self._servers, self._settings, self._watch = servers, settings, watch
        self._restarts = max(settings.restarts, 1)
        self.entries = [
            BackupEntry(server.shard * settings.replicas + i, server.shard, server.incarnation)
            for server in servers
            for i in range(settings.replicas)
        ]

    def of(self, shard: int) -> list[BackupEntry]:
        """The shard's places."""
        return [entry for entry in self.entries if entry.shard == shard]

    # --- birth --------------------------------------------------------------------------------

    def fill(self, now: float) -> list[Effect]:
        """Start backups in the places that are empty, of shards that are served."""
        effects: list[Effect] = []
        for entry in self.entries:
            due = entry.state == EMPTY and entry.due <= now and entry.deaths <= self._restarts
            if due and self._servers[entry.shard].ready:
                entry.state = BACKUP.after(entry.state, "started")
                entry.heard = now
                effects.append(SpawnBackup(entry.number, entry.shard, entry.incarnation))
                effects.append(entry.changed("started", f"of shard {entry.shard}"))
        return effects

    def beat(self, event: ev.Heartbeat, now: float) -> list[Effect]:
        """A sign of life; one that counts something says that the backup has everything."""
        entry = self._known(event.id, event.incarnation)
        if entry is None:
            return []
        if entry.state == STARTING and not event.steps:
            return []  # how long it may take to be ready does not depend on these
        entry.heard = now
        entry.silence.heard(now)
        if entry.state == READY:
            return []
        entry.state = BACKUP.after(entry.state, "filled")
        entry.in_vain = 0
        return [entry.changed("ready", f"has all that server {entry.shard} has")]

    def _known(self, number: int, incarnation: int) -> BackupEntry | None:
        entry = self.entries[number] if 0 <= number < len(self.entries) else None
        if entry is None or entry.state == EMPTY or entry.incarnation != incarnation:
            return None
        return entry

    # --- death --------------------------------------------------------------------------------

    def died(self, event: ev.BackupDied, now: float) -> list[Effect]:
        """A backup's process is gone; its server need not wait for it."""
        entry = self._known(event.number, event.incarnation)
        if entry is None:
            return []
        return self._out(entry, "died", event.reason, now)

    def _out(
        self, entry: BackupEntry, state: str, why: str, now: float, *, blamed: bool = True
    ) -> list[Effect]:
        killed = KillBackup(entry.number, entry.shard, entry.incarnation, why)
        return [entry.changed(state, why), killed, *self._empties(entry, now, blamed=blamed)]

    def _empties(self, entry: BackupEntry, now: float, *, blamed: bool = True) -> list[Effect]:
        wait = 0.0
        if blamed and entry.state == STARTING:
            wait = self._settings.backoff_s * 2.0 ** min(entry.in_vain, 30)
            entry.in_vain += 1
        entry.state = BACKUP.after(entry.state, "empties")
        entry.due = now + min(wait, self._settings.backoff_max_s)
        entry.deaths += 1
        entry.incarnation += 1
        entry.silence.breaks_off()
        if entry.deaths <= self._restarts:
            return []
        return [entry.changed("put_aside", f"all {self._restarts} restarts are used up")]

    def forgive(self, now: float) -> None:
        """The scheduler itself was stopped: silence means nothing."""
        for entry in self.entries:
            entry.heard = now
            entry.silence.breaks_off()

    def look(self, now: float) -> list[Effect]:
        """Take the silent for dead."""
        effects: list[Effect] = []
        for entry in self.entries:
            ready = entry.state == READY
            allowed = self._watch.quiet_s(entry, now) if ready else self._settings.start_s
            quiet = now - entry.heard
            if entry.state != EMPTY and quiet > allowed:
                if ready:
                    entry.silence.took_for_dead(quiet)
                what = "no sign of life for" if ready else "not ready after"
                why = f"{what} {quiet:.1f} s (allowed: {allowed:.3g} s)"
                effects.append(entry.changed("suspected", why))
                effects += self._out(entry, "died", why, now)
        return effects

    # --- promotion ----------------------------------------------------------------------------

    def replace(self, server: ServerEntry, now: float) -> list[Effect]:
        """Promote a ready backup in the place of a server that is gone; nothing if none is ready.

        The others that are not ready go: what was on its way to them went with the server.
        """
        places = self.of(server.shard)
        chosen = next((entry for entry in places if entry.state == READY), None)
        effects: list[Effect] = []
        for entry in places:
            if entry.state == STARTING:
                why = "its server is gone before it was filled"
                effects += self._out(entry, "died", why, now, blamed=False)
        if chosen is None:
            return effects
        server.succeeded(now, promoted=True)
        backup = chosen.incarnation
        why = f"server {server.shard} is gone, and it has everything that was acknowledged"
        effects += [
            Decided(f"backup {chosen.number} becomes server {server.shard}", why),
            Promote(server.shard, server.incarnation, chosen.number, backup),
            chosen.changed("left", f"becomes server {server.shard}"),
            server.changed("started", f"backup {chosen.number} takes over"),
        ]
        return effects + self._empties(chosen, now)
