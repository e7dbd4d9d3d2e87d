"""An inner step of plain SGD goes another way where the model allows it, to the same bits."""

from __future__ import annotations

import pytest
import torch

from tardygrad.methods.base import Step
from tardygrad.methods.local_sgd import LocalSGD
from tardygrad.methods.rules.local import InnerOptimizer
from tardygrad.models.torch import TorchAdapter


def trained(dtype: torch.dtype, *, short: bool) -> tuple[bool, torch.Tensor]:
    """Whether the short way would be taken, and the parameters after some steps."""
    torch.manual_seed(0)
    layers = torch.nn.Linear(13, 37), torch.nn.Tanh(), torch.nn.Linear(37, 3)
    module = torch.nn.Sequential(*layers).to(dtype)
    adapter = TorchAdapter(module, lambda out, y: torch.nn.functional.cross_entropy(out.float(), y))
    method = LocalSGD.model_validate({"optimizer": {"class": "SGD", "arguments": {"lr": 0.0537}}})
    inner = InnerOptimizer(method, adapter)
    takes = inner._is_plain
    inner._is_plain = takes and short
    drawn = torch.Generator().manual_seed(1)
    for number in range(50):
        x = torch.randn(7, 13, generator=drawn).to(dtype)
        y = torch.randint(3, (7,), generator=drawn)
        inner.step(Step((x, y), number, number, 1))
    return takes, inner.flat.clone()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_ways_come_to_the_same_bits(dtype: torch.dtype) -> None:
    takes, found = trained(dtype, short=True)
    assert takes == (dtype == torch.float32)
    assert torch.equal(found, trained(dtype, short=False)[1])
