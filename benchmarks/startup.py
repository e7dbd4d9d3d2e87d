"""From the command to the first applied update: ``tardygrad train mnist-async``, four workers.

The command runs as it is typed, on all the data. Once there are updates it is stopped as Ctrl-C
would, which saves the rest of the epoch. The run says when its first update was applied, but by a
clock that it starts itself, when Python is up. How late that is follows from the last event: its
``time_s`` by that clock, and the moment at which metrics.jsonl was written last.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tardygrad.metrics.sink import read

LONGEST_S = 120.0
_PREEMPTED = 75


def measure(options: Sequence[str] = ()) -> float:
    """Seconds from the command to the first update.

    Raises:
        RuntimeError: the run failed, or there was no update within two minutes.
    """
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "run"
        command = [sys.executable, "-m", "tardygrad", "train", "mnist-async", "--quiet"]
        command += ["--set", "epochs=1", "--out", str(out), *options]
        metrics = out / "metrics.jsonl"
        typed_s = time.time()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + LONGEST_S
        try:
            while process.poll() is None and not _has_updates(metrics):
                if time.monotonic() > deadline:
                    raise RuntimeError(f"no update within {LONGEST_S:g} s")
                time.sleep(0.2)
            process.send_signal(signal.SIGTERM)
            status = process.wait(LONGEST_S)
        finally:
            process.kill()
            process.wait()
        if status not in (0, _PREEMPTED):
            raise RuntimeError(f"{' '.join(command)} ended with status {status}")
        return first_update_s(list(read(metrics)), metrics.stat().st_mtime - typed_s)


def _has_updates(metrics: Path) -> bool:
    if not metrics.exists():
        return False
    return any(event["event"] == "progress" and event["samples"] for event in read(metrics))


def first_update_s(events: Sequence[dict[str, Any]], written_s: float) -> float:
    """Seconds from the command to the first update.

    Args:
        events: of a whole run.
        written_s: seconds from the command to the moment when the last of them was written.
    """
    end = events[-1]
    if end["event"] != "run_end":
        raise RuntimeError(f"the run's last event is {end['event']}, expected run_end")
    clock_started_s = written_s - end["time_s"]
    return float(clock_started_s + end["first_update_s"])


def main() -> None:
    """Print one JSON object: seconds."""
    print(json.dumps({"value": measure()}))


if __name__ == "__main__":
    main()
