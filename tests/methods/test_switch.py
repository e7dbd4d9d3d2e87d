"""From one method to another: what goes over, and whose state is whose."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tardygrad.errors import CheckpointError, ConfigError
from tardygrad.methods import names, parse, switch
from tardygrad.resuming import _check_round

HEAVY = {"class": "SGD", "arguments": {"lr": 0.1, "momentum": 0.9}}
ADAM = {"class": "Adam", "arguments": {"lr": 0.01}}


def section(**settings: Any) -> dict[str, Any]:
    return {"name": "async_sgd", "weight_decay": 0.1, **settings}


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("optimizer", [HEAVY, ADAM], ids=["momentum", "adam"])
def test_every_method_takes_over_whatever_optimizer_there_is(name: str, optimizer: Any) -> None:
    assert parse(switch(section(optimizer=optimizer), name)).name == name


@pytest.mark.parametrize("name", ["dana", "easgd"])
def test_methods_with_steps_of_their_own_take_the_rate_alone(name: str) -> None:
    plain = {"class": "SGD", "arguments": {"lr": 0.1}}
    assert switch(section(optimizer=HEAVY), name)["optimizer"] == plain
    assert "optimizer" not in switch(section(optimizer=ADAM), name)


def test_what_is_a_workers_optimizer_does_not_become_a_servers() -> None:
    assert switch({"name": "diloco", "optimizer": ADAM, "clip_norm": 1.0}, "async_sgd") == {
        "name": "async_sgd",
        "clip_norm": 1.0,
    }


def test_the_same_method_stays_as_it_is() -> None:
    assert switch(section(mixing=0.5), "async_sgd") == section(mixing=0.5)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("balance", "steps"),
        ("staleness", "inverse"),
        ("consistency", "asp"),
        ("admission", "collect"),
        ("exchange_schedule", "constant"),
        ("schedule", "constant"),
        ("codec", "int8"),
    ],
)
def test_a_bare_name_is_a_choice(key: str, name: str) -> None:
    method = "async_diloco" if key == "balance" else "async_sgd"
    bare, whole = parse({"name": method, key: name}), parse({"name": method, key: {"name": name}})
    assert bare == whole and getattr(bare, key).name == name


def kind(name: str, **settings: Any) -> str:
    return parse({"name": name, **settings}).kind


def test_whose_state_can_be_taken_up() -> None:
    assert kind("async_sgd") == kind("sync_sgd") == kind("rennala")
    assert kind("async_sgd") != kind("async_sgd", optimizer=HEAVY)
    assert kind("async_sgd", optimizer=ADAM) == kind("sync_sgd", optimizer=ADAM)
    assert kind("dc_asgd") != kind("dc_asgd", optimizer=ADAM)
    assert kind("local_sgd") != kind("diloco")
    assert kind("async_sgd") != kind("local_sgd")


def test_only_its_own_method_may_end_an_open_round() -> None:
    state = {"round": {"gathered": 2, "of": "softsync, collect"}}
    job: Any = SimpleNamespace(method=parse({"name": "softsync"}))
    _check_round(state, job)
    other: Any = SimpleNamespace(method=parse({"name": "async_sgd"}))
    with pytest.raises(CheckpointError, match="open round of 2 updates"):
        _check_round(state, other)
    _check_round({"round": {"gathered": 0, "of": "softsync, collect"}}, other)
    _check_round({}, other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"outer": ADAM}, "an outer step of its own"),
        (
            {"outer": {"arguments": {"lr": 0.7, "momentum": 0.9, "nesterov": True}}},
            "an outer step of its own",
        ),
        ({"momentum_every": 4, "momentum_share": 0.5}, "at most 1 / momentum_every"),
    ],
)
def test_delayed_momentum_refuses_what_it_would_ignore(settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse({"name": "async_diloco", **settings})
