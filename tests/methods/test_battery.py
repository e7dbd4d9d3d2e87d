"""Every method passes the battery, and the battery notices what is wrong with one."""

from __future__ import annotations

import sys
import types
from typing import Any, ClassVar, Literal

import pytest
import torch

import tardygrad.methods
from tardygrad.methods import names
from tardygrad.methods.async_sgd import AsyncSGD, AsyncSGDWorker
from tardygrad.methods.rules.optimizers import OptimizerServer
from tardygrad.testing.battery import check_method

VARIANTS: list[dict[str, Any]] = [
    {"consistency": {"name": "ssp", "bound": 1}},
    {"optimizer": {"class": "Adam", "arguments": {"lr": 0.01}}},
    {"mixing": 0.5, "exchange_period": 3, "in_flight": 3},
    {"staleness": {"name": "cut_off", "below": 2, "again": True}, "weight_decay": 0.01},
    {"optimizer": {"class": "SGD", "arguments": {"lr": 0.05, "momentum": 0.9}}, "clip_norm": 1.0},
]


@pytest.mark.parametrize("name", names())
def test_every_method_conforms(name: str) -> None:
    check_method(name)


@pytest.mark.parametrize("settings", VARIANTS, ids=lambda s: "-".join(s))
def test_asynchronous_sgd_conforms_however_it_is_set(settings: dict[str, Any]) -> None:
    check_method("async_sgd", **settings)


@pytest.mark.parametrize("name", ["diloco", "local_sgd", "async_diloco"])
@pytest.mark.parametrize("delay", [0, 1])
def test_exchanges_in_turns_conform(name: str, delay: int) -> None:
    check_method(name, stripes=2, delay=delay, mixing=0.5, exchange_period=4)


# --- the battery can fail -----------------------------------------------------------------------


class ForgetfulServer(OptimizerServer):
    """Keeps its momentum to itself."""

    def state(self) -> dict[str, torch.Tensor]:
        return {}


class LazyWorker(AsyncSGDWorker):
    """Does not fill its update."""

    def compute(self, steps: Any, out: torch.Tensor) -> Any:
        return super().compute(steps, torch.zeros_like(out))


class Broken(AsyncSGD):
    name: Literal["async_sgd"] = "async_sgd"
    optimizer: Any = AsyncSGD(
        optimizer={"class": "SGD", "arguments": {"lr": 0.05, "momentum": 0.9}}
    ).optimizer
    worker: ClassVar[type[AsyncSGDWorker]] = AsyncSGDWorker
    server: ClassVar[type[OptimizerServer]] = OptimizerServer

    def worker_rule(self, adapter: Any) -> AsyncSGDWorker:
        return self.worker(self, adapter)

    def server_rule(self, parameters: torch.Tensor) -> OptimizerServer:
        return self.server(self.optimizer, self.schedule, parameters)


class Forgetful(Broken):
    server: ClassVar[type[OptimizerServer]] = ForgetfulServer


class Lazy(Broken):
    worker: ClassVar[type[AsyncSGDWorker]] = LazyWorker


class Boastful(Broken):
    """Claims to be a loop that it is not."""

    def serial_optimizer(self, parameters: list[torch.Tensor]) -> torch.optim.Optimizer | None:
        return torch.optim.SGD(parameters, lr=0.3)


@pytest.mark.parametrize(
    ("method", "what"),
    [
        (Forgetful, "a restored server differs after 1 updates"),
        (Lazy, "an update is not finite everywhere"),
        (Boastful, "differs from the serial loop's"),
    ],
)
def test_a_broken_method_is_noticed(
    method: type[Broken], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("tardygrad.methods.broken")
    copy = type("Copy", (method,), {"__module__": module.__name__})
    vars(module)["Copy"] = copy
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(tardygrad.methods, "names", lambda: ["async_sgd", "broken"])
    monkeypatch.setattr(tardygrad.methods, "find", lambda name: copy)
    with pytest.raises(AssertionError, match=what):
        check_method("async_sgd")
