"""Balance in real processes: workers of uneven speed, and the replay is the run."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from real_runs import (
    SAMPLES,
    assert_exact,
    killing,
    settings,
)

import tardygrad

PAUSES_S = {"0": 0.002, "1": 0.004, "2": 0.012}


class Uneven(torch.nn.Module):
    """A small network, slower in some workers than in others."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(32, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(),
            torch.nn.Linear(16, 10),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            pause_s = PAUSES_S.get(os.environ.get("TARDYGRAD_WORKER", ""), 0.0)
            time.sleep(pause_s * len(x) / 32)
        return self.layers(x)


STOPS = {"name": "cut_off", "below": 2, "again": True, "stops": True}
SECTIONS: list[dict[str, Any]] = [
    {"name": "local_sgd", "exchange_period": 6, "balance": {"name": "steps"}},
    {
        "name": "diloco", "exchange_period": 2, "balance": {"name": "batch"},
        "admission": {"name": "quorum", "count": 2, "weights": "tokens"},
    },
    {"name": "async_sgd", "balance": {"name": "batch"}},
    {"name": "async_sgd", "mixing": 0.5, "exchange_period": 3, "staleness": STOPS},
]  # fmt: skip


def run(path: Path, section: dict[str, Any], **changes: Any) -> str:
    """Train, check the ledger and replay; the log."""
    document = settings(method=section, fragment_batches=8, **changes)
    del document["model"]
    result = tardygrad.train(Uneven, recipe=document, out=path, quiet=True)
    assert result.outcome == "done", result.reason
    assert_exact(path, epochs=document["epochs"], samples=SAMPLES)
    report = tardygrad.replay(path)
    assert report.matches, (report.expected, report.found)
    return (path / "events.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: f"{s['name']}-{'-'.join(s)}")
def test_uneven_workers_are_balanced_and_the_run_is_repeated(
    section: dict[str, Any], tmp_path: Path
) -> None:
    log = run(tmp_path / "run", section)
    words = {"steps": "% of the local steps", "batch": "batches merged", "": "stopped: staleness"}
    assert words[section.get("balance", {"name": ""})["name"]] in log


def test_a_balanced_run_under_fire_is_repeated(tmp_path: Path) -> None:
    path = tmp_path / "run"

    with killing(path, 2, worker=3, server=1):
        run(path, SECTIONS[0], epochs=12, checkpoint={"every_s": 0.3})
