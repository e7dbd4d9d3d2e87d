"""Methods against sequences computed by hand, on a vector of one or two numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from tardygrad.errors import ConfigError
from tardygrad.methods import parse
from tardygrad.methods.base import Origin, Step
from tardygrad.models.torch import TorchAdapter

RATE = 0.5
SGD = {"class": "SGD", "arguments": {"lr": RATE}}


def moved(
    method: dict[str, Any], updates: Sequence[float], origins: Sequence[tuple[int, int]] = ()
) -> list[float]:
    """A shard that begins at 0, after each of the updates."""
    rule = parse(method).server_rule(torch.zeros(1))
    found = []
    for number, update in enumerate(updates):
        origin = Origin(*origins[number]) if origins else Origin(0, 0)
        rule.apply(torch.tensor([update]), 1.0, 0, None, origin)
        found.append(rule.parameters.item())
    return found


def test_momentum_with_every_arrival_amplifies_and_delayed_it_does_not() -> None:
    b, rate = 0.9, 0.1
    outer = {"class": "SGD", "arguments": {"lr": rate, "momentum": b, "nesterov": True}}
    naive = moved({"name": "diloco", "outer": outer}, [1.0] * 4)[-1]
    assert naive == pytest.approx(-rate * (4 + 4 * b + 3 * b**2 + 2 * b**3 + b**4))
    delayed = {"name": "async_diloco", "outer": {"arguments": {"lr": rate, "momentum": b}}}
    assert moved({**delayed, "momentum_every": 4}, [1.0] * 4) == pytest.approx(
        [-rate / 4, -rate / 2, -3 * rate / 4, -rate - rate * b]
    )


def test_delayed_momentum_of_every_update_is_the_plain_outer_step() -> None:
    arguments = {"lr": 0.7, "momentum": 0.9}
    updates = [1.0, -0.5, 2.0, 0.25]
    delayed = {"name": "async_diloco", "outer": {"arguments": arguments}, "momentum_every": 1}
    plain = {"name": "diloco", "outer": {"arguments": {**arguments, "nesterov": True}}}
    assert moved(delayed, updates) == pytest.approx(moved(plain, updates))


def test_part_of_the_momentum_in_between() -> None:
    b, c, rate = 0.5, 0.25, 1.0
    method = {
        "name": "async_diloco", "momentum_every": 2, "momentum_share": c,
        "outer": {"arguments": {"lr": rate, "momentum": b}},
    }  # fmt: skip
    # The momentum is 0, then (1 + 1) / 2 = 1, then 1, then b + 1.
    steps = [0.5, (1 - c) * b + 0.5, c * b + 0.5, (1 - c) * b * (b + 1) + 0.5]
    expected = [-sum(steps[: n + 1]) for n in range(4)]
    assert moved(method, [1.0] * 4) == pytest.approx(expected)


def test_delay_compensation_by_hand() -> None:
    method = {"name": "dc_asgd", "optimizer": SGD, "adaptive": False, "strength": 0.1}
    # 0 -> -1 (g = 2) -> and g = 2 read at 0: 2 + 0.1 * 4 * (-1 - 0) = 1.6.
    assert moved(method, [2.0, 2.0], [(0, 0), (1, 1)]) == pytest.approx([-1.0, -1.8])
    # Fresh gradients are taken as they are.
    assert moved(method, [2.0, 2.0]) == pytest.approx([-1.0, -2.0])


def test_adaptive_delay_compensation_by_hand() -> None:
    method = {"name": "dc_asgd", "optimizer": SGD, "strength": 0.1, "decay": 0.5}
    mean = 0.5 * 4.0  # worker 1 begins with its own mean square
    corrected = 2.0 + 0.1 / (mean + 1e-7) ** 0.5 * 4.0 * -1.0
    found = moved(method, [2.0, 2.0], [(0, 0), (1, 1)])
    assert found == pytest.approx([-1.0, -1.0 - RATE * corrected])


def test_what_is_older_than_the_history_counts_as_its_oldest() -> None:
    method = {"name": "dc_asgd", "optimizer": SGD, "adaptive": False, "strength": 0.1, "history": 2}
    found = moved(method, [2.0, 2.0, 2.0], [(0, 0), (0, 0), (1, 2)])
    # Two versions are kept, -1 and -2: the read at 0 counts as one at -1.
    assert found[-1] == pytest.approx(-2.0 - RATE * (2.0 + 0.1 * 4.0 * (-2.0 + 1.0)))


def test_the_gap_by_hand() -> None:
    method = {"name": "gap_aware", "optimizer": SGD, "decay": 0.75}
    # The first step is 2 in units of the rate; v = 0.25 * 4 = 1; the usual step 0.5 * 1.
    gap = 1.0 / 0.5
    found = moved(method, [2.0, 3.0], [(0, 0), (1, 1)])
    assert found == pytest.approx([-1.0, -1.0 - RATE * 3.0 / (1 + gap)])


def test_one_worker_of_dana_is_nesterovs_momentum() -> None:
    gamma, updates = 0.9, [1.0, 0.5, -2.0, 1.0]
    velocity = theta = 0.0
    expected = []
    for update in updates:
        velocity = gamma * velocity + update
        theta -= RATE * velocity
        expected.append(theta - RATE * gamma * velocity)
    assert moved({"name": "dana", "optimizer": SGD}, updates) == pytest.approx(expected)


def test_two_workers_of_dana_by_hand() -> None:
    found = moved({"name": "dana", "optimizer": SGD, "momentum": 0.5}, [1.0, 2.0], [(0, 0), (1, 0)])
    # theta: -0.5, then -1.5; sent: 0.5 * 0.5 of the momenta's sum ahead.
    assert found == pytest.approx([-0.5 - 0.25 * 1.0, -1.5 - 0.25 * 3.0])


def test_the_table_counts_workers_alike() -> None:
    method = {"name": "ringleader", "optimizer": SGD}
    found = moved(method, [2.0, 4.0, 6.0], [(0, 0), (1, 0), (1, 0)])
    assert found == pytest.approx([-1.0, -1.0 - RATE * 3.0, -1.0 - RATE * 3.0 - RATE * 4.0])
    # The row of a worker that is gone is forgotten.
    found = moved({**method, "rows": 1}, [2.0, 4.0, 4.0], [(0, 0), (1, 0), (1, 0)])
    assert found[2] - found[1] == pytest.approx(-RATE * 4.0)


class Bowl(nn.Module):
    """loss = weight ** 2 / 2 * input: the gradient is the weight, at input 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * self.weight**2 * x


def steps(count: int) -> list[Step]:
    batch = (torch.ones(1), torch.zeros(1))
    return [Step(batch, seed, seed) for seed in range(count)]


def bowl() -> TorchAdapter:
    return TorchAdapter(Bowl(), lambda output, _: output.mean())


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_elastic_averaging_by_hand(momentum: float) -> None:
    alpha, rate = 0.25, 0.1
    section = {"arguments": {"lr": rate}}
    method = parse({"name": "easgd", "alpha": alpha, "momentum": momentum, "optimizer": section})
    adapter = bowl()
    worker, centre = method.worker_rule(adapter), torch.full_like(adapter.read(), 0.0)
    centre[0] = 2.0
    server = method.server_rule(centre)
    x = c = 2.0
    v = 0.0
    for number in range(5):
        worker.target(fresh=number == 0).copy_(server.parameters)
        worker.pulled(fresh=number == 0)
        out = torch.zeros_like(server.parameters)
        worker.compute(steps(2), out)
        server.apply(out, 1.0, 0)
        d = alpha * (x - c)
        for step in range(2):
            v = momentum * v - rate * (x + momentum * v)
            x -= d if step == 0 else 0.0
            x += v
        c += d
        assert server.parameters[0].item() == pytest.approx(c)


def test_a_delta_is_the_way_back() -> None:
    method = parse({"name": "local_sgd", "optimizer": {"arguments": {"lr": 0.1}}})
    adapter = bowl()
    worker = method.worker_rule(adapter)
    pulled = adapter.read().clone()
    worker.target(fresh=True).copy_(pulled)
    worker.pulled(fresh=True)
    out = torch.zeros_like(pulled)
    assert worker.compute(steps(3), out).batches == 3
    assert out[0].item() == pytest.approx(2.0 - 2.0 * 0.9**3)


def test_passes_go_over_the_same_batches_again() -> None:
    section = {"name": "incremental_sgd", "optimizer": {"class": "SGD", "arguments": {"lr": 0.1}}}
    method = parse({**section, "passes": 2})
    adapter = bowl()
    worker = method.worker_rule(adapter)
    pulled = adapter.read().clone()
    worker.target(fresh=True).copy_(pulled)
    worker.pulled(fresh=True)
    out = torch.zeros_like(pulled)
    assert worker.compute(iter(steps(3)), out).batches == 3
    assert out[0].item() == pytest.approx(2.0 - 2.0 * 0.9**6)


def test_accumulated_gradients_are_a_mean_over_samples() -> None:
    method = parse({"name": "sync_sgd"})
    adapter = bowl()
    worker = method.worker_rule(adapter)
    worker.target(fresh=True).copy_(adapter.read().clone())
    worker.pulled(fresh=True)
    # Three samples of gradient 2, and one of 6 (an input of 3).
    batches = [(torch.ones(3), torch.zeros(3)), (torch.full((1,), 3.0), torch.zeros(1))]
    out = torch.zeros_like(adapter.read())
    worker.compute([Step(batch, 0, 0) for batch in batches], out)
    assert out[0].item() == pytest.approx((3 * 2.0 + 6.0) / 4)


@pytest.mark.parametrize("name", ["easgd", "dana"])
def test_what_has_its_own_momentum_refuses_another(name: str) -> None:
    arguments = {"lr": 0.1, "momentum": 0.9}
    with pytest.raises(ConfigError, match=r"method\.momentum"):
        parse({"name": name, "optimizer": {"arguments": arguments}})


def test_two_ways_of_waiting_do_not_mix() -> None:
    with pytest.raises(ConfigError, match="leave consistency at asp"):
        parse({"name": "sync_sgd", "consistency": {"name": "ssp"}})
