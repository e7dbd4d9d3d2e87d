"""The main process's part of backups: it starts and ends them, and makes servers of them.

A backup becomes a server only when its predecessor's end was reported: until then the message that
tells it so is kept back, so no shard has two writers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from tardygrad.engines import wire
from tardygrad.engines.server_log import ServerLog
from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev

if TYPE_CHECKING:
    from tardygrad.engines.processes import Run


class _Promotion(NamedTuple):
    predecessor: int
    backup: ev.Address
    incarnation: int
    message: ev.Promoted
    bell: str


class Backups:
    """What the main process does for backups.

    Args:
        run: the main process's side of the run.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._replicas = run.job.config.replicas
        self._logs = [
            ServerLog(run.directory, shard, self._replicas, create=True)
            for shard in range(len(run.job.ranges) if self._replicas else 0)
        ]
        self._promotions: list[_Promotion] = []
        self.actions: dict[type, Callable[[Any], None]] = {
            ef.SpawnBackup: self._spawn,
            ef.KillBackup: self._kill,
            ef.Promote: self._promote,
        }

    def _spawn(self, effect: ef.SpawnBackup) -> None:
        address = ("backup", effect.number)
        self._run.later(address, effect.incarnation, 0.0, effect._asdict())

    def _kill(self, effect: ef.KillBackup) -> None:
        self._run.kill(("backup", effect.number), effect.incarnation)
        self._bar(effect.shard, effect.number, effect.incarnation)

    def _bar(self, shard: int, number: int, incarnation: int) -> None:
        self._logs[shard].bar(number - shard * self._replicas, incarnation)

    def _promote(self, effect: ef.Promote) -> None:
        run = self._run
        server: ev.Address = ("server", effect.shard)
        backup: ev.Address = ("backup", effect.number)
        predecessor, successor = run.members[server], run.members.pop(backup)
        self._bar(effect.shard, effect.number, effect.backup)
        known_as = successor.incarnation
        successor.become("server", effect.incarnation)
        run.members[server] = successor
        if successor.pid not in run.by_pid:
            why = "it was gone before it took over"
            died = ev.ServerDied(effect.shard, effect.incarnation, why, fatal=False)
            run.supervisor.tell(died)
            return
        run.by_pid[successor.pid] = server
        promoted = ev.Promoted(effect.incarnation)
        bell = f"backup-{effect.number}"
        self._promotions.append(_Promotion(predecessor.pid, backup, known_as, promoted, bell))
        self.look()

    def look(self) -> None:
        """Tell those whose predecessors are gone."""
        waiting = []
        for promotion in self._promotions:
            if promotion.predecessor in self._run.by_pid:
                waiting.append(promotion)
                continue
            message = wire.encode(promotion.message)
            if self._run.gate.send(promotion.backup, promotion.incarnation, message):
                self._run.ringer.ring(promotion.bell)
            else:
                # What it says of itself comes by another way than its signs of life.
                waiting.append(promotion)
        self._promotions = waiting
