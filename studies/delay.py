"""Do delay compensation and DANA hold where plain asynchronous SGD fails, as workers grow?"""

from __future__ import annotations

from typing import Any

from studies.base import RATES, Arm, Study

COUNTS = (4, 8, 16, 32)
MOMENTUM = 0.9


def _methods(workers: int) -> dict[str, tuple[dict[str, Any], float]]:
    """Series to the method's settings and its momentum."""
    momentum = {"optimizer": {"class": "SGD", "arguments": {"momentum": MOMENTUM}}}
    return {
        "sync_sgd": ({"name": "sync_sgd"}, 0.0),
        "async_sgd": ({"name": "async_sgd"}, 0.0),
        # A history deep enough for what is stalest; adaptive, with the paper's strength of 2.
        "dc_asgd": ({"name": "dc_asgd", "history": 2 * workers}, 0.0),
        "async_sgd with momentum": ({"name": "async_sgd", **momentum}, MOMENTUM),
        "dana": ({"name": "dana", "momentum": MOMENTUM}, MOMENTUM),
    }


def _arms() -> list[Arm]:
    return [
        Arm(
            series=series,
            at=str(workers),
            settings={"method": method, "workers": workers, "epochs": 4},
            momentum=momentum,
            anchor=f"{series}, {COUNTS[0]}" if workers != COUNTS[0] else None,
        )
        for workers in COUNTS
        for series, (method, momentum) in _methods(workers).items()
    ]


STUDY = Study(
    name="delay",
    question=(
        "Do delay compensation and DANA hold where plain asynchronous SGD fails, as workers grow?"
    ),
    source=(
        "Zheng et al., ICML 2017, arXiv 1609.08326; Hakimi, Barkai, Gabel & Schuster, "
        "arXiv 1907.11612"
    ),
    x="workers",
    arms=tuple(_arms()),
    # Nothing trained at 1 in any of the other studies.
    rates=RATES[:-1],
)
