"""Asynchronous SGD against sequences computed by hand, on a model of one parameter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import nn

from tardygrad.errors import ConfigError
from tardygrad.layout import ALIGN
from tardygrad.methods import find, names, parse
from tardygrad.methods.async_sgd import AsyncSGD, AsyncSGDWorker
from tardygrad.methods.base import Step
from tardygrad.methods.rules.optimizers import OptimizerServer
from tardygrad.models.torch import TorchAdapter


class Line(nn.Module):
    """output = weight * input, weight = 2 at first."""

    def __init__(self, width: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), 2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.weight).sum(dim=1)


def mean(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """A loss whose gradient with respect to the weight is the mean of the inputs."""
    return output.mean()


def method(**settings: Any) -> AsyncSGD:
    made = parse({"name": "async_sgd", **settings})
    assert isinstance(made, AsyncSGD)
    return made


def worker(width: int = 1, **settings: Any) -> tuple[AsyncSGDWorker, TorchAdapter]:
    adapter = TorchAdapter(Line(width), mean)
    return method(**settings).worker_rule(adapter), adapter


def steps(*gradients: float | list[float], consumed: int = 0) -> Iterable[Step]:
    """Batches of one sample each, whose inputs are the gradients."""
    for number, gradient in enumerate(gradients):
        row = gradient if isinstance(gradient, list) else [gradient]
        yield Step((torch.tensor([row]), torch.zeros(1)), number, consumed + number)


def pull(rule: AsyncSGDWorker, value: float, *, fresh: bool = False) -> None:
    rule.target(fresh=fresh).fill_(value)
    rule.pulled(fresh=fresh)


def compute(
    rule: AsyncSGDWorker, *gradients: float | list[float], consumed: int = 0
) -> list[float]:
    out = torch.full((ALIGN,), torch.nan)
    outcome = rule.compute(steps(*gradients, consumed=consumed), out)
    assert outcome.batches == len(gradients)
    return out.tolist()


def weight(adapter: TorchAdapter) -> float:
    return float(adapter.read()[0])


def server(value: float = 2.0, **settings: Any) -> OptimizerServer:
    return method(**settings).server_rule(torch.full((ALIGN,), value))


def sgd(**arguments: Any) -> dict[str, Any]:
    return {"class": "SGD", "arguments": {"lr": 0.5, **arguments}}


def apply(rule: OptimizerServer, *updates: float, scale: float = 1.0, consumed: int = 0) -> float:
    for update in updates:
        rule.apply(torch.full((ALIGN,), update), scale, consumed)
    return float(rule.parameters[0])


# --- the worker -------------------------------------------------------------------------------


def test_an_update_is_the_gradient_and_the_gaps_are_zero() -> None:
    rule, adapter = worker()
    pull(rule, 2.0, fresh=True)
    assert compute(rule, 3.0) == [3.0] + [0.0] * (ALIGN - 1)
    assert weight(adapter) == 2.0, "the next pull overwrites it anyway"


def test_weight_decay_is_added_at_the_worker() -> None:
    rule, _ = worker(weight_decay=0.25)
    pull(rule, 8.0, fresh=True)
    assert compute(rule, 3.0)[0] == 3.0 + 0.25 * 8.0


def test_the_norm_is_clipped_after_the_decay_and_over_the_whole_gradient() -> None:
    rule, _ = worker(width=2, clip_norm=1.0, weight_decay=0.5)
    pull(rule, 2.0, fresh=True)
    # (2, 3) + 0.5 * (2, 2) = (3, 4), of norm 5.
    assert compute(rule, [2.0, 3.0])[:2] == pytest.approx([0.6, 0.8], rel=1e-5)
    assert compute(rule, [-0.5, -0.5])[:2] == pytest.approx([0.5, 0.5], rel=1e-6), "short enough"


def test_values_are_clipped_last() -> None:
    rule, _ = worker(width=2, clip_value=0.5)
    pull(rule, 0.0, fresh=True)
    assert compute(rule, [-3.0, 0.25])[:2] == [-0.5, 0.25]


def test_over_a_period_the_worker_steps_and_sums() -> None:
    rule, adapter = worker(exchange_period=3, weight_decay=0.5, optimizer=sgd())
    pull(rule, 2.0, fresh=True)
    # g1 = 1 + 1 = 2, x = 1; g2 = 1 + 0.5 = 1.5, x = 0.25; g3 = 1 + 0.125.
    assert compute(rule, 1.0, 1.0, 1.0)[0] == 2.0 + 1.5 + 1.125
    assert weight(adapter) == 0.25 - 0.5 * 1.125
    pull(rule, 7.0)
    assert weight(adapter) == 7.0


def test_local_steps_follow_the_schedule_by_their_place_in_the_run() -> None:
    rule, adapter = worker(
        exchange_period=2, optimizer=sgd(), schedule={"name": "step", "every": 10, "gamma": 0.5}
    )
    pull(rule, 0.0, fresh=True)
    compute(rule, 1.0, 1.0, consumed=9)
    assert weight(adapter) == -0.5 - 0.25


def test_mixing_keeps_part_of_the_replica() -> None:
    rule, adapter = worker(mixing=0.25, optimizer=sgd())
    pull(rule, 2.0, fresh=True)
    compute(rule, 2.0)
    assert weight(adapter) == 1.0, "a replica that is kept takes its own steps"
    pull(rule, 5.0)
    assert weight(adapter) == 0.75 * 1.0 + 0.25 * 5.0
    pull(rule, 9.0, fresh=True)
    assert weight(adapter) == 9.0, "a new session forgets the replica"


@pytest.mark.parametrize(
    ("settings", "borrows"),
    [({}, True), ({"exchange_period": 2}, False), ({"mixing": 0.5}, False)],
)
def test_only_a_worker_that_changes_nothing_computes_with_what_it_is_lent(
    settings: dict[str, Any], borrows: bool
) -> None:
    assert worker(**settings)[0].borrows is borrows


# --- the server -------------------------------------------------------------------------------


def test_plain_sgd_and_the_staleness_scale() -> None:
    assert apply(server(optimizer=sgd()), 1.0) == 1.5
    assert apply(server(optimizer=sgd()), 1.0, scale=0.5) == 1.75
    assert apply(server(optimizer=sgd()), 1.0, 2.0) == 0.5


def test_momentum_outlives_the_update() -> None:
    # v = 1, x = 2 - 0.5; v = 0.5 + 1, x = 1.5 - 0.75.
    assert apply(server(optimizer=sgd(momentum=0.5)), 1.0, 1.0) == 0.75
    # The scale is on the rate, so that the momentum remembers the whole gradient.
    assert apply(server(optimizer=sgd(momentum=0.5)), 1.0, 1.0, scale=0.5) == 2 - 0.25 - 0.375


def test_the_schedule_follows_the_consumed_samples() -> None:
    schedule = {"name": "step", "every": 100, "gamma": 0.5}
    rule = server(optimizer=sgd(), schedule=schedule)
    assert apply(rule, 1.0, consumed=99) == 1.5
    assert apply(rule, 1.0, consumed=100) == 1.25
    assert apply(rule, 1.0, consumed=250) == 1.125


def test_the_result_can_be_put_elsewhere() -> None:
    for optimizer in (sgd(), sgd(momentum=0.5)):
        rule = server(optimizer=optimizer)
        out = torch.zeros(ALIGN)
        rule.apply(torch.ones(ALIGN), 1.0, 0, out=out)
        assert out[0] == 1.5
        assert apply(rule, 0.0) == (1.5 if optimizer == sgd() else 1.25)


RATES = {
    "constant": ({}, {0: 1.0, 10**9: 1.0}),
    "warmup": ({"warmup": 4}, {0: 0.25, 1: 0.5, 3: 1.0, 4: 1.0}),
    "step": ({"every": 10, "gamma": 0.5}, {0: 1.0, 9: 1.0, 10: 0.5, 35: 0.125}),
    "linear": ({"total": 10, "end": 0.5}, {0: 1.0, 5: 0.75, 10: 0.5, 99: 0.5}),
    "cosine": ({"total": 10}, {0: 1.0, 5: 0.5, 10: 0.0, 99: 0.0}),
    "cosine_to": ({"total": 10, "end": 0.5, "warmup": 2}, {0: 0.5, 2: 1.0, 7: 0.75, 12: 0.5}),
}


@pytest.mark.parametrize("case", sorted(RATES))
def test_schedules(case: str) -> None:
    settings, expected = RATES[case]
    name = {"warmup": "constant", "cosine_to": "cosine"}.get(case, case)
    made = method(optimizer=sgd(), schedule={"name": name, **settings})
    for consumed, factor in expected.items():
        assert made.learning_rate(consumed) == pytest.approx(0.5 * factor, abs=1e-12)


def optimizers() -> list[str]:
    """Every optimizer of torch that can run on a flat shard."""
    kinds = [k for k, v in vars(torch.optim).items() if isinstance(v, type)]
    usable = []
    for kind in kinds:
        try:
            method(optimizer={"class": kind, "arguments": {"lr": 0.01}})
        except ConfigError:
            continue
        usable.append(kind)
    return usable


def test_most_optimizers_of_torch_can_be_used() -> None:
    assert {"SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "NAdam"} <= set(optimizers())


@pytest.mark.parametrize("kind", optimizers())
def test_a_restored_optimizer_goes_on_to_the_bit(kind: str) -> None:
    torch.manual_seed(0)
    settings = {"optimizer": {"class": kind, "arguments": {"lr": 0.01}}}
    updates = [torch.randn(ALIGN) for _ in range(8)]
    for taken in (0, 1, 4):
        rule = server(**settings)
        for update in updates[:taken]:
            rule.apply(update.clone(), 1.0, 0)
        again = method(**settings).server_rule(rule.parameters.clone())
        again.load_state({k: v.clone() for k, v in rule.state().items()})
        for update in updates[taken:]:
            for each in (rule, again):
                each.apply(update.clone(), 0.5, 0)
        assert torch.equal(rule.parameters, again.parameters)


# --- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"optimizer": {"class": "Adamm"}}, "did you mean 'Adam'?"),
        ({"optimizer": {"class": "LBFGS", "arguments": {"lr": 1.0}}}, "cannot run on a shard"),
        ({"optimizer": {"class": "SGD", "arguments": {}}}, "must contain a number lr"),
        ({"optimizer": sgd(momentun=0.9)}, "momentun"),
        ({"mixing": 0.0}, "method.mixing: expected a number greater than 0"),
        ({"mixing": 1.5}, "method.mixing"),
        ({"exchange_period": 0}, "method.exchange_period"),
        ({"in_flight": 9}, "method.in_flight"),
        ({"clip_norm": 0.0}, "method.clip_norm"),
        ({"schedule": {"name": "step"}}, "method.schedule.every: missing"),
        ({"mixin": 0.5}, "did you mean 'mixing'?"),
        ({"consistency": {"name": "sspp"}}, "did you mean 'ssp'?"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError) as error:
        method(**settings)
    assert what in str(error.value) and "\n" not in str(error.value)


def test_a_method_is_found_by_its_file() -> None:
    assert "async_sgd" in names() and find("async_sgd") is AsyncSGD
    with pytest.raises(ConfigError, match="did you mean 'async_sgd'"):
        find("async_sdg")


def test_which_serial_loop_it_equals() -> None:
    parameters = list(Line().parameters())
    made = method(optimizer=sgd(momentum=0.9)).serial_optimizer(parameters)
    assert isinstance(made, torch.optim.SGD) and made.param_groups[0]["momentum"] == 0.9
    for beside in ({"mixing": 0.5}, {"clip_norm": 1.0}, {"weight_decay": 0.1}):
        assert method(**beside).serial_optimizer(parameters) is None
