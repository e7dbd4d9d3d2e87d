"""Recipes: complete, quick to list, with the settings that they promise."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tardygrad import methods, recipes
from tardygrad.config import RunConfig
from tardygrad.errors import ConfigError, DataError, ModelError
from tardygrad.recipes.blobs import blobs
from tardygrad.recipes.networks import cnn, convnet, mlp

NAMES = recipes.names()


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_what_there_is() -> None:
    assert {"blobs", "mnist-async", "mnist-async-reference", "mnist-mlp"} <= set(NAMES)
    assert "networks" not in NAMES
    assert sorted(NAMES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_a_configuration_under_its_own_name(name: str) -> None:
    config = RunConfig.model_validate(recipes.load(name))
    assert config.name == name
    assert methods.parse(config.method).name == config.method["name"]
    description = recipes.describe(name)
    assert description.endswith(".")
    assert len(name) + len(description) < 120


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_that_was_changed_is_new_the_next_time(name: str) -> None:
    before = recipes.load(name)["method"]["name"]
    recipes.load(name)["method"]["name"] = "changed"
    assert recipes.load(name)["method"]["name"] == before


def test_listing_imports_nothing_heavy() -> None:
    program = (
        "import sys; from tardygrad import recipes; "
        "[recipes.describe(name) and recipes.load(name) for name in recipes.names()]; "
        "print([name for name in ('torch', 'numpy', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_names_may_be_written_with_underscores() -> None:
    assert recipes.load("mnist_async") == recipes.load("mnist-async")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("mnist-asinc", "did you mean 'mnist-async'?"), ("networks", "valid: blobs, mnist-async")],
)
def test_unknown_recipes(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown recipe '{name}'") as caught:
        recipes.load(name)
    assert hint in str(caught.value)


def test_the_settings_of_the_first_run() -> None:
    config = RunConfig.model_validate(recipes.load("mnist-async"))
    assert (config.workers, config.servers, config.epochs, config.batch_size) == (4, 2, 5, 64)
    assert config.method["name"] == "async_sgd"


def test_the_reference_setting() -> None:
    config = RunConfig.model_validate(recipes.load("mnist-async-reference"))
    assert (config.workers, config.epochs, config.batch_size) == (10, 50, 64)
    assert config.method["name"] == "async_sgd"
    assert config.method["optimizer"] == {"class": "SGD", "arguments": {"lr": 0.01}}
    assert config.method["weight_decay"] == 1e-4
    assert config.model.factory == "tardygrad.recipes.networks:cnn"


def test_the_convolutional_network() -> None:
    module = cnn()
    assert [type(layer).__name__ for layer in module.children()] == [
        "Conv2d",
        "ReLU",
        "MaxPool2d",
        "Flatten",
        "Linear",
    ]
    assert parameters(module) == 32 * 9 + 32 + 5408 * 10 + 10
    assert module(torch.zeros(3, 1, 28, 28)).shape == (3, 10)


def test_the_quick_convolutional_network() -> None:
    assert parameters(convnet()) == 16 * 26 + 32 * (16 * 9 + 1) + 801 * 64 + 65 * 10
    assert convnet()(torch.zeros(3, 1, 28, 28)).shape == (3, 10)


def test_the_perceptron() -> None:
    module = mlp()
    assert parameters(module) == 784 * 256 + 256 + 256 * 10 + 10
    assert module(torch.zeros(3, 1, 28, 28)).shape == (3, 10)
    assert mlp([5, 2])(torch.zeros(3, 5)).shape == (3, 2)


@pytest.mark.parametrize("sizes", [[], [10], [10, 0], [10, 2.5]])
def test_perceptrons_that_cannot_be(sizes: list[int]) -> None:
    with pytest.raises(ModelError, match="sizes must be at least two whole numbers above 0"):
        mlp(sizes)


def test_blobs_are_the_same_each_time() -> None:
    (x, y), (x_test, y_test) = blobs()
    assert (x.shape, y.shape) == ((8192, 32), (8192,))
    assert (x.dtype, y.dtype) == (np.dtype("float32"), np.dtype("int64"))
    assert (x_test.shape, y_test.shape) == ((2048, 32), (2048,))
    assert set(y.tolist()) == set(range(10))
    assert np.array_equal(blobs()[0][0], x)
    assert not np.array_equal(blobs(seed=1)[0][0], x)
    assert not np.array_equal(x[:2048], x_test)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Several threads are slower on so small a model, and much slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_blobs_can_be_learnt_but_not_by_heart() -> None:
    (x, y), (x_test, y_test) = ((torch.from_numpy(x), torch.from_numpy(y)) for x, y in blobs())
    torch.manual_seed(0)
    module = mlp([32, 64, 10])
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    for start in range(0, len(x), 64):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(x[start : start + 64]), y[start:][:64])
        torch.autograd.backward(loss)
        optimizer.step()
    accuracy = (module(x_test).argmax(1) == y_test).float().mean().item()
    assert 0.9 < accuracy < 1.0


def test_blobs_that_cannot_be() -> None:
    with pytest.raises(DataError, match="blobs: classes must be at least 1, got 0"):
        blobs(classes=0)
