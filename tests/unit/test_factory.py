"""Factory: from names in a configuration, or objects from Python, to an adapter."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tardygrad.config import ModelConfig
from tardygrad.data import ArraySource
from tardygrad.errors import ModelError
from tardygrad.models import NullAdapter, TorchAdapter
from tardygrad.models.base import ModelAdapter
from tardygrad.models.factory import build
from tardygrad.models.metrics import accuracy

LINEAR = {"in_features": 3, "out_features": 2}
SOURCE = ArraySource(torch.randn(8, 3), torch.arange(8) % 2)


def linear(**changes: Any) -> ModelConfig:
    return ModelConfig(**({"factory": "torch.nn:Linear", "arguments": LINEAR} | changes))


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "user_models.py").write_text(
        "import torch\n"
        "NUMBER = 3\n"
        "def perceptron(width=4):\n"
        "    return torch.nn.Linear(3, width)\n"
        "def nothing():\n"
        "    pass\n"
        "def broken():\n"
        "    return torch.nn.Linear(3, -1)\n"
    )
    (tmp_path / "user_syntax.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("user_models", "user_syntax"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_the_seed_decides_the_initial_parameters() -> None:
    one, same, other = (build(linear(), seed) for seed in (1, 1, 2))
    assert torch.equal(one.read(), same.read())
    assert not torch.equal(one.read(), other.read())
    torch.manual_seed(1)
    assert torch.equal(one.module.weight, nn.Linear(**LINEAR).weight)


def test_names_of_loss_and_metrics() -> None:
    adapter = build(linear(), 0)
    output = adapter.module(SOURCE.tensors[0])
    result = adapter.evaluate(SOURCE, 8)
    expected = nn.functional.cross_entropy(output, SOURCE.tensors[1]).item()
    assert result["loss"] == pytest.approx(expected, abs=1e-6)
    assert result["accuracy"] == accuracy(output, SOURCE.tensors[1])


def test_a_class_as_the_loss_is_instantiated() -> None:
    adapter = build(linear(loss="torch.nn:MSELoss", metrics={}), 0)
    assert isinstance(adapter.loss, nn.MSELoss)


def test_objects_by_value_go_before_names() -> None:
    config = ModelConfig(
        factory="by-value", arguments={"width": 5}, loss="by-value", metrics={"low": "by-value"}
    )
    adapter = build(
        config,
        0,
        by_value={
            "model": lambda width: nn.Linear(3, width),
            "loss": nn.CrossEntropyLoss,
            "metrics": {"low": lambda output, target: output.min()},
        },
    )
    assert adapter.module.out_features == 5
    assert set(adapter.evaluate(SOURCE, 4)) == {"loss", "low"}


def test_a_module_by_value_is_copied() -> None:
    module = nn.Linear(3, 2)
    before = module.weight.detach().clone()
    first, second = (build(linear(), 0, by_value={"model": module}) for _ in range(2))
    first.load(torch.ones(first.layout.parameters_size))
    assert torch.equal(second.read()[:6].view(2, 3), before)
    second.load(torch.zeros(second.layout.parameters_size))
    assert torch.equal(module.weight, before)
    assert first.module.weight.all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factory": "user_models:perzeptron"}, "no 'perzeptron' .did you mean 'perceptron'"),
        ({"factory": "user_modells:perceptron"}, "no module 'user_modells'"),
        ({"factory": "user_syntax:f"}, "importing 'user_syntax' failed with SyntaxError"),
        ({"factory": "user_models:NUMBER"}, "is 3, expected a function that returns an nn.Module"),
        ({"factory": "user_models:nothing"}, "returned an object of type NoneType"),
        ({"factory": "user_models:broken"}, "failed with RuntimeError"),
        (
            {"factory": "user_models:perceptron", "arguments": {"widht": 1}},
            "unexpected keyword argument 'widht'; it takes width",
        ),
        ({"loss": "torch.nn.functional:cross_entropie"}, "loss .*did you mean 'cross_entropy'"),
        ({"loss": "math:pi"}, "loss is 3.14.*expected a function"),
        ({"metrics": {"a": "tardygrad.models.metrics:acuracy"}}, "metric 'a' .*'accuracy'"),
        ({"factory": "by-value"}, "given its model from Python"),
        ({"loss": "by-value"}, "given its loss from Python"),
        ({"factory": "torch.nn:ReLU", "arguments": {}}, "ReLU has no trainable parameter"),
    ],
)
def test_what_cannot_be_built_is_one_clear_line(
    user_module: None, changes: dict[str, Any], message: str
) -> None:
    default: dict[str, Any] = {"factory": "user_models:perceptron", "arguments": {}}
    with pytest.raises(ModelError, match=message) as caught:
        build(ModelConfig(**(default | changes)), 0)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("device", ["cuda:99", "tpu"])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(ModelError, match=f"device .*{device}.*expected 'cpu'"):
        build(linear(), 0, device=device)


def test_accuracy_of_classes_pixels_probabilities_and_logits() -> None:
    scores = torch.tensor([[2.0, 1.0], [0.0, 3.0], [5.0, 0.0], [1.0, 2.0]])
    classes = torch.tensor([0, 1, 1, 1])
    assert accuracy(scores, classes) == 0.75
    assert accuracy(scores, nn.functional.one_hot(classes).float()) == 0.75
    pixels = scores.t().reshape(1, 2, 2, 2)
    assert accuracy(pixels, classes.reshape(1, 2, 2)) == 0.75
    logits = scores[:, 1] - scores[:, 0]
    assert accuracy(logits, classes) == 0.75
    assert accuracy(logits[:, None], classes.float()) == 0.75


def test_adapters_keep_to_the_protocol() -> None:
    adapters: list[ModelAdapter] = [NullAdapter(3), TorchAdapter(nn.Linear(1, 1), nn.MSELoss())]
    assert all(isinstance(adapter, ModelAdapter) for adapter in adapters)


def test_the_null_model_does_nothing() -> None:
    adapter = NullAdapter(20)
    assert (adapter.layout.parameter_count, adapter.layout.parameters_size) == (20, 32)
    out = torch.zeros(32)
    adapter.load(torch.ones(32))
    assert adapter.gradient((torch.zeros(1), torch.zeros(1)), 0) == 0.0
    adapter.decay(0.1)
    assert adapter.clip_norm(1.0) == 0.0
    adapter.clip_value(1.0)
    adapter.write_gradient(out, add=False)
    adapter.step(0.1)
    adapter.blend(torch.ones(32), 0.5)
    adapter.load_buffers(out)
    adapter.read_buffers(out)
    adapter.load_state_dict(adapter.state_dict())
    adapter.release()
    assert not out.any()
    assert not adapter.read().any()
    assert adapter.evaluate(SOURCE, 4) == {"loss": 0.0}
    assert np.prod(adapter.state_dict()["null"].shape) == 20
    with pytest.raises(ModelError, match="at least 1 parameter, got 0"):
        NullAdapter(0)
