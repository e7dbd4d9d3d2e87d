"""TorchAdapter: losses, randomness, modes, buffers, state, and what cannot be trained."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from adapter_models import (
    MODELS,
    assert_same_state,
    batches,
    cnn,
    dropout,
    make,
    mlp,
    one_thread,
)
from torch import nn
from torch.nn import functional as F

from tardygrad.data import ArraySource
from tardygrad.errors import ModelError
from tardygrad.models.metrics import accuracy
from tardygrad.models.torch import TorchAdapter

__all__ = ["one_thread"]


# --- losses, randomness, modes ---------------------------------------------------------------


def test_dropout_depends_on_the_seed_alone() -> None:
    batch = batches(1)[0]
    adapter, other = make(dropout), make(dropout)
    losses = [adapter.gradient(batch, seed) for seed in (1, 2, 1)]
    assert losses[0] == losses[2] != losses[1]
    torch.manual_seed(99)
    assert other.gradient(batch, 1) == losses[0]


def test_a_loss_that_is_not_finite_is_returned() -> None:
    x, y = batches(1)[0]
    assert np.isnan(make(mlp).gradient((x * torch.nan, y), seed=0))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (nn.CrossEntropyLoss(reduction="none"), r"shape \(8,\), expected a scalar"),
        (lambda output, target: 3.0, "type float, expected a tensor"),
        (lambda output, target: output.detach().mean(), "depends on no trainable parameter"),
    ],
)
def test_losses_that_cannot_be_trained(loss: Any, message: str) -> None:
    adapter = TorchAdapter(mlp(), loss)
    with pytest.raises(ModelError, match=message):
        adapter.gradient(batches(1)[0], seed=0)


def test_models_may_have_several_inputs() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 1)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return self.linear(a) + self.linear(b)

    adapter = TorchAdapter(Sum(), F.mse_loss)
    batch = (torch.ones(4, 2), torch.ones(4, 2), torch.zeros(4, 1))
    assert adapter.gradient(batch, seed=0) > 0
    assert adapter.evaluate(ArraySource(*batch), 2)["loss"] > 0


def test_evaluation_weighs_batches_by_samples_and_trains_nothing() -> None:
    adapter = make(cnn)
    for batch in batches(3):
        adapter.gradient(batch, seed=0)
        adapter.step(0.1)
    before = adapter.state_dict()
    x, y = batches(1, size=25)[0]
    result = adapter.evaluate(ArraySource(x, y), batch_size=10)
    plain = copy.deepcopy(adapter.module).eval()
    assert result["loss"] == pytest.approx(F.cross_entropy(plain(x), y).item(), rel=1e-5)
    assert result["accuracy"] == pytest.approx(accuracy(plain(x), y))
    assert adapter.module.training
    for name, value in adapter.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_metric_that_is_no_number() -> None:
    adapter = TorchAdapter(mlp(), F.cross_entropy, {"scores": lambda output, target: output})
    with pytest.raises(ModelError, match=r"'scores' of a test batch is shape \(8, 10\)"):
        adapter.evaluate(ArraySource(*batches(1)[0]), 8)


def test_frozen_batch_norm_stays_in_evaluation_mode() -> None:
    module = cnn()
    module[1].eval()
    adapter = TorchAdapter(module, F.cross_entropy)
    batch = batches(1)[0]
    adapter.gradient(batch, seed=0)
    adapter.evaluate(ArraySource(*batch), 8)
    adapter.gradient(batch, seed=0)
    assert [m.training for m in module] == [True, False, True, True, True]
    assert not module[1].running_mean.any()


def test_a_model_that_comes_in_evaluation_mode_is_trained() -> None:
    adapter = TorchAdapter(cnn().eval(), F.cross_entropy)
    assert all(module.training for module in adapter.module.modules())


# --- buffers and state -----------------------------------------------------------------------


class Averages(nn.Module):
    """Buffers of all kinds, one of them put in anew at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(36, 10)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("wide", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("cache", torch.full((4,), -torch.inf), persistent=False)
        self.register_buffer("nothing", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        self.mean = self.mean + x.mean()
        return self.linear(x.flatten(1))


def test_floating_buffers_of_the_state_travel() -> None:
    adapter, other = make(Averages), make(Averages)
    assert [field.name for field in adapter.layout.buffers] == ["mean", "wide"]
    adapter.gradient(batches(1)[0], seed=0)
    values = torch.full((adapter.layout.buffers_size,), 7.0)
    adapter.read_buffers(values)
    assert torch.equal(values[:3], adapter.module.mean)
    assert values[:3].all()
    other.load_buffers(values)
    assert torch.equal(other.module.mean, adapter.module.mean)
    assert (int(other.module.seen), int(adapter.module.seen)) == (0, 1)
    assert other.module.wide.dtype == torch.float64


def test_batch_norm_statistics_travel() -> None:
    adapter, other = make(cnn), make(cnn)
    for batch in batches(2):
        adapter.gradient(batch, seed=0)
    values = torch.zeros(adapter.layout.buffers_size)
    adapter.read_buffers(values)
    other.load_buffers(values)
    for name in ("1.running_mean", "1.running_var"):
        assert torch.equal(other.state_dict()[name], adapter.state_dict()[name])
    assert other.module[1].num_batches_tracked == 0


def test_models_without_buffers() -> None:
    adapter = make(mlp)
    assert adapter.layout.buffers_size == 0
    adapter.read_buffers(torch.zeros(0))
    adapter.load_buffers(torch.zeros(0))


@pytest.mark.parametrize("name", MODELS)
def test_state_dict_round_trip(name: str) -> None:
    adapter, other = make(MODELS[name], seed=1), make(MODELS[name], seed=2)
    adapter.gradient(batches(1)[0], seed=0)
    state = adapter.state_dict()
    assert len({value.untyped_storage().data_ptr() for value in state.values()}) == len(state)
    other.load_state_dict(state)
    assert_same_state(other, adapter.module)
    assert torch.equal(other.read(), adapter.read())
    adapter.step(1.0)
    assert not torch.equal(other.read(), adapter.read())


def test_the_state_of_another_model_is_refused() -> None:
    with pytest.raises(ModelError, match=r"not of this model.*Missing key") as caught:
        make(mlp).load_state_dict(make(cnn).state_dict())
    assert "\n" not in str(caught.value)


# --- what cannot be trained ------------------------------------------------------------------


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.ones(3))
        self.b = nn.Parameter(self.a.data)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (mlp().double(), "'1.weight' has dtype float64; expected float32"),
        (nn.Linear(2, 2, dtype=torch.complex64), "'weight' has dtype complex64"),
        (mlp().requires_grad_(False), "Sequential has no trainable parameter"),
        (nn.Flatten(), "Flatten has no trainable parameter"),
        (nn.LazyLinear(3), "'weight' has no shape yet"),
        (nn.Linear(2, 2, device="meta"), "'weight' is on device meta"),
        (Shared(), "'a' and 'b' are two that share memory"),
    ],
)
def test_modules_that_cannot_be_trained(module: nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        TorchAdapter(module, F.cross_entropy)


def test_a_loss_with_parameters_is_refused() -> None:
    with pytest.raises(ModelError, match="Linear has trainable parameters"):
        TorchAdapter(mlp(), nn.Linear(1, 1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", MODELS)
def test_on_cuda_the_vectors_stay_in_host_memory(name: str) -> None:
    adapter, other = make(MODELS[name], device="cuda"), make(MODELS[name])
    other.load(adapter.read())
    tolerance = {"rtol": 1e-2, "atol": 1e-3}
    outs = [torch.full((adapter.layout.parameters_size,), torch.nan) for _ in range(2)]
    for batch in batches(3):
        for one, out in zip((adapter, other), outs, strict=True):
            one.gradient(batch, seed=0)
            one.decay(0.01)
            one.clip_norm(1.0)
            one.write_gradient(out, add=False)
            one.write_gradient(out, add=True)
            one.step(0.1)
            one.blend(torch.zeros(len(out)), 0.1)
        if name != "dropout":  # another generator, other numbers
            torch.testing.assert_close(outs[0], outs[1], **tolerance)
            torch.testing.assert_close(adapter.read(), other.read(), **tolerance)
    assert adapter.read().device.type == "cpu"
    buffers = torch.zeros(adapter.layout.buffers_size)
    adapter.read_buffers(buffers)
    adapter.load_buffers(buffers)
    state = adapter.state_dict()
    assert {value.device.type for value in state.values()} == {"cpu"}
    adapter.load_state_dict(state)
    assert adapter.evaluate(ArraySource(*batches(1)[0]), 3)["loss"] > 0
