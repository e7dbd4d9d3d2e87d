"""Who is how fast to an accuracy when one worker of eight is 5 times slower, and when none is?"""

from __future__ import annotations

from typing import Any

from studies import problem
from studies.base import RATES, Arm, Study

WORKERS = 8
EQUAL = "all equal"
CLUSTERS = {EQUAL: 1, "one slow": 5}

METHODS: dict[str, dict[str, Any]] = {
    "sync_sgd": {"name": "sync_sgd"},
    # Backup workers: who is late is not waited for, and what comes late is dropped.
    "7 of 8": {
        "name": "sync_sgd",
        "admission": {"name": "quorum", "count": 7},
        "staleness": {"name": "cut_off", "below": 1},
    },
    "rennala": {"name": "rennala", "admission": {"name": "collect", "updates": 8}},
    "ringmaster": {"name": "async_sgd", "staleness": {"name": "cut_off", "below": 16}},
    "ssp": {"name": "ssp", "consistency": {"name": "ssp", "bound": 3}},
    "async_sgd": {"name": "async_sgd"},
    "local_sgd": {"name": "local_sgd", "exchange_period": 8},
}


def _arm(series: str, at: str) -> Arm:
    compute = [problem.step()] * (WORKERS - 1) + [problem.step(0.02 * CLUSTERS[at])]
    settings = {
        "method": METHODS[series],
        "workers": WORKERS,
        "simulation": {"compute": compute},
    }
    # Nobody tunes anew because a machine has become slow.
    tuned_as = None if at == EQUAL else f"{series}, {EQUAL}"
    return Arm(series=series, at=at, settings=settings, tuned_as=tuned_as)


STUDY = Study(
    name="stragglers",
    question=(
        "Who is how fast to an accuracy when one worker of eight is five times slower, and when "
        "none is?"
    ),
    source=(
        "Chen et al., arXiv 1604.00981 (backup workers); Tyurin & Richtarik 2023, arXiv 2305.12387 "
        "(Rennala); arXiv 2501.16168 (Ringmaster); Ho et al., NIPS 2013 (SSP); Stich, "
        "arXiv 1805.09767 (local SGD)"
    ),
    x="cluster",
    arms=tuple(_arm(series, at) for at in CLUSTERS for series in METHODS),
    rates=RATES,
    judged="seconds",
)
