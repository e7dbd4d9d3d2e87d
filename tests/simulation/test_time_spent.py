"""A simulated worker's time: it computes, communicates or waits, and nothing is left over."""

from __future__ import annotations

from typing import Any

import pytest

from tardygrad.engines.inline import InlineEngine
from tardygrad.testing.simulation import MemoryStore, SilentObserver, null_job


def spent(**settings: Any) -> tuple[list[dict[str, Any]], float]:
    job = null_job(
        workers=2, samples=2 * 8 * 20, batch_size=8, epochs=1, fragment_batches=5, **settings
    )
    engine = InlineEngine()
    end = engine.run(job, SilentObserver(lambda: engine.now), MemoryStore())
    return end.figures["statistics"].workers(1.0), end.figures["seconds"]


def test_who_is_fast_waits_for_who_is_slow() -> None:
    simulation = {"compute": [0.1, 0.3], "network": 0.01, "control": 0.0, "apply": 0.0}
    method = {"name": "async_sgd", "in_flight": 0, "admission": {"name": "quorum"}}
    (fast, slow), seconds = spent(simulation=simulation, method=method)
    assert fast["computing_s"] == pytest.approx(2.0) and slow["computing_s"] == pytest.approx(6.0)
    # A round of the slow one: a step, the update and its answer (it waits), the pull and the
    # parameters (it communicates).
    assert slow["waiting_s"] == pytest.approx(20 * 0.02, abs=0.05)
    assert slow["communicating_s"] == pytest.approx(20 * 0.02, abs=0.03)
    # The pull of the fast one is held back until the slow one has pushed.
    assert fast["waiting_s"] == pytest.approx(20 * 0.22, abs=0.5)
    for worker in (fast, slow):
        total = sum(worker[f"{part}_s"] for part in ("computing", "waiting", "communicating"))
        assert total == pytest.approx(seconds, abs=0.6), "but for the last checkpoint and the start"


def test_a_long_step_is_spread_over_the_reports() -> None:
    job = null_job(
        workers=1, samples=8 * 10, batch_size=8, epochs=1, fragment_batches=10,
        simulation={"compute": 1.0, "network": 0.0, "control": 0.0, "apply": 0.0, "tick_s": 0.5},
        method={"name": "async_sgd", "exchange_period": 10}, failure={"lease_s": 1000.0},
    )  # fmt: skip
    engine = InlineEngine()
    told: list[tuple[float, float]] = []

    class Keeping(SilentObserver):
        def emit(self, event: str, **fields: Any) -> None:
            super().emit(event, **fields)
            if event == "progress":
                told.append((engine.now, fields["workers"][0]["computing_s"]))

    engine.run(job, Keeping(lambda: engine.now), MemoryStore())
    assert len(told) > 10
    for now, computing_s in told:
        assert computing_s == pytest.approx(min(now, 10.0), abs=1e-6)
