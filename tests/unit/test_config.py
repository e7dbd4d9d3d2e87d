"""Configuration: strict, complete, one line for each problem; documents keep all."""

from __future__ import annotations

import doctest
import math
import pickle
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from tardygrad import documents
from tardygrad.config import (
    Document,
    Duration,
    Fault,
    RunConfig,
    Section,
    load_config,
    merge,
    override,
    parse_overrides,
    to_document,
    to_yaml,
)
from tardygrad.documents import dump, parse
from tardygrad.errors import ConfigError, UsageError

MINIMAL: dict[str, Any] = {"model": {"factory": "shop.models:build"}, "data": {"source": "mnist"}}


def configure(*assignments: str) -> RunConfig:
    return RunConfig.model_validate(override(MINIMAL, assignments))


def problems(*assignments: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        configure(*assignments)
    return caught.value.problems


# What may be wrong


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        # an unknown key, with the nearest valid one
        ("worker=2", "worker: unknown key (did you mean 'workers'?)"),
        ("lease_s=2", "lease_s: unknown key (did you mean 'failure.lease_s'?)"),
        ("model.batch_size=2", "model.batch_size: unknown key (did you mean 'batch_size'?)"),
        ("failure.lease=2", "failure.lease: unknown key (did you mean 'lease_s'?)"),
        ("simulation.faults=[{knd: crash}]", "simulation.faults.0.knd: unknown key (did you mean"),
        ("simulation.compute.mean=1", "simulation.compute.mean: unknown key (did you mean 'mean_s"),
        ("lr=1", "lr: unknown key (did you mean 'method.optimizer.arguments.lr'?)"),
        ("momentum=1", "momentum: unknown key (did you mean 'method.optimizer.arguments.momentum'"),
        ("failure.clip_norm=1", "failure.clip_norm: unknown key (did you mean 'method.clip_norm'"),
        ("zzzz=2", "zzzz: unknown key (valid: batch_size, checkpoint, data, "),
        # a wrong type
        ("workers=many", "workers: expected a whole number, got 'many'"),
        ("workers=2.5", "workers: expected a whole number, got 2.5"),
        ("workers=true", "workers: expected a whole number, got True"),
        ("workers='2'", "workers: expected a whole number, got '2'"),
        ("tensorboard=yes", "tensorboard: expected true or false, got 'yes'"),
        ("name=3", "name: expected a text, got 3"),
        ("model=3", "model: expected a section (key: value pairs), got 3"),
        ("method=3", "method: expected a section (key: value pairs), got 3"),
        ("simulation.compute=slow", "simulation.compute: expected a section (key: value pairs)"),
        ("simulation.faults=3", "simulation.faults: expected a list, got 3"),
        ("model.arguments=[3]", "model.arguments: expected a section (key: value pairs), got [3]"),
        ("model.arguments={3: 4}", "--set model.arguments={3: 4}: line 1: the key 3 is not a text"),
        # a value out of range
        ("workers=0", "workers: expected a number greater than or equal to 1, got 0"),
        ("servers=-1", "servers: expected a number greater than or equal to 1, got -1"),
        ("seed=-1", "seed: expected a number greater than or equal to 0, got -1"),
        ("failure.lease_s=.inf", "failure.lease_s: expected a finite number, got inf"),
        ("checkpoint.every_s=.nan", "checkpoint.every_s: expected a number greater than 0"),
        ("simulation.compute=[]", "simulation.compute: expected at least 1 in the list, got []"),
        ("engine=ray", "engine: expected 'processes' or 'inline', got 'ray'"),
        ("device=gpu", "device: expected 'cpu', 'cuda' or 'cuda:N', got 'gpu'"),
        ("name=../other", "name: expected letters, digits"),
        # references
        ("model.factory=shop", "model.factory: expected 'package.module:function', got 'shop'"),
        ("model.loss=mse", "model.loss: expected 'package.module:function', got 'mse'"),
        ("model.metrics.f1=f", "model.metrics: metric 'f1': expected 'package.module:function'"),
        ("model.metrics.loss='a:b'", "model.metrics: 'loss' is always measured"),
        ("data.source=a b", "data.source: expected the name of a data set or 'package.module:fun"),
        ("data={}", "data.source: missing; it has no default, so it must be given"),
        ("method.name=3", "method: expected the name of a method, got 3"),
        # settings that contradict each other
        ("failure.lease_s=0.3", "failure: lease_s must be more than twice heartbeat_s (0.25)"),
        ("failure.backoff_s=60", "failure: backoff_max_s must be at least backoff_s (60)"),
        ("simulation.compute=[1, 2]", "simulation.compute: expected one duration for all, or a li"),
        ("simulation.network=[1, 2]", "simulation.network: expected one duration for all, or a li"),
        (
            "simulation.faults=[{kind: crash, target: worker-4}]",
            "simulation.faults.0.target: 'worker-4' does not exist; workers are numbered 0 to 3",
        ),
        (
            "simulation.faults=[{kind: hang, target: server-1}]",
            "simulation.faults.0.target: 'server-1' does not exist; servers are numbered 0 to 0",
        ),
    ],
)
def test_one_clear_line(assignment: str, expected: str) -> None:
    assert problems(assignment)[0].startswith(expected)


def test_every_problem_has_its_line() -> None:
    found = problems("workers=0", "epoch=3", "engine=ray")
    assert [line.partition(":")[0] for line in found] == ["epoch", "workers", "engine"]


def test_what_must_be_given() -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.model_validate({})
    assert caught.value.problems == (
        "model: missing; it is a section with factory, arguments, loss, metrics",
        "data: missing; it is a section with source, arguments",
    )


def test_building_from_python_raises_the_same() -> None:
    with pytest.raises(ConfigError, match=r"^workers: expected"):
        RunConfig(**MINIMAL, workers=0)
    with pytest.raises(ConfigError, match=r"^expected a section"):
        RunConfig.model_validate([1, 2])
    with pytest.raises(ConfigError, match=r"^expected a text as the key, got 1$"):
        RunConfig.model_validate({**MINIMAL, 1: 2})
    with pytest.raises(ConfigError, match=r"^method: expected a text as the key, got None$"):
        Method.model_validate({None: 2})


def test_long_values_are_cut() -> None:
    (line,) = problems(f"workers={'x' * 1000}")
    assert len(line) < 120


# What a configuration is


def test_defaults() -> None:
    config = configure()
    assert (config.workers, config.servers, config.epochs, config.batch_size) == (4, 1, 5, 64)
    assert (config.engine, config.device, config.threads, config.seed) == ("processes", "cpu", 1, 0)
    assert config.method == {"name": "async_sgd"}
    assert config.failure.lease_s == 5.0


def test_it_is_frozen_and_travels_between_processes() -> None:
    config = configure("workers=2")
    with pytest.raises(ValueError, match="frozen"):
        config.workers = 3  # type: ignore[misc]  # that it is refused is what is tested
    assert pickle.loads(pickle.dumps(config)) == config
    assert RunConfig.model_validate(config) is config


def test_shorthands() -> None:
    assert configure("method=local_sgd").method == {"name": "local_sgd"}
    assert configure("method.momentum=0.9").method == {"name": "async_sgd", "momentum": 0.9}
    assert configure("simulation.network=0.5").simulation.network == Duration(mean_s=0.5)
    assert configure("checkpoint.every_s=.inf").checkpoint.every_s == math.inf


def test_compute_times_are_for_all_or_for_each() -> None:
    one = configure("simulation.compute=0.5").simulation
    each = configure("simulation.compute=[1, 2, 3, {mean_s: 4, distribution: exponential}]")
    assert one.compute_of(3) == Duration(mean_s=0.5)
    assert [each.simulation.compute_of(worker).mean_s for worker in range(4)] == [1, 2, 3, 4]
    links = configure("simulation.network=[1, 2, 3, {mean_s: 4, distribution: uniform}]").simulation
    assert [links.network_of(worker).mean_s for worker in range(4)] == [1, 2, 3, 4]


@given(samples=st.integers(1, 10**7), batch_size=st.integers(1, 512), workers=st.integers(1, 1000))
def test_chosen_fragments_are_neither_empty_nor_long(
    samples: int, batch_size: int, workers: int
) -> None:
    config = RunConfig(**MINIMAL, batch_size=batch_size, workers=workers)
    batches = config.fragment_batches_for(samples)
    assert 1 <= batches <= 32
    assert batches == 1 or batches * 8 * workers <= math.ceil(samples / batch_size)


def test_fragments_that_are_set_stay() -> None:
    assert configure("fragment_batches=100").fragment_batches_for(10) == 100


class Inverse(Section):
    name: Literal["inverse"] = "inverse"


class CutOff(Section):
    name: Literal["cut_off"] = "cut_off"
    below: int = Field(16, ge=1)


class Optimizer(Section):
    class_name: str = Field("SGD", alias="class")


class Method(Document):
    """A section like a method's, with a choice that its name makes."""

    where = "method"
    optimizer: Optimizer = Optimizer()
    learning_rate: float = 0.1
    staleness: Annotated[Inverse | CutOff, Field(discriminator="name")] = Inverse()


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"lr": 1.0}, "method.lr: unknown key (did you mean 'method.optimizer.arguments.lr'?)"),
        ({"learning": 1.0}, "method.learning: unknown key (did you mean 'learning_rate'?)"),
        ({"staleness": {"name": "invrse"}}, "method.staleness: unknown name 'invrse' (did you"),
        ({"staleness": {"name": "cut_off", "belw": 1}}, "method.staleness.belw: unknown key (did"),
        ({"staleness": {"name": "cut_off", "below": 0}}, "method.staleness.below: expected a num"),
        ({"staleness": {"name": "cut_off", "cut_off": 0}}, "method.staleness.cut_off: unknown k"),
        (
            {"optimizer": {"clas": "A"}},
            "method.optimizer.clas: unknown key (did you mean 'class'?)",
        ),
        ({"class": "A"}, "method.class: unknown key (did you mean 'method.optimizer.class'?)"),
        ({"optimizer": {"class": 3}}, "method.optimizer.class: expected a text, got 3"),
        ({"staleness": {}}, "method.staleness: expected a section with a name, got {}"),
        ({"staleness": 3}, "method.staleness: expected a section (key: value pairs), got 3"),
    ],
)
def test_sections_elsewhere_speak_the_same_way(document: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Method.model_validate(document)
    assert caught.value.problems[0].startswith(expected)


# Durations and faults

DURATIONS = [
    Duration(mean_s=2.0),
    Duration(distribution="uniform", mean_s=2.0, spread=1.5),
    Duration(distribution="exponential", mean_s=2.0),
    Duration(distribution="lognormal", mean_s=2.0, spread=1.0),
    Duration(distribution="shifted_exponential", mean_s=2.0, spread=0.5),
]


@pytest.mark.parametrize("duration", DURATIONS, ids=lambda duration: duration.distribution)
def test_durations_have_the_mean_and_the_spread_they_say(duration: Duration) -> None:
    rng = np.random.default_rng(7)
    samples = np.array([duration.sample(rng) for _ in range(20_000)])
    deviation = {
        "constant": 0.0,
        "uniform": duration.spread / math.sqrt(3),
        "exponential": duration.mean_s,
    }.get(duration.distribution, duration.spread)
    assert samples.min() >= 0
    assert samples.mean() == pytest.approx(duration.mean_s, rel=0.03)
    assert samples.std() == pytest.approx(deviation, rel=0.05, abs=1e-12)


@pytest.mark.parametrize("duration", DURATIONS, ids=lambda duration: duration.distribution)
def test_durations_repeat_from_the_seed(duration: Duration) -> None:
    first, second = (
        [duration.sample(rng) for _ in range(5)]
        for rng in (np.random.default_rng(3), np.random.default_rng(3))
    )
    assert first == second


def test_no_time_at_all_is_a_duration() -> None:
    rng = np.random.default_rng(0)
    assert Duration(distribution="lognormal", mean_s=0.0).sample(rng) == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{mean_s: 1, spread: 1}", "a duration that is constant has no spread"),
        ("{mean_s: 1, spread: 1, distribution: exponential}", "a duration that is exponential has"),
        ("{mean_s: 1, spread: 2, distribution: uniform}", "spread 2 exceeds mean_s 1"),
    ],
)
def test_durations_that_cannot_be(text: str, expected: str) -> None:
    assert expected in problems(f"simulation.apply={text}")[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{kind: crash}", "a fault of kind crash needs a target, such as 'worker-1'"),
        ("{kind: loss}", "a fault of kind loss needs a rate above 0"),
        ("{kind: crash, target: worker-1, for_s: 2}", "a crash has no for_s"),
        (
            "{kind: hang, target: worker}",
            "expected 'worker-N', 'server-N', 'backup-N', 'scheduler' or nothing",
        ),
        ("{kind: loss, rate: 2}", "expected a number less than or equal to 1, got 2"),
    ],
)
def test_faults_that_cannot_be(text: str, expected: str) -> None:
    assert expected in problems(f"simulation.faults=[{text}]")[0]


def test_faults() -> None:
    config = configure("simulation.faults=[{kind: blackout, target: server-0, for_s: 2}]")
    assert config.simulation.faults == (Fault(kind="blackout", target="server-0", for_s=2.0),)


# Documents


def test_written_and_read_again(tmp_path: Path) -> None:
    config = configure("simulation.compute=[1, 2, 3, 4]", "checkpoint.every_s=.inf", "name=a.b-c")
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config, "made by a test\nseed 0"), encoding="utf-8")
    assert path.read_text().startswith("# made by a test\n# seed 0\nname: a.b-c\nseed: 0\n")
    assert RunConfig.model_validate(load_config(path)) == config


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), PLAIN, max_size=4))
def test_any_document_survives_being_written(document: dict[str, Any]) -> None:
    assert parse(dump(document), "here") == document


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("-3", -3),
        ("0x10", 16),
        ("60_000", 60_000),
        ("no", "no"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("2024-01-31", "2024-01-31"),
        ("007", 7.0),
        ("1.2.3", "1.2.3"),
        ("", None),
        ("~", None),
        ("-.inf", -math.inf),
        ("[1, a]", [1, "a"]),
    ],
)
def test_scalars_mean_what_they_look_like(text: str, value: object) -> None:
    parsed = parse(text, "here")
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("workers: 2\nworkers: 3\n", "line 2: the key 'workers' stands here twice"),
        ("workers: [1\n", "line 2: "),
        ("1: 2\n", "line 1: the key 1 is not a text; if it is meant, quote it: '1'"),
        ("a:\n  ~: 2\n", "line 2: the key ~ is not a text"),
        ("a: " + "[" * 5000, "line 1: nested more than 50 levels deep"),
        ("- 1\n", "expected settings (key: value lines), found a list"),
        ("hello\n", "expected settings (key: value lines), found a text"),
        ("", "expected settings (key: value lines), found nothing"),
        ("x: !!python/object:os.system {}\n", "line 1: could not determine a constructor"),
        ("x: [*nobody]\n", "line 1: found undefined alias"),
        ("{[1]: 2}\n", "line 1: found unhashable key"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert expected in str(caught.value)
    assert str(caught.value).startswith(f"{path}:")
    assert len(caught.value.problems) == 1


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.yaml': No such file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="Is a directory"):
        load_config(tmp_path)
    (tmp_path / "image.yaml").write_bytes(b"\x89PNG\xff")
    with pytest.raises(UsageError, match="not a text file"):
        load_config(tmp_path / "image.yaml")


def test_objects_that_no_file_can_hold() -> None:
    config = RunConfig.model_validate(merge(MINIMAL, {"model": {"arguments": {"net": object()}}}))
    with pytest.raises(ConfigError, match="cannot be written to a file"):
        to_yaml(config)


def test_overrides_replace_and_make_sections() -> None:
    document = {"a": {"b": 1, "c": [1, {"d": 2}]}}
    changed = override(document, ["a.b=x=y", "a.c.1.d=3", "a.c.0=[5]", "n.e.w=", "a.e={f: 1}"])
    assert changed == {
        "a": {"b": "x=y", "c": [[5], {"d": 3}], "e": {"f": 1}},
        "n": {"e": {"w": None}},
    }
    assert document == {"a": {"b": 1, "c": [1, {"d": 2}]}}


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("workers", "--set workers: expected path.to.key=value, such as workers=2"),
        ("=2", "expected path.to.key=value"),
        ("a..b=2", "expected path.to.key=value"),
        ("x" + ".x" * 5000 + "=2", "--set x. ...: nested more than 50 levels deep"),
        ("a.b.c=2", "a.b is 1 and has no keys; set it as a whole"),
        ("a.c.7=2", "a.c is a list; expected an index from 0 to 1, got '7'"),
        ("a.c.x=2", "a.c is a list; expected an index from 0 to 1, got 'x'"),
        ("a.b=[1", "--set a.b=[1: line 1: "),
    ],
)
def test_overrides_that_fit_nowhere(assignment: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override({"a": {"b": 1, "c": [1, 2]}}, [assignment])
    assert expected in str(caught.value)


def test_overrides_for_later_merge_key_by_key() -> None:
    changes = parse_overrides(["a.b=2", "a.x.y=[1]", "c=3"])
    assert changes == {"a": {"b": 2, "x": {"y": [1]}}, "c": 3}
    document = {"a": {"b": 1, "z": 0}, "c": {"gone": 1}}
    assert merge(document, changes) == {"a": {"b": 2, "z": 0, "x": {"y": [1]}}, "c": 3}
    assert document == {"a": {"b": 1, "z": 0}, "c": {"gone": 1}}


def test_another_choice_begins_with_its_own_settings() -> None:
    document = {"method": {"name": "m", "codec": {"name": "power_sgd", "rank": 4}, "x": 1}}
    changes = parse_overrides(["method.codec.name=top_k", "method.codec.fraction=0.1"])
    found = merge(document, changes)["method"]
    assert found == {"name": "m", "codec": {"name": "top_k", "fraction": 0.1}, "x": 1}
    same = merge(document, {"method": {"codec": {"name": "power_sgd", "error_feedback": False}}})
    assert same["method"]["codec"] == {"name": "power_sgd", "rank": 4, "error_feedback": False}
    unnamed = merge({"a": {"b": 1}}, {"a": {"name": "n"}})
    assert unnamed == {"a": {"b": 1, "name": "n"}}


def test_a_text_is_the_name_of_its_section() -> None:
    changes = parse_overrides(["method.codec=top_k", "method.codec.fraction=0.1"])
    assert changes == {"method": {"codec": {"name": "top_k", "fraction": 0.1}}}


def test_a_document_holds_no_classes() -> None:
    assert to_document(configure("simulation.compute=[1, 2, 3, 4]"))["simulation"]["compute"][
        0
    ] == {
        "distribution": "constant",
        "mean_s": 1.0,
        "spread": 0.0,
    }


def test_doctests() -> None:
    assert doctest.testmod(documents).failed == 0
