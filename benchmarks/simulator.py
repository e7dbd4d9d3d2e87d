"""Events per second of the simulator: a null model and a thousand workers."""

from __future__ import annotations

import json
import time

from tardygrad.engines.inline import InlineEngine
from tardygrad.testing.simulation import MemoryStore, SilentObserver, null_job

WORKERS = 1000


def main() -> None:
    """Print one JSON object."""
    job = null_job(workers=WORKERS, servers=1, epochs=1, samples=64 * 100_000)
    engine = InlineEngine()
    began = time.perf_counter()
    engine.run(job, SilentObserver(), MemoryStore())
    print(json.dumps({"value": engine.events / (time.perf_counter() - began)}))


if __name__ == "__main__":
    main()
