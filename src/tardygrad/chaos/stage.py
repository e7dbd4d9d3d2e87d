"""One run in a process of its own, with or without chaos, watched from outside.

The main process is never a victim, and whoever watches is not in it: a run that hangs, crashes or
leaks cannot take its judge along. All moments are in the run's own time (``time_s`` of its events):
both processes read the system's one monotonic clock, and the run is told where to count from.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tardygrad.chaos import processes
from tardygrad.chaos.faults import Hand, without_override
from tardygrad.chaos.leaks import MARK, leaks
from tardygrad.chaos.plan import Planned
from tardygrad.chaos.recovery import Fault, Recoveries
from tardygrad.chaos.tails import MetricsTail, TraceTail
from tardygrad.errors import TrainingFailed

_LOOK_S = 0.004
_EVENTS_S = 0.05
_PROCESSES_S = 1.0
_STILL_S = 180.0
_PAUSE_S = 1.0
_LEAVE_S = 60.0

Told = Callable[[float, str], None]
"""Called with a moment of the run and what happened."""


@dataclass(frozen=True)
class Request:
    """What to train: a new run of ``config`` in ``out``, or, without one, the run there resumed."""

    out: Path
    config: Mapping[str, Any] | None
    shards: int
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Watched:
    """What was seen of a run.

    Attributes:
        status: exit status of its main process.
        said: the last line that it said on standard error.
        events: those of this stretch of ``metrics.jsonl``.
        faults: what was done.
        skipped: faults that found nobody.
        recoveries: the questions and their answers.
        memory: bytes of each process (name, number) over the run's time.
        leaks: what is left.
        processes: how many there were in all.
        paused_s: for how long the conductor itself stood still: it measured nothing then.
        chaos: when the first fault was due, and when the time of chaos was over.
    """

    status: int
    said: str
    events: list[dict[str, Any]]
    faults: list[Fault]
    skipped: list[Planned]
    recoveries: Recoveries
    memory: dict[tuple[str, int], list[tuple[float, int]]]
    leaks: list[str]
    processes: int
    paused_s: float
    chaos: tuple[float, float]

    @property
    def end(self) -> dict[str, Any]:
        """The fields of ``run_end``; none if the run did not get there."""
        return next((e for e in reversed(self.events) if e["event"] == "run_end"), {})


class Stage:
    """A run from its start to its end; ``play`` it once."""

    def __init__(self, request: Request, tell: Told) -> None:
        self._request, self._tell = request, tell
        self._mark = secrets.token_hex(8)
        self._temporary = Path(tempfile.mkdtemp(prefix="tardygrad-chaos-"))
        self._metrics = MetricsTail(request.out / "metrics.jsonl")
        self._before_s = max((e["time_s"] for e in self._metrics.new()), default=0.0)
        self._origin = time.monotonic()
        self._traces = [
            TraceTail(request.out / "trace" / f"shard-{n:03d}.trace", n, request.shards)
            for n in range(request.shards)
        ]
        for tail in self._traces:
            tail.skip()
        self._errors = self._temporary.with_suffix(".log")
        self._process = self._start()
        self._hand = Hand(self._process.pid, request.out)
        self.events: list[dict[str, Any]] = []
        self._recoveries = Recoveries(request.shards)
        self._faults: list[Fault] = []
        self._skipped: list[Planned] = []
        self._memory: dict[tuple[str, int], list[tuple[float, int]]] = {}
        self._pids: set[int] = set()
        self._reported = 0
        self._began_s: float | None = None
        self._start_event: dict[str, Any] | None = None
        self._newest = 0
        self._looked = time.monotonic()
        self._paused_s = 0.0
        self._moved = (self._looked, -1)
        self._due_events = self._due_processes = 0.0

    def _start(self) -> subprocess.Popen[bytes]:
        request = {
            "out": str(self._request.out.absolute()),
            "config": self._request.config,
            "overrides": dict(self._request.overrides),
            "started": self._origin,
            "folder": str(Path.cwd()),
        }
        environment = {
            **os.environ, MARK: self._mark, "TMPDIR": str(self._temporary),
            "PYTHONPATH": os.pathsep.join([str(p) or str(Path.cwd()) for p in sys.path]),
        }  # fmt: skip
        with self._errors.open("wb") as errors:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "tardygrad.chaos.host", json.dumps(request)],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors,
                env=environment, start_new_session=True, preexec_fn=without_override,
            )  # fmt: skip

    # --- playing ------------------------------------------------------------------------------

    def play(self, plan: Sequence[Planned] = (), chaos_s: float = 0.0) -> Watched:
        """Watch the run to its end, and meanwhile do what the plan says.

        Args:
            plan: the faults; their moments count from when every worker was ready.
            chaos_s: how long the time of chaos is.
        """
        waiting = list(plan)
        slow = frozenset(fault.number for fault in plan if fault.kind == "slow")
        while self._process.poll() is None:
            self._look()
            if self._began_s is not None:
                if self._is_trained():
                    waiting.clear()
                while waiting and self.now() >= self._began_s + waiting[0].at_s:
                    self._do(waiting.pop(0))
                self._end(self._hand.go_on(slow))
            time.sleep(_LOOK_S)
        self._hand.calm()
        self._look(last=True)
        began = self.now() if self._began_s is None else self._began_s
        return self._watched((began, min(began + chaos_s, self.now())))

    def play_until(self, done: Callable[[Sequence[Mapping[str, Any]]], bool]) -> Watched:
        """Watch the run until ``done`` says so of its events, then stop it in good order."""
        asked = False
        while self._process.poll() is None:
            self._look()
            if not asked and done(self.events):
                self._process.terminate()
                asked = True
            time.sleep(_EVENTS_S)
        self._look(last=True)
        return self._watched((0.0, 0.0))

    def _is_trained(self) -> bool:
        """Whether all is booked: whatever is done now meets nobody at work."""
        start, newest = self._start_event, self._newest
        return start is not None and newest >= start["epochs"] * start["samples_per_epoch"]

    def now(self) -> float:
        """Seconds in the run's own time."""
        return self._before_s + time.monotonic() - self._origin

    def close(self) -> None:
        """Undo what was done, end the run (in good order if there is time), and tidy up."""
        self._hand.calm()
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_LEAVE_S)
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._errors.unlink(missing_ok=True)

    def _watched(self, chaos: tuple[float, float]) -> Watched:
        # The zygote ends its children when the main process is gone; that takes a moment.
        deadline = time.monotonic() + _LEAVE_S / 6
        while True:
            left = leaks(
                self._request.out, self._process.pid, self._pids, self._mark, self._temporary
            )
            if not left or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        lines = self._errors.read_text(errors="replace").strip().splitlines()
        return Watched(
            self._process.returncode, lines[-1] if lines else "", self.events, self._faults,
            self._skipped, self._recoveries, self._memory, left, len(self._pids) + 1,
            self._paused_s, chaos,
        )  # fmt: skip

    # --- looking ------------------------------------------------------------------------------

    def _look(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if now - self._looked > _PAUSE_S:
            # Whoever stopped the conductor, or the machine, may have stopped the run too.
            self._paused_s += now - self._looked
            self._moved = (now, self._moved[1])
        self._looked = now
        for shard, tail in enumerate(self._traces):
            for record in tail.new():
                self._recoveries.record(shard, record, self.now())
        if last or now >= self._due_events:
            self._due_events = now + _EVENTS_S
            self._take_events()
        if now >= self._due_processes:
            self._due_processes = now + _PROCESSES_S
            self._take_processes()
            self._check_movement(now)
        for recovery in self._recoveries.found[self._reported :]:
            self._reported += 1
            fields = {**recovery._asdict(), "seconds": round(recovery.seconds, 6)}
            self._note("recovery", **fields)

    def _take_events(self) -> None:
        new = self._metrics.new()
        self.events += new
        for event in new:
            self._recoveries.event(event)
            if event["event"] == "run_start":
                self._start_event = event
            elif event["event"] == "progress":
                self._newest = event["samples"]
        if new and self._began_s is None and self._start_event is not None:
            ready = {
                event["id"]
                for event in self.events
                if event["event"] == "member" and event["kind"] == "worker"
                and event["state"] == "ready"
            }  # fmt: skip
            if len(ready) == self._start_event["workers"]:
                self._began_s = self.now()

    def _take_processes(self) -> None:
        at_s = self.now()
        found = [("main", processes.look(self._process.pid))]
        found += [(p.name.removeprefix("tg "), p) for p in processes.below(self._process.pid)]
        for name, process in found:
            if process is not None:
                self._pids.add(process.pid)
                size = processes.memory_bytes(process)
                if size is not None:
                    self._memory.setdefault((name, process.pid), []).append((at_s, size))

    def _check_movement(self, now: float) -> None:
        if len(self.events) != self._moved[1]:
            self._moved = (now, len(self.events))
        elif now - self._moved[0] > _STILL_S:
            os.kill(self._process.pid, signal.SIGKILL)
            raise TrainingFailed(
                f"the run {self._request.out} told nothing for {_STILL_S:g} s and was killed; its "
                "events.log says what it did last"
            )

    # --- doing --------------------------------------------------------------------------------

    def _do(self, planned: Planned) -> None:
        at_s = self.now()
        whom = self._hand.do(planned)
        if whom is None:
            self._skipped.append(planned)
            self._tell(at_s, f"{planned.kind}: nobody there")
            return
        # What the dead had done before is no answer.
        self._look()
        fault = Fault(planned.number, planned.kind, whom, at_s, at_s + planned.length_s)
        self._faults.append(fault)
        self._recoveries.began(fault)
        self._note(
            "fault", number=fault.number, kind=fault.kind, whom=whom, at_s=round(at_s, 6),
            length_s=round(planned.length_s, 6),
        )  # fmt: skip
        lasts = f" for {planned.length_s:.1f} s" if planned.length_s else ""
        self._tell(at_s, f"{planned.kind} {whom}{lasts}")

    def _end(self, numbers: Sequence[int]) -> None:
        for fault in self._faults:
            if fault.number in numbers:
                fault.until_s = self.now()

    def _note(self, event: str, **fields: Any) -> None:
        """Have the run write it down; one that is over has no more to write."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            line = json.dumps({"event": event, **fields})
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
