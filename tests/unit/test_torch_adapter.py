"""TorchAdapter: any module as a flat vector, with torch's own numbers, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from adapter_models import (
    MODELS,
    Branches,
    Half,
    Tied,
    Words,
    assert_same_state,
    batches,
    cnn,
    frozen,
    make,
    mlp,
    one_thread,
    twin,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

__all__ = ["one_thread"]


# --- the numbers of a loop written by hand ---------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_clip_decay_and_step_equal_torch_sgd_bit_for_bit(name: str) -> None:
    """The order of a plain loop: clip the gradient, then SGD adds the decay and steps."""
    adapter, module = make(MODELS[name]), twin(MODELS[name])
    trainable = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=0.1, weight_decay=0.03)
    for number, (x, y) in enumerate(batches(4)):
        torch.manual_seed(number)
        optimizer.zero_grad()
        loss = F.cross_entropy(module(x), y)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(trainable, 0.5)
        nn.utils.clip_grad_value_(trainable, 0.05)
        optimizer.step()

        assert adapter.gradient((x, y), seed=number) == loss.item()
        assert adapter.clip_norm(0.5) == norm.item()
        adapter.clip_value(0.05)
        adapter.decay(0.03)
        adapter.step(0.1)
        assert_same_state(adapter, module)
    assert norm > 0.5


@pytest.mark.parametrize("name", MODELS)
def test_decay_before_clip_equals_the_regularised_gradient_clipped(name: str) -> None:
    """The order of a worker: the decay is a part of the gradient that is clipped."""
    adapter, module = make(MODELS[name]), twin(MODELS[name])
    trainable = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=0.1)
    out = torch.full((adapter.layout.parameters_size,), torch.nan)
    for number, (x, y) in enumerate(batches(3)):
        torch.manual_seed(number)
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        for parameter in trainable:
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach(), alpha=0.03)
        norm = nn.utils.clip_grad_norm_(trainable, 0.5)
        gradients = [p.grad for p in trainable]
        optimizer.step()

        adapter.gradient((x, y), seed=number)
        adapter.decay(0.03)
        assert adapter.clip_norm(0.5) == norm.item()
        adapter.write_gradient(out, add=False)
        adapter.step(0.1)
        for field, gradient in zip(adapter.layout.parameters, gradients, strict=True):
            written = out[field.offset : field.stop].view(field.shape)
            expected = torch.zeros(field.shape) if gradient is None else gradient.float()
            assert torch.equal(written, expected), field.name
        assert_same_state(adapter, module)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_add_up_as_in_a_loop_that_accumulates_them(name: str) -> None:
    """Weighted, added by autograd and scaled at the end; a loss is told without its weight."""
    adapter, module = make(MODELS[name]), twin(MODELS[name])
    for number, (x, y) in enumerate(batches(3)):
        torch.manual_seed(number)
        loss = F.cross_entropy(module(x), y)
        weight = (1.0, 0.5, 2.0)[number]
        (loss * weight).backward()
        assert adapter.gradient((x, y), number, weight, add=number > 0) == loss.item()
    adapter.scale(0.25)
    out = torch.full((adapter.layout.parameters_size,), torch.nan)
    adapter.write_gradient(out, add=False)
    by_name = dict(module.named_parameters())
    for field in adapter.layout.parameters:
        written = out[field.offset : field.stop].view(field.shape)
        gradient = by_name[field.name].grad
        expected = torch.zeros(field.shape) if gradient is None else (gradient * 0.25).float()
        assert torch.equal(written, expected), field.name


def test_sparse_gradients_and_recurrent_layers() -> None:
    adapter, module = make(Words), twin(Words)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    out = torch.zeros(adapter.layout.parameters_size)
    for number, (x, y) in enumerate(batches(3)):
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        expected = module.words.weight.grad.to_dense()
        optimizer.step()
        adapter.gradient((x, y), seed=number)
        adapter.write_gradient(out, add=False)
        torch.testing.assert_close(out[:40].view(10, 4), expected)
        adapter.step(0.1)
        for name, value in module.state_dict().items():  # rows that repeat are summed first
            torch.testing.assert_close(adapter.state_dict()[name], value)


# --- parameters as a vector ------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_load_and_read_are_inverse(name: str) -> None:
    adapter, other = make(MODELS[name], seed=1), make(MODELS[name], seed=2)
    wanted = adapter.read().clone()
    assert not torch.equal(other.read(), wanted)
    other.load(wanted)
    assert torch.equal(other.read(), wanted)
    named = dict(other.module.named_parameters())
    for field in adapter.layout.parameters:
        values = wanted[field.offset : field.stop].view(field.shape)
        assert torch.equal(named[field.name].float(), values)
    covered = torch.zeros_like(wanted, dtype=torch.bool)
    for field in adapter.layout.parameters:
        covered[field.offset : field.stop] = True
    assert not wanted[~covered].any()


def test_float32_parameters_are_views_of_the_flat_vector() -> None:
    adapter = make(mlp)
    adapter.flat.zero_()
    assert not any(p.any() for p in adapter.module.parameters())
    for parameter in adapter.module.parameters():
        assert parameter.data_ptr() % 64 == adapter.flat.data_ptr() % 64


def test_load_takes_a_longer_vector() -> None:
    adapter = make(cnn)
    wanted = torch.randn(adapter.layout.size)
    buffers = adapter.state_dict()["1.running_var"]
    adapter.load(wanted)
    assert torch.equal(adapter.read(), wanted[: adapter.layout.parameters_size])
    assert torch.equal(adapter.state_dict()["1.running_var"], buffers)


def test_tied_parameters_are_one_field() -> None:
    adapter = make(Tied)
    assert [field.name for field in adapter.layout.parameters] == ["encoder.weight", "decoder.bias"]
    adapter.load(torch.zeros(adapter.layout.parameters_size))
    assert not adapter.module.decoder.weight.any()
    assert adapter.module.decoder.weight is adapter.module.encoder.weight


def test_frozen_parameters_are_in_no_vector_and_stay() -> None:
    adapter = make(frozen)
    before = adapter.module[0].weight.clone()
    names = [field.name for field in adapter.layout.parameters]
    assert names == ["1.weight", "1.bias", "4.weight", "4.bias"]
    adapter.load(torch.zeros(adapter.layout.parameters_size))
    adapter.gradient(batches(1)[0], seed=0)
    adapter.step(1.0)
    assert torch.equal(adapter.module[0].weight, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_travels_as_float32(dtype: torch.dtype) -> None:
    adapter = make(lambda: Half(dtype))
    assert {f.dtype for f in adapter.layout.parameters} == {str(dtype).removeprefix("torch.")}
    values = torch.linspace(-1, 1, adapter.layout.parameters_size)
    adapter.load(values)
    field = adapter.layout.parameters[0]
    expected = values[: field.size].to(dtype)
    assert torch.equal(adapter.module.net[1].weight.flatten(), expected)
    assert torch.equal(adapter.read()[: field.size], expected.float())


@given(st.floats(0, 1), st.booleans())
@settings(max_examples=20, deadline=None)
def test_blend_mixes(mixing: float, half: bool) -> None:
    adapter = make(Half if half else mlp)
    local = adapter.read().clone()
    pulled = torch.randn(len(local), generator=torch.Generator().manual_seed(1))
    for field in adapter.layout.parameters:
        assert field.stop <= len(pulled)
    adapter.blend(pulled, mixing)
    expected = (1 - mixing) * local + mixing * pulled
    for field in adapter.layout.parameters:
        part = slice(field.offset, field.stop)
        torch.testing.assert_close(
            adapter.read()[part], expected[part], atol=1e-6, rtol=1e-2 if half else 1e-5
        )


@pytest.mark.parametrize("model", [mlp, Half])
def test_blend_starts_from_the_parameters_as_they_are_now(model: Callable[[], nn.Module]) -> None:
    adapter = make(model)
    pulled = adapter.read().clone()
    adapter.gradient(batches(1)[0], seed=0)
    adapter.step(1.0)
    stepped = adapter.module.state_dict()
    field = adapter.layout.parameters[0]
    expected = (next(iter(stepped.values())).float() + pulled[: field.size].view(field.shape)) / 2
    adapter.blend(pulled, 0.5)
    blended = adapter.read()[: field.size].view(field.shape)
    torch.testing.assert_close(blended, expected, atol=1e-6, rtol=1e-2)
    assert not torch.equal(blended, pulled[: field.size].view(field.shape))


def test_blend_is_exact_at_its_ends_and_at_rest() -> None:
    adapter = make(mlp)
    local, pulled = adapter.read().clone(), torch.randn(adapter.layout.parameters_size)
    adapter.blend(pulled, 0.0)
    assert torch.equal(adapter.read(), local)
    adapter.blend(local, 0.3)
    assert torch.equal(adapter.read(), local)
    adapter.blend(pulled, 1.0)
    assert torch.equal(adapter.read(), pulled)


# --- gradients as a vector -------------------------------------------------------------------


def test_write_gradient_adds() -> None:
    adapter = make(cnn)
    first, second, total = (torch.zeros(adapter.layout.parameters_size) for _ in range(3))
    for batch, out, add in zip(batches(2), (first, second), (False, True), strict=True):
        adapter.gradient(batch, seed=0)
        adapter.write_gradient(out, add=False)
        adapter.write_gradient(total, add=add)
    assert first.any()
    assert torch.equal(total, first + second)


def test_write_gradient_clears_gaps_and_parameters_without_gradient() -> None:
    adapter = make(Branches)
    x, y = batches(1)[0]
    out = torch.full((adapter.layout.parameters_size,), torch.nan)
    fields = {field.name: field for field in adapter.layout.parameters}
    for sign, used, idle in ((1.0, "right", "left"), (-1.0, "left", "right")):
        x[0, 0, 0, 0] = sign
        adapter.gradient((x, y), seed=0)
        adapter.write_gradient(out, add=False)
        present, absent = fields[f"{used}.weight"], fields[f"{idle}.weight"]
        assert out[present.offset : present.stop].any()
        assert not out[absent.offset : absent.stop].any()
        assert out.isfinite().all()
    adapter.write_gradient(out, add=True)
    assert out.isfinite().all()


def test_write_gradient_before_any_gradient_writes_zeros() -> None:
    adapter = make(mlp)
    out = torch.ones(adapter.layout.parameters_size)
    adapter.write_gradient(out, add=False)
    adapter.step(1.0)
    assert not out.any()


def test_vectors_handed_in_are_let_go_of() -> None:
    """Engines hand in views of mapped memory, which cannot be unmapped while a view exists."""
    adapter = make(mlp)
    memory = bytearray(4 * adapter.layout.parameters_size)
    adapter.gradient(batches(1)[0], seed=0)
    adapter.write_gradient(torch.from_numpy(np.frombuffer(memory, np.float32)), add=False)
    with pytest.raises(BufferError):
        memory.clear()
    adapter.release()
    memory.clear()


def test_many_vectors_may_take_turns() -> None:
    adapter = make(mlp)
    slots = [torch.zeros(adapter.layout.parameters_size) for _ in range(20)]
    adapter.gradient(batches(1)[0], seed=0)
    for slot in (*slots, *slots):
        adapter.write_gradient(slot, add=False)
    assert slots[0].any()
    assert all(torch.equal(slot, slots[0]) for slot in slots)
    assert len(adapter._views) < 10


def test_borrowed_parameters_are_computed_with_and_never_changed() -> None:
    adapter, owner = make(mlp), make(mlp)
    lent = owner.read().clone() * 0.5
    before = lent.clone()
    batch = batches(1)[0]
    owner.load(lent)
    assert adapter.borrow(lent)
    assert adapter.gradient(batch, 0) == owner.gradient(batch, 0)
    adapter.step(0.1)
    owner.step(0.1)
    assert torch.equal(lent, before)
    assert torch.equal(adapter.read(), owner.read())
    assert adapter.borrow(lent)
    adapter.blend(torch.zeros_like(lent), 0.25)
    assert torch.equal(lent, before)
    assert torch.allclose(adapter.read(), 0.75 * before)
    assert not make(Half).borrow(make(Half).read())
