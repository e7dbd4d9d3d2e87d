"""Replicas that are averaged in pairs, in whole simulated runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tardygrad.data.fragments import Permutations
from tardygrad.engines.base import Job
from tardygrad.protocol import trace
from tardygrad.testing.battery import plain_network, samples
from tardygrad.testing.fuzz import check_replay
from tardygrad.testing.simulation import SimulatedCluster, torch_job

RATE = 0.3
METHOD = {"name": "gossip", "optimizer": {"class": "SGD", "arguments": {"lr": RATE}}}
SETTINGS: dict[str, Any] = {"epochs": 2, "batch_size": 6, "fragment_batches": 1, "servers": 2}


def cluster(*, workers: int, method: dict[str, Any] = METHOD, **settings: Any) -> SimulatedCluster:
    settings = {**SETTINGS, "simulation": {"compute": 0.01}, **settings}
    return SimulatedCluster(
        torch_job(plain_network, samples(), workers=workers, method=method, **settings)
    )


def run(found: SimulatedCluster) -> torch.Tensor:
    end = found.run()
    found.check(end)
    assert end.outcome == "done", end.reason
    return end.parameters


class ByHand:
    """Gradients of single batches, without anything of the engines."""

    def __init__(self, job: Job) -> None:
        self.job, self.order, self.source = job, Permutations(job.plan), samples()
        self.adapter = job.build_adapter()

    def gradient(
        self, parameters: torch.Tensor, epoch: int, fragment: int, batch: int
    ) -> torch.Tensor:
        self.adapter.load(parameters)
        model = plain_network()
        model.load_state_dict(self.adapter.state_dict())
        inputs, target = self.source.batch(self.order.indices(epoch, fragment, batch))
        torch.nn.functional.cross_entropy(model(inputs), target).backward()
        found = torch.zeros_like(parameters)
        for (name, parameter), field in zip(
            model.named_parameters(), self.job.layout.parameters, strict=True
        ):
            assert name == field.name and parameter.grad is not None
            found[field.offset : field.offset + field.size] = parameter.grad.reshape(-1)
        return found


def test_one_worker_is_asynchronous_sgd_of_one_to_the_bit() -> None:
    alone = {**METHOD, "in_flight": 0}
    gossip = run(cluster(workers=1, method=alone))
    assert torch.equal(gossip, run(cluster(workers=1, method={**alone, "name": "async_sgd"})))
    # Its replica does not depend on the servers, so it may go on before they have answered.
    assert torch.equal(gossip, run(cluster(workers=1)))


def test_two_workers_that_average_before_every_step() -> None:
    # All messages take no time, so both act at once, worker 0 first.
    simulation = {"compute": 0.01, "network": 0.0, "control": 0.0, "apply": 0.0}
    found = cluster(workers=2, epochs=1, simulation=simulation, batch_size=9)
    end = run(found)
    hand = ByHand(found.job)
    applied = [r for r in found.history.records[0] if r.kind == trace.APPLIED]
    batches = [[(r.epoch, r.fragment, 0) for r in applied if r.worker == w] for w in (0, 1)]
    assert [len(batches[w]) for w in (0, 1)] == [5, 5]
    x = [found.job.initial.clone(), found.job.initial.clone()]
    offered, left = [x[0], x[1]], [torch.zeros_like(x[0])] * 2
    for step in range(5):
        for own, other in ((0, 1), (1, 0)):
            x[own] = x[own] + left[own]
            if step or own:
                left[other] = (x[own] - offered[other]) / 2
                x[own] = (x[own] + offered[other]) / 2
            offered[own], left[own] = x[own], torch.zeros_like(x[own])
            x[own] = x[own] - RATE * hand.gradient(x[own], *batches[own][step])
    # What worker 1 has left in its last exchange worker 0 has not taken up.
    assert torch.allclose((x[0] + left[0] + x[1] + left[1]) / 2, end, atol=2e-6)
    assert float((x[0] - x[1]).abs().max()) > 1e-3


def replicas_of(found: SimulatedCluster) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The replicas at the end, by hand, and the sum of what nobody has taken up."""
    hand, method = ByHand(found.job), found.job.method
    momentum = float(getattr(method, "momentum"))  # noqa: B009
    replicas: dict[int, torch.Tensor] = {}
    velocity: dict[int, torch.Tensor] = {}
    offers: dict[tuple[int, int], torch.Tensor] = {}
    left: dict[tuple[int, int], torch.Tensor] = {}
    for met in found.history.meetings:
        x = replicas.get(met.worker, found.job.initial)
        v = velocity.get(met.worker, torch.zeros_like(x))
        if met.back is not None:
            x = x + left.pop((met.worker, met.back.seq))
        if met.took is not None:
            difference = (x - offers[met.took]) / 2
            x, left[met.took] = x - difference, difference
        offers[(met.worker, met.seq)] = x
        for batch in range(met.first, met.stop):
            g = hand.gradient(x, met.epoch, met.fragment, batch)
            v = momentum * v + g
            rate = method.learning_rate(found.job.plan.position(met.epoch, met.fragment, batch))
            x = x - rate * (g + momentum * v)
        replicas[met.worker], velocity[met.worker] = x, v
    return list(replicas.values()), sum(left.values(), torch.zeros_like(found.job.initial))


@pytest.mark.parametrize(
    "settings",
    [
        {"workers": 4},
        {"workers": 5, "simulation": {"compute": [0.01, 0.01, 0.013, 0.02, 0.1]}},
        {"workers": 3, "method": {**METHOD, "momentum": 0.9, "exchange_period": 2}},
        {"workers": 3, "method": {**METHOD, "schedule": {"name": "cosine", "total": 180}}},
    ],
)
def test_the_servers_hold_the_mean_of_all_replicas(settings: dict[str, Any]) -> None:
    settings = {"fragment_batches": 2, **settings}
    found = cluster(**settings)
    end = run(found)
    replicas, pending = replicas_of(found)
    assert max(float((r - end).abs().max()) for r in replicas) > 1e-3
    mean = (torch.stack(replicas).sum(dim=0) + pending) / len(replicas)
    assert torch.allclose(mean, end, atol=2e-6)


def test_a_slow_worker_is_met_and_holds_nobody_up() -> None:
    speeds = {"compute": [0.01, 0.01, 0.01, 0.2]}
    slow = cluster(workers=4, epochs=8, simulation=speeds)
    run(slow)
    together = cluster(
        workers=4, epochs=8, simulation=speeds, method={**METHOD, "name": "sync_sgd"}
    )
    run(together)
    assert slow.seconds < together.seconds / 3
    taken = [m.took for m in slow.history.meetings if m.took is not None]
    assert any(took.worker == 3 for took in taken)
    assert len(set(taken)) == len(taken)


TROUBLE: list[dict[str, Any]] = [
    {"kind": "crash", "target": "worker-1", "at_s": 0.11},
    {"kind": "hang", "target": "worker-2", "at_s": 0.2, "for_s": 0.1},
    {"kind": "blackout", "target": "worker-0", "at_s": 0.3, "for_s": 0.1},
    {"kind": "crash", "target": "server-1", "at_s": 0.45},
    {"kind": "loss", "rate": 0.1},
    {"kind": "duplicate", "rate": 0.1},
    {"kind": "delay", "rate": 0.1, "factor": 30.0},
]


def test_through_deaths_and_losses_the_servers_stay_near_the_replicas() -> None:
    found = cluster(
        workers=4, epochs=12, checkpoint={"every_s": 0.05},
        failure={"lease_s": 0.5, "heartbeat_s": 0.1, "backoff_s": 0.02},
        simulation={"compute": 0.01, "faults": TROUBLE},
    )  # fmt: skip
    end = found.run()
    found.check(end)
    check_replay(found, end)
    scales = {r.scale for r in found.history.records[0] if r.kind == trace.APPLIED}
    # A worker that is dead has no replica.
    assert {1 / 4, 1 / 3} <= scales
    # No offer is taken twice, and what was left for somebody is taken up once at most.
    taken = [m.took for m in found.history.meetings if m.took is not None]
    back = [(m.worker, m.back.seq) for m in found.history.meetings if m.back is not None]
    assert len(set(taken)) == len(taken) > 20
    assert len(set(back)) == len(back)
    assert {(b.worker, b.at) for m in found.history.meetings if (b := m.back)} <= {
        (m.worker, m.seq) for m in found.history.meetings if m.took is not None
    }


def test_links_with_a_limit_carry_what_is_averaged() -> None:
    narrow = {"worker_down_bytes_per_s": 5e3}
    seconds = []
    for bandwidth in ({}, narrow):
        found = cluster(workers=3, simulation={"compute": 0.01, "bandwidth": bandwidth})
        run(found)
        seconds.append(found.seconds)
    # Parameters come down once; offers and differences before most of ten exchanges.
    assert seconds[1] > seconds[0] + 5 * 4 * 207 / 5e3
