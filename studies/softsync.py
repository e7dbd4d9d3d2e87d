"""Does dividing the rate by the staleness rescue softsync at the synchronous rate?"""

from __future__ import annotations

from studies.base import RATES, Arm, Study

WORKERS, EPOCHS = 32, 10
BASELINE = "sync_sgd"


def _arms() -> list[Arm]:
    cluster = {"workers": WORKERS, "epochs": EPOCHS}
    arms = [Arm(series=BASELINE, at="", settings={**cluster, "method": {"name": BASELINE}})]
    for series, policy in (("softsync", "constant"), ("softsync, alpha0/tau", "inverse")):
        for n in (1, 2, 8, 32):
            method = {
                "name": "softsync",
                "admission": {"name": "collect", "updates": WORKERS // n},
                "staleness": {"name": policy},
            }
            settings = {**cluster, "method": method}
            arms.append(Arm(series=series, at=f"n = {n}", settings=settings, anchor=BASELINE))
    return arms


STUDY = Study(
    name="softsync",
    question="Does dividing the rate by the staleness rescue softsync at the synchronous rate?",
    source="Zhang, Gupta, Lian & Liu, IJCAI 2016, arXiv 1511.05950",
    x="n of n-softsync",
    arms=tuple(_arms()),
    rates=RATES,
)
