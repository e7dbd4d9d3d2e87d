"""How long may the period between two exchanges be, with a spring and without?"""

from __future__ import annotations

from typing import Any

from studies.base import RATES, Arm, Study

WORKERS = 4
PERIODS = (1, 4, 16, 64)

BASELINE = "sync_sgd"

METHODS: dict[str, dict[str, Any]] = {
    "easgd": {"name": "easgd", "alpha": 0.9 / WORKERS},
    "downpour": {"name": "async_sgd"},
}


def _arms() -> list[Arm]:
    cluster = {"workers": WORKERS}
    arms = [Arm(series=BASELINE, at="", settings={**cluster, "method": {"name": BASELINE}})]
    for series, method in METHODS.items():
        for period in PERIODS:
            settings = {**cluster, "method": {**method, "exchange_period": period}}
            arms.append(Arm(series=series, at=str(period), settings=settings))
    return arms


STUDY = Study(
    name="elastic",
    question="How long may the period between two exchanges be, with a spring and without?",
    source="Zhang, Choromanska & LeCun, NIPS 2015, arXiv 1412.6651",
    x="steps between two exchanges",
    arms=tuple(_arms()),
    rates=RATES,
)
