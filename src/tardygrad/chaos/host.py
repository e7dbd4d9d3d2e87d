"""The run under chaos: trains as ``tardygrad train`` does, in a process of its own.

The conductor tells it on standard input, a JSON object a line, what it did and what it saw, and
that goes into the run's ``metrics.jsonl`` as events. When the conductor is gone the run stops in
good order.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from pathlib import Path
from typing import Any

from tardygrad import training
from tardygrad.callbacks import Callback
from tardygrad.errors import TardygradError


class Told(Callback):
    """Writes what the conductor says into the run's record."""

    def on_train_begin(self) -> None:
        """The record is open from now on."""
        threading.Thread(target=self._listen, daemon=True, name="chaos").start()

    def _listen(self) -> None:
        for line in sys.stdin:
            fields: dict[str, Any] = json.loads(line)
            # Once the run is over its record is closed.
            with contextlib.suppress(ValueError):
                self.emit(fields.pop("event"), **fields)
        self.stop_training = True


def main() -> int:
    """Train as the first argument says; returns the exit status."""
    request = json.loads(sys.argv[1])
    out, started = Path(request["out"]), float(request["started"])
    sys.path.append(request["folder"])
    common: dict[str, Any] = {
        "quiet": True, "command_started": started, "callbacks": [Told()],
    }  # fmt: skip
    try:
        if request["config"] is None:
            result = training.resume(out, overrides=request["overrides"], **common)
        else:
            result = training.run(training.resolve(request["config"]), out=out, **common)
    except TardygradError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if result.outcome == "failed":
        print(result.reason, file=sys.stderr)
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main())
