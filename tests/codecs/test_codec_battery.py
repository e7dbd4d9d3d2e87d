"""Every codec passes the battery, and the battery notices what is wrong with one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tardygrad.testing.codecs as battery
from tardygrad.codecs import names
from tardygrad.codecs.base import LossyCodec, Part
from tardygrad.codecs.top_k import TopKCoder
from tardygrad.methods import find
from tardygrad.methods import names as methods
from tardygrad.testing.codecs import check_codec, check_codec_with

VARIANTS: list[dict[str, Any]] = [
    {"name": "int8", "block": 7},
    {"name": "int8", "block": 5000},
    {"name": "top_k", "fraction": 1.0},
    {"name": "top_k", "fraction": 0.5},
    {"name": "top_k", "fraction": 1e-9},
    {"name": "power_sgd", "rank": 1},
    {"name": "power_sgd", "rank": 100},
    *({"name": name, "error_feedback": False} for name in names() if name != "fp32"),
]


# Groups sum what was computed as it is, and refuse a codec.
ENCODED = [n for n in methods() if not (find(n).uses_groups or find(n).uses_peers)]


@pytest.mark.parametrize("name", names())
def test_every_codec_conforms(name: str) -> None:
    check_codec(name)


@pytest.mark.parametrize("settings", VARIANTS, ids=lambda s: "-".join(map(str, s.values())))
def test_every_codec_conforms_however_it_is_set(settings: dict[str, Any]) -> None:
    check_codec(**settings)


@pytest.mark.parametrize("method", ENCODED)
@pytest.mark.parametrize("name", names())
def test_every_method_trains_with_every_codec(name: str, method: str) -> None:
    check_codec_with(name, method)


@pytest.mark.parametrize(
    "settings",
    [
        {"in_flight": 3, "exchange_period": 2},
        {"mixing": 0.5, "in_flight": 2},
        {"staleness": {"name": "cut_off", "below": 2}, "in_flight": 2},
        {"staleness": {"name": "cut_off", "below": 2, "again": True}, "in_flight": 2},
        {"consistency": {"name": "ssp", "bound": 1}},
    ],
    ids=lambda s: "-".join(s),
)
@pytest.mark.parametrize("name", names())
def test_runs_are_repeated_however_the_method_is_set(name: str, settings: dict[str, Any]) -> None:
    check_codec_with(name, "async_sgd", **settings)


# --- the battery can fail ---------------------------------------------------------------------


class Coder(TopKCoder):
    def __init__(self, part: Part) -> None:
        super().__init__(part, 0.1)


class Shrinking(Coder):
    def decode(self, data: torch.Tensor) -> torch.Tensor:
        return super().decode(data) * -0.05


class Moody(Coder):
    def encode(self, values: torch.Tensor, out: torch.Tensor) -> None:
        super().encode(values * torch.rand(()), out)


class Spilling(Coder):
    def decode(self, data: torch.Tensor) -> torch.Tensor:
        return super().decode(data) + 1e-9


class Hiding(Coder):
    def encode(self, values: torch.Tensor, out: torch.Tensor) -> None:
        super().encode(values.nan_to_num(), out)


class Greedy(Coder):
    def encode(self, values: torch.Tensor, out: torch.Tensor) -> None:
        super().encode(values, out)
        values.zero_()


@pytest.mark.parametrize(
    ("coder", "what"),
    [
        (Shrinking, "residual"),
        (Moody, "the same values give other bytes"),
        (Spilling, "something is decoded into a gap"),
        (Hiding, "does not show|values about 1e\\+30 are not finite"),
        (Greedy, "changes the values"),
    ],
)
def test_a_broken_codec_is_noticed(
    coder: type[Coder], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(LossyCodec):
        def coder(self, part: Part) -> Coder:
            return coder(part)

    broken = Broken(name="broken")
    monkeypatch.setattr(battery, "parse", lambda section: broken)
    with pytest.raises(AssertionError, match=what):
        check_codec("broken")
