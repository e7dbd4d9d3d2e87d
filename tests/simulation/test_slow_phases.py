"""Faults that come back: a worker that is slow for a while, again and again."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tardygrad.config import Fault
from tardygrad.engines.inline import InlineEngine
from tardygrad.errors import ConfigError
from tardygrad.testing.simulation import MemoryStore, SilentObserver, null_job


def computed_s(fault: dict[str, Any] | None, steps: int, **method: Any) -> float:
    """Seconds that one worker takes to compute so many steps of a second."""
    faults = [] if fault is None else [fault]
    job = null_job(
        workers=1, samples=8 * steps, batch_size=8, epochs=1, fragment_batches=steps,
        method={"name": "async_sgd", "in_flight": 0, **method}, failure={"lease_s": 1000.0},
        simulation={"compute": 1.0, "network": 0.0, "control": 0.0, "apply": 0.0, "faults": faults},
    )  # fmt: skip
    end = InlineEngine().run(job, SilentObserver(), MemoryStore())
    return float(end.figures["statistics"].totals("computing_s"))


def test_every_phase_costs_its_factor() -> None:
    slow = {"kind": "slow", "target": "worker-0", "factor": 3.0, "at_s": 2.0, "for_s": 0.5}
    assert computed_s(None, 10) == 10.0
    assert computed_s(slow, 10) == 12.0
    # Steps begin at 0, 1, 2 (slow, to 5), 5, 6, 7 (slow, to 10), 10, 11, 12 (slow, to 15), 15.
    assert computed_s({**slow, "every_s": 5.0}, 10) == 16.0


def test_the_steps_of_an_exchange_are_slow_or_not_each_for_itself() -> None:
    slow = {
        "kind": "slow", "target": "worker-0", "factor": 3.0, "at_s": 2.0, "for_s": 0.5,
        "every_s": 5.0,
    }  # fmt: skip
    for steps in (10, 16, 32):
        alone = computed_s(slow, steps)
        assert alone > steps
        assert computed_s(slow, steps, exchange_period=16) == alone


def test_each_pass_over_a_batch_is_a_step() -> None:
    local = {"name": "local_sgd", "exchange_period": 4}
    assert computed_s(None, 16, **local) == 16.0
    assert computed_s(None, 16, **local, passes=3) == 48.0
    slow = {"kind": "slow", "target": "worker-0", "factor": 2.0, "at_s": 10.0}
    assert computed_s(slow, 16, **local, passes=3) == 10.0 + 2 * 38.0


@settings(deadline=None)
@given(st.floats(0, 100), st.floats(0.01, 10), st.floats(0.01, 0.99), st.integers(0, 50))
def test_phases_are_as_long_as_they_say(
    at_s: float, every_s: float, share: float, phase: int
) -> None:
    fault = Fault(
        kind="slow",
        target="worker-0",
        factor=2.0,
        at_s=at_s,
        for_s=share * every_s,
        every_s=every_s,
    )
    begins = at_s + phase * every_s
    assert fault.on(begins + 0.5 * share * every_s)
    assert not fault.on(begins + (0.5 + 0.5 * share) * every_s)
    assert not fault.on(at_s - 0.001)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"kind": "crash", "target": "worker-0", "every_s": 1.0}, "a crash has no every_s"),
        ({"kind": "hang", "target": "worker-0", "for_s": 0.1, "every_s": 1.0}, "list one fault"),
        ({"kind": "slow", "target": "worker-0", "every_s": 1.0}, "shorter for_s, got None"),
        ({"kind": "slow", "target": "worker-0", "for_s": 1, "every_s": 1.0}, "after it has ended"),
    ],
)
def test_mistakes_are_told(fault: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        null_job(simulation={"faults": [fault]})
