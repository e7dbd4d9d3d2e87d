"""Identities that leave no room for tolerance, and one that theory gives.

One worker that waits for each answer is the serial loop, bit for bit; the mean staleness of a
saturated cluster is n - 1 whatever the speeds; the same seed is the same run.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tardygrad.data.fragments import FragmentPlan, Permutations
from tardygrad.data.sources import ArraySource
from tardygrad.engines.base import RunEnd
from tardygrad.engines.inline import InlineEngine
from tardygrad.testing.simulation import MemoryStore, SilentObserver, null_job, torch_job

SAMPLES, BATCH, EPOCHS = 330, 16, 3


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 33), nn.ReLU(), nn.Linear(33, 5))


def data() -> ArraySource:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(SAMPLES, 12, generator=generator)
    return ArraySource(x, torch.randint(0, 5, (SAMPLES,), generator=generator))


def simulate(job: Any) -> RunEnd:
    return InlineEngine().run(job, SilentObserver(), MemoryStore())


def serial(optimizer: dict[str, Any], clip_norm: float | None, fragment_batches: int) -> nn.Module:
    """The loop as anybody would write it, over the same batches."""
    torch.manual_seed(0)
    model, source = network(), data()
    made = getattr(torch.optim, optimizer["class"])(model.parameters(), **optimizer["arguments"])
    plan = FragmentPlan(
        samples=SAMPLES, batch_size=BATCH, fragment_batches=fragment_batches, seed=0
    )
    order = Permutations(plan)
    for epoch in range(EPOCHS):
        for fragment in range(plan.fragments_per_epoch):
            for batch in range(plan.batches(fragment)):
                x, y = source.batch(order.indices(epoch, fragment, batch))
                made.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                if clip_norm is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
                made.step()
    return model


CASES = [
    ({"class": "SGD", "arguments": {"lr": 0.1}}, None),
    ({"class": "SGD", "arguments": {"lr": 0.05, "momentum": 0.9, "nesterov": True}}, None),
    ({"class": "SGD", "arguments": {"lr": 0.1}}, 0.5),
    ({"class": "Adam", "arguments": {"lr": 0.01}}, None),
    ({"class": "AdamW", "arguments": {"lr": 0.01, "weight_decay": 0.1}}, 1.0),
]


@pytest.mark.parametrize("servers", [1, 3])
@pytest.mark.parametrize(("optimizer", "clip_norm"), CASES)
def test_one_worker_without_staleness_is_the_serial_loop(
    optimizer: dict[str, Any], clip_norm: float | None, servers: int
) -> None:
    torch.set_num_threads(1)
    method = {"optimizer": optimizer, "clip_norm": clip_norm, "in_flight": 0}
    job = torch_job(
        network, data(), workers=1, servers=servers, epochs=EPOCHS, batch_size=BATCH,
        fragment_batches=4, method=method,
    )  # fmt: skip
    end = simulate(job)
    assert end.figures["statistics"].staleness()["max"] == 0
    adapter = job.build_adapter()
    adapter.load(end.parameters[: job.layout.parameters_size])
    expected = serial(optimizer, clip_norm, 4).state_dict()
    for name, value in adapter.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(
    ("compute", "workers"),
    [
        ({"distribution": "exponential", "mean_s": 0.01}, 4),
        ([0.01, 0.013, 0.026, 0.057], 4),
        ({"distribution": "lognormal", "mean_s": 0.01, "spread": 0.01}, 8),
    ],
)
def test_mean_staleness_of_a_saturated_cluster_is_n_minus_one(compute: Any, workers: int) -> None:
    job = null_job(
        samples=64 * 4000, workers=workers, epochs=1, fragment_batches=8,
        method={"in_flight": 0},
        simulation={"compute": compute, "network": 0.0, "control": 0.0, "apply": 0.0},
    )  # fmt: skip
    end = simulate(job)
    mean = end.figures["statistics"].staleness()["mean"]
    assert mean == pytest.approx(workers - 1, rel=0.02)


def test_the_same_seed_is_the_same_run() -> None:
    def run(seed: int) -> str:
        job = torch_job(
            network, data(), workers=4, servers=2, epochs=2, batch_size=BATCH, seed=seed,
            simulation={
                "compute": {"distribution": "lognormal", "mean_s": 0.01, "spread": 0.01},
                "faults": [
                    {"kind": "loss", "rate": 0.02},
                    {"kind": "crash", "target": "worker-1", "at_s": 0.05},
                ],
            },
        )  # fmt: skip
        return str(simulate(job).figures["digest"])

    assert run(1) == run(1) != run(2)


@pytest.mark.parametrize("bound", [0, 1, 3])
def test_nobody_runs_further_ahead_than_ssp_allows(bound: int) -> None:
    job = null_job(
        samples=64 * 300, workers=4, epochs=1, fragment_batches=4,
        method={"consistency": {"name": "ssp", "bound": bound}},
        simulation={"compute": [0.001, 0.002, 0.003, 0.02]},
    )  # fmt: skip
    end = simulate(job)
    # Between a read and its update each of the others makes at most 2 s + 1 updates.
    assert end.figures["statistics"].staleness()["max"] <= 3 * (2 * bound + 1)
