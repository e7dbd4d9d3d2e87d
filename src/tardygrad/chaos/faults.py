"""Does to a run's processes what was planned, and undoes what has an end.

The disk. The folder ``checkpoints`` of the run loses the right to be written into, so that the
kernel refuses every new checkpoint of it (EACCES) while older ones can still be read. The right
does not bind root, so a run under chaos is started without the capability to override it
(``without_override``); nothing in tardygrad knows of any of this.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tardygrad.chaos import processes
from tardygrad.chaos.plan import VICTIMS, Planned
from tardygrad.chaos.processes import Process

_DROP_FROM_BOUNDING_SET = 24  # prctl
_OVERRIDE_PERMISSIONS = 1  # capability
_DUTY_S = 0.05
_DEATH_S = 5.0


def without_override() -> None:
    """Give up the capability to write where it is not allowed; for what is executed next (root)."""
    if os.getuid() == 0:
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(_DROP_FROM_BOUNDING_SET, _OVERRIDE_PERMISSIONS, 0, 0, 0)


def can_refuse_writes() -> bool:
    """Whether a process that is started so is really refused."""
    script = "import sys, pathlib; pathlib.Path(sys.argv[1], 'x').mkdir()"
    with tempfile.TemporaryDirectory(prefix="tardygrad-chaos-") as place:
        Path(place).chmod(0o555)
        try:
            done = subprocess.run(
                [sys.executable, "-S", "-c", script, place],
                preexec_fn=without_override, capture_output=True, check=False,
            )  # fmt: skip
            return done.returncode != 0
        finally:
            Path(place).chmod(0o755)


class Hand:
    """Carries faults out; ``main`` is the run's main process."""

    def __init__(self, main: int, run_directory: Path) -> None:
        self._main = main
        self._checkpoints = run_directory / "checkpoints"
        self._mode: int | None = None
        self._held: dict[int, tuple[str, Process, float, float]] = {}
        self._disk_until = 0.0

    def candidates(self, kind: str) -> dict[str, Process]:
        """Who may be met by a fault of this kind now: there, and not held by another."""
        victims = VICTIMS[kind]
        held = {name for name, *_ in self._held.values()}
        return {
            name: process
            for name, process in sorted(processes.members(self._main).items())
            if name.partition("-")[0] == victims and name not in held
        }

    def do(self, planned: Planned) -> str | None:
        """Carry out a fault; whom it met, or None if nobody of the kind was there."""
        if planned.kind == "disk":
            return self._refuse_writes(planned.length_s)
        choice = self.candidates(planned.kind)
        if not choice:
            return None
        name = list(choice)[int(planned.pick * len(choice))]
        process = choice[name]
        if planned.kind in ("stop", "slow"):
            now = time.monotonic()
            if not processes.send(process, signal.SIGSTOP):
                return None
            self._held[planned.number] = (name, process, now, now + planned.length_s)
            return name
        if not processes.send(process, signal.SIGKILL):
            return None
        deadline = time.monotonic() + _DEATH_S
        while processes.lives(process) and time.monotonic() < deadline:
            time.sleep(0.0005)
        return name

    def _refuse_writes(self, length_s: float) -> str | None:
        if self._mode is not None:
            return None
        try:
            self._mode = stat.S_IMODE(self._checkpoints.stat().st_mode)
            self._checkpoints.chmod(self._mode & ~0o222)
        except OSError:
            self._mode = None
            return None
        self._disk_until = time.monotonic() + length_s
        return "checkpoints"

    def go_on(self, slow: frozenset[int]) -> list[int]:
        """Undo what is over, and move on those that are slowed; the numbers of what ended now."""
        now = time.monotonic()
        ended = []
        for number, (_, process, since, until) in list(self._held.items()):
            # One that was taken for dead has been killed meanwhile, and is not held any more.
            if now >= until or not processes.lives(process):
                processes.send(process, signal.SIGCONT)
                del self._held[number]
                ended.append(number)
            elif number in slow:
                runs = int((now - since) / _DUTY_S) % 2
                processes.send(process, signal.SIGCONT if runs else signal.SIGSTOP)
        if self._mode is not None and now >= self._disk_until:
            self._allow_writes()
        return ended

    def _allow_writes(self) -> None:
        if self._mode is not None:
            with contextlib.suppress(OSError):
                self._checkpoints.chmod(self._mode)
        self._mode = None

    def calm(self) -> None:
        """Undo everything that has an end."""
        for _, process, _, _ in self._held.values():
            processes.send(process, signal.SIGCONT)
        self._held.clear()
        self._allow_writes()
