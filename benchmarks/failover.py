"""How long a shard stands still when its server is killed and a backup takes over."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tardygrad
from benchmarks import memory
from tardygrad.protocol import trace

PATIENCE_S = 30.0
SERVER = "tg server-0"


class Killer(tardygrad.Callback):
    """Kills a server so many times, and waits each time for the next update of its shard."""

    def __init__(self, run: Path, shards: int, times: int) -> None:
        self.seconds: list[float] = []
        self._run, self._size, self._times = run, trace.record_size(shards), times
        self._thread: threading.Thread | None = None
        self.problem = ""

    def on_step_end(self, samples: int, logs: dict[str, Any]) -> None:
        """Begin when training has begun; stop the run at the end."""
        if samples and self._thread is None:
            self._thread = threading.Thread(target=self._kill_all, daemon=True)
            self._thread.start()
        self.stop_training = self._thread is not None and not self._thread.is_alive()

    def _kill_all(self) -> None:
        for number in range(self._times):
            ready = functools.partial(self._ready, number)
            if not (self._await(ready) and self._kill()):
                self.problem = f"no backup took over the {number + 1}. time"
                return

    def _kill(self) -> bool:
        server, *_ = memory.processes(os.getpid(), SERVER)
        path = self._run / "trace" / "shard-000.trace"
        before = path.stat().st_size
        began = time.monotonic()
        os.kill(server, signal.SIGKILL)
        goes_on = self._await(lambda: self._goes_on(path, before))
        self.seconds.append(time.monotonic() - began)
        return goes_on

    def _await(self, condition: Callable[[], bool]) -> bool:
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            if condition():
                return True
            time.sleep(0.001)
        return False

    def _ready(self, before: int) -> bool:
        """Whether a backup has become ready once more."""
        lines = (self._run / "metrics.jsonl").read_text("utf-8").splitlines()
        time.sleep(0.02)
        events = [json.loads(line) for line in lines if '"backup"' in line]
        return sum(e["state"] == "ready" for e in events) > before

    def _goes_on(self, path: Path, before: int) -> bool:
        """Whether an update was applied behind the record of the promotion."""
        with path.open("rb") as file:
            file.seek(before)
            tail = file.read()
        kinds = [tail[at] for at in range(0, len(tail) - self._size + 1, self._size)]
        if trace.PROMOTED not in kinds:
            return False
        return trace.APPLIED in kinds[kinds.index(trace.PROMOTED) :]


def failover(document: dict[str, Any], times: int) -> list[float]:
    """Seconds from each death to the shard's next update.

    Raises:
        RuntimeError: a backup did not take over.
    """
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory) / "run"
        killer = Killer(run, document["servers"], times)
        tardygrad.train(recipe=document, out=run, quiet=True, callbacks=[killer])
    if killer.problem:
        raise RuntimeError(killer.problem)
    return killer.seconds


def main() -> None:
    """Print one JSON object: the longest failover of so many."""
    document, times = json.loads(sys.argv[1]), int(sys.argv[2])
    seconds = failover(document, times)
    print(json.dumps({"value": max(seconds), "all": seconds}))


if __name__ == "__main__":
    main()
