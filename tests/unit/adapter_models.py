"""Models and helpers of the tests of TorchAdapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tardygrad.models.metrics import accuracy
from tardygrad.models.torch import TorchAdapter

Batch = tuple[torch.Tensor, ...]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 7), nn.ReLU(), nn.Linear(7, 10))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 10)
    )


def dropout() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 20), nn.Dropout(0.5), nn.Linear(20, 10))


def frozen() -> nn.Module:
    module = cnn()
    module[0].requires_grad_(False)
    return module


class Tied(nn.Module):
    """Encoder and decoder share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(36, 36, bias=False)
        self.decoder = nn.Linear(36, 36)
        self.decoder.weight = self.encoder.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(x.flatten(1)).relu())[:, :10]


class Half(nn.Module):
    """Parameters in half precision behind a float32 border."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.net = mlp().to(dtype)
        self.dtype = dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x.to(self.dtype)).float()


class Branches(nn.Module):
    """Uses one of two branches, by the sign of the first pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(36, 10)
        self.right = nn.Linear(36, 10)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = self.left if x.flatten()[0] < 0 else self.right
        return branch(x.flatten(1))


class Words(nn.Module):
    """A sparse gradient beside dense ones, and a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 4, sparse=True)
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.out = nn.Linear(5, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = (x.flatten(1)[:, :6].abs() * 100).long() % 10
        return self.out(self.lstm(self.words(tokens))[0][:, -1])


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """These models are so small that more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "cnn": cnn,
    "dropout": dropout,
    "frozen": frozen,
    "tied": Tied,
    "bfloat16": Half,
    "branches": Branches,
    "channels_last": lambda: cnn().to(memory_format=torch.channels_last),
}


def batches(count: int, size: int = 8, seed: int = 5) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, 1, 6, 6, generator=generator),
            torch.randint(0, 10, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def make(model: Callable[[], nn.Module], seed: int = 0, **options: Any) -> TorchAdapter:
    torch.manual_seed(seed)
    return TorchAdapter(model(), F.cross_entropy, {"accuracy": accuracy}, **options)


def twin(model: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return model()


def assert_same_state(adapter: TorchAdapter, module: nn.Module) -> None:
    ours, plain = adapter.state_dict(), module.state_dict()
    assert ours.keys() == plain.keys()
    for name, value in plain.items():
        assert torch.equal(ours[name], value), name
