"""From the command to the first applied update: ``tardygrad train mnist-async``, four workers.

The command runs as it is typed, on all the data. The run knows when its first update was applied
(``first_update_s`` counts from the start of the process); once there are updates it is stopped as
Ctrl-C would, which saves the rest of the epoch.
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

LONGEST_S = 120.0
_PREEMPTED = 75


def measure(options: Sequence[str] = ()) -> float:
    """Seconds to the first update.

    Raises:
        RuntimeError: the run failed, or there was no update within two minutes.
    """
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "run"
        command = [sys.executable, "-m", "tardygrad", "train", "mnist-async", "--quiet"]
        command += ["--set", "epochs=1", "--out", str(out), *options]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + LONGEST_S
        try:
            while process.poll() is None and not _has_updates(out / "metrics.jsonl"):
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
        return first_update_s((out / "metrics.jsonl").read_text(encoding="utf-8"))


def _has_updates(metrics: Path) -> bool:
    if not metrics.exists():
        return False
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    events = [json.loads(line) for line in lines if line.endswith("\n")]
    return any(event["event"] == "progress" and event["samples"] for event in events)


def first_update_s(metrics: str) -> float:
    """What the last ``run_end`` of metrics.jsonl says."""
    events = [json.loads(line) for line in metrics.splitlines()]
    return float([e["first_update_s"] for e in events if e["event"] == "run_end"][-1])


def main() -> None:
    """Print one JSON object: seconds."""
    print(json.dumps({"value": measure()}))


if __name__ == "__main__":
    main()
