"""The exchange period over consumed samples: by hand, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tardygrad.errors import ConfigError
from tardygrad.methods import parse
from tardygrad.methods.async_sgd import AsyncSGD
from tardygrad.testing.battery import check_method

SGD = {"class": "SGD", "arguments": {"lr": 0.1}}


def local(periods: dict[str, Any], **settings: Any) -> Any:
    section = {"name": "local_sgd", "exchange_period": 4, "optimizer": SGD}
    return parse({**section, "exchange_schedule": periods, **settings})


def periods(method: Any, *consumed: int) -> list[int]:
    return [method.period_at(samples) for samples in consumed]


def test_piecewise() -> None:
    method = local({"name": "piecewise", "at": [[100, 8], [200, 2], [300, 16]]})
    assert periods(method, 0, 99, 100, 199, 200, 299, 300, 10**9) == [4, 4, 8, 8, 2, 2, 16, 16]
    assert method.longest_period == 16
    assert method.fragment_batches(1, batches=1000, workers=4) == 16


def test_post_local_is_a_schedule_of_one_entry() -> None:
    post = local({"name": "constant"}, local_after=100)
    piecewise = local({"name": "piecewise", "at": [[100, 4]]}, exchange_period=1)
    at = (0, 99, 100, 5000)
    assert periods(post, *at) == periods(piecewise, *at) == [1, 1, 4, 4]
    both = local({"name": "piecewise", "at": [[200, 8]]}, local_after=100)
    assert periods(both, 0, 100, 200) == [1, 4, 8]


def test_quadratic_grows_as_the_rate_falls() -> None:
    steps = {"name": "step", "every": 100, "gamma": 0.5}
    method = local({"name": "quadratic", "alpha": 0.25, "most": 50}, schedule=steps)
    # The rate is 0.1, 0.05, 0.025, 0.0125: (0.25 / rate)^2 = 6.25, 25, 100, 400.
    assert periods(method, 0, 99, 100, 200, 300) == [6, 6, 25, 50, 50]
    low = local({"name": "quadratic", "alpha": 0.01}, schedule=steps)
    assert periods(low, 0, 100) == [4, 4], "exchange_period is the least"


def test_quadratic_stands_still_while_the_rate_warms_up_and_where_it_is_zero() -> None:
    cosine = {"name": "cosine", "total": 100, "warmup": 50}
    method = local({"name": "quadratic", "alpha": 0.25, "most": 50}, schedule=cosine)
    assert periods(method, 0, 25, 49, 50) == [6, 6, 6, 6]
    assert periods(method, 150, 10**9) == [50, 50]


def test_a_worker_whose_period_will_grow_takes_local_steps_from_the_start() -> None:
    growing = AsyncSGD.model_validate(
        {"exchange_schedule": {"name": "piecewise", "at": [[100, 2]]}}
    )
    assert growing.longest_period == 2
    assert growing.serial_optimizer([]) is None, "it adds up what the loop applies one by one"


@pytest.mark.parametrize(
    ("schedule", "what"),
    [
        ({"name": "piecewise"}, "method.exchange_schedule.at: missing"),
        ({"name": "piecewise", "at": []}, "at least one entry"),
        ({"name": "piecewise", "at": [[200, 4], [100, 8]]}, "samples must grow"),
        ({"name": "piecewise", "at": [[100, 0]]}, "at least 1 batch"),
        ({"name": "piecewise", "at": [[100, 2.5]]}, "a whole number"),
        ({"name": "quadratic", "alpha": 0.0}, "method.exchange_schedule.alpha"),
        ({"name": "quadratik", "alpha": 1.0}, "did you mean 'quadratic'?"),
    ],
)
def test_wrong_schedules_are_named(schedule: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError) as error:
        local(schedule)
    assert what in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("async_sgd", {"balance": {"name": "batch"}}),
        ("async_sgd", {"exchange_period": 3, "balance": {"name": "steps"}}),
        ("sync_sgd", {"balance": {"name": "batch", "most": 3}}),
        ("easgd", {"balance": {"name": "steps"}}),
        ("async_diloco", {"exchange_period": 3, "balance": {"name": "steps"}}),
        ("diloco", {"exchange_schedule": {"name": "piecewise", "at": [[60, 1], [90, 2]]}}),
        ("local_sgd", {"exchange_schedule": {"name": "quadratic", "alpha": 0.1}}),
        (
            "diloco",
            {
                "exchange_period": 1,
                "balance": {"name": "batch"},
                "admission": {"name": "quorum", "count": 2, "weights": "tokens"},
            },
        ),
        (
            "async_sgd",
            {
                "mixing": 0.5,
                "staleness": {"name": "cut_off", "below": 2, "again": True, "stops": True},
            },
        ),
    ],
)
def test_methods_conform_however_they_are_balanced(name: str, settings: dict[str, Any]) -> None:
    check_method(name, **settings)
