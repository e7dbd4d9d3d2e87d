"""From the `model` section of a configuration to an adapter.

Every process builds the model itself from the same seed, so only the factory's name has to travel,
and frozen parameters, which are in no vector, are the same everywhere.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch

from tardygrad.config import BY_VALUE, ModelConfig
from tardygrad.data.references import call, resolve
from tardygrad.errors import ModelError
from tardygrad.models.torch import LossFunction, MetricFunction, TorchAdapter

__all__ = ["build"]


def build(
    config: ModelConfig,
    seed: int,
    by_value: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> TorchAdapter:
    """Make the model that a configuration names, with its loss and metrics.

    Seeds torch's default generator, so that initial parameters depend on `seed` only.

    Args:
        config: The configuration's `model` section.
        seed: Decides the initial parameters.
        by_value: Objects handed over from Python, which go before the names: "model" (a function
            of `config.arguments`, or a module, which is copied), "loss" (a function), "metrics" (a
            dictionary of functions). A class is called without arguments for the function.
        device: "cpu", "cuda" or "cuda:N".

    Raises:
        ModelError: If something cannot be imported, built or trained.
    """
    by_value = {} if by_value is None else by_value
    _check_device(device)
    loss = _function(by_value.get("loss"), config.loss, "loss")
    metrics = {
        name: _function(value, name, f"metric {name!r}")
        for name, value in (by_value.get("metrics") or {}).items()
    }
    for name, reference in config.metrics.items():
        if name not in metrics:
            metrics[name] = _function(None, reference, f"metric {name!r}")
    module = _module(config, seed, by_value.get("model"))
    return TorchAdapter(
        module, cast("LossFunction", loss), cast("dict[str, MetricFunction]", metrics), device
    )


def _check_device(device: str) -> None:
    if device.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(device.partition(":")[2] or 0)
        if index >= count:
            raise ModelError(
                f"device {device!r} is not there: this machine has {count} CUDA devices that torch "
                "can use; expected 'cpu'" + (f" or 'cuda:0' to 'cuda:{count - 1}'" if count else "")
            )
    elif device != "cpu":
        raise ModelError(f"device is {device!r}, expected 'cpu', 'cuda' or 'cuda:N'")


def _module(config: ModelConfig, seed: int, value: Any) -> torch.nn.Module:
    torch.manual_seed(seed)
    if isinstance(value, torch.nn.Module):
        return copy.deepcopy(value)  # several workers may live in this process
    if value is not None:
        what, factory = "the model handed over from Python", value
    elif config.factory == BY_VALUE:
        raise ModelError(
            "this run was given its model from Python, which no file can hold; start or resume it "
            "from Python and hand the model over again"
        )
    else:
        what = f"model factory {config.factory!r}"
        factory = resolve(config.factory, "model factory", ModelError)
    if not callable(factory):
        raise ModelError(f"{what} is {factory!r}, expected a function that returns an nn.Module")
    module = call(factory, config.arguments, what, ModelError)
    if not isinstance(module, torch.nn.Module):
        raise ModelError(
            f"{what} returned an object of type {type(module).__name__}, expected a torch.nn.Module"
        )
    return module


def _function(value: Any, reference: str, what: str) -> Callable[..., Any]:
    """A loss or metric, by value or by name; a class (`nn.CrossEntropyLoss`) is instantiated."""
    if value is None:
        if reference == BY_VALUE:
            raise ModelError(
                f"this run was given its {what} from Python, which no file can hold; start or "
                "resume it from Python and hand the function over again"
            )
        value = resolve(reference, what, ModelError)
    if isinstance(value, type):
        value = call(value, {}, what, ModelError)
    if not callable(value):
        raise ModelError(f"{what} is {value!r}, expected a function of (output, target)")
    return cast("Callable[..., Any]", value)
