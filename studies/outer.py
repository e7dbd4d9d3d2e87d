"""What does outer momentum do when deltas come one by one, from workers of uneven speed?"""

from __future__ import annotations

from typing import Any

from studies import problem
from studies.base import OUTER_RATE, Arm, Study

SPEEDS = (1.0, 1.3, 2.6, 5.7)
"""How many times as long as the fastest each worker takes for a step."""
PERIOD = 16
BASELINE = "diloco"


def _sync(**outer: Any) -> dict[str, Any]:
    return {"name": "diloco", "outer": {"class": "SGD", "arguments": outer}}


def _async(momentum_every: int, momentum: float) -> dict[str, Any]:
    outer = {"class": "SGD", "arguments": {"momentum": momentum}}
    return {"name": "async_diloco", "momentum_every": momentum_every, "outer": outer}


METHODS: dict[str, dict[str, Any]] = {
    BASELINE: _sync(momentum=0.9, nesterov=True),
    "diloco without momentum": _sync(momentum=0.0, nesterov=False),
    "async, momentum at each arrival": _async(1, 0.9),
    "async, momentum at every 4th": _async(4, 0.9),
    "async, every 4th, steps by speed": {**_async(4, 0.9), "balance": {"name": "steps"}},
    "async without momentum": _async(1, 0.0),
}


def _arm(series: str) -> Arm:
    settings = {
        "method": {"exchange_period": PERIOD, **METHODS[series]},
        "workers": len(SPEEDS),
        "epochs": 8,
        "simulation": {"compute": [problem.step(0.02 * slower) for slower in SPEEDS]},
    }
    anchor = None if series == BASELINE else BASELINE
    return Arm(series=series, at="", settings=settings, rate_at=OUTER_RATE, anchor=anchor)


STUDY = Study(
    name="outer",
    question=(
        "What does outer momentum do when deltas come one by one, from workers of uneven speed?"
    ),
    source="Liu et al., arXiv 2401.09135",
    x="",
    arms=tuple(map(_arm, METHODS)),
    rates=(0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.4, 2.0),
    judged="seconds",
    picture="curves",
)
