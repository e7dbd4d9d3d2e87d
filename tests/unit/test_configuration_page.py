"""docs/configuration.md names every key that a configuration may have, with its true default."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from tardygrad import codecs, documents, methods
from tardygrad.codecs.base import Codec
from tardygrad.config import DEFAULT_METHOD, Duration, Fault, RunConfig
from tardygrad.engines import inline
from tardygrad.sections import FAMILIAR, Section
from tardygrad.training import _FIXED_ON_RESUME

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
ROW = re.compile(r"^\| `(?P<key>[a-z_.]+)` \| (?:`(?P<value>[^`]*)`|required) \| \S", re.MULTILINE)
REQUIRED = "required"

Keys = dict[str, Any]


def rows(page: str) -> list[tuple[str, Any]]:
    """Key and default of every row of a table that describes a key."""
    return [
        (
            row["key"],
            REQUIRED if row["value"] is None else documents.parse(row["value"], row["key"]),
        )
        for row in ROW.finditer(page)
    ]


def inside(annotation: Any) -> list[type[BaseModel]]:
    """The section classes that may stand at a key."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for argument in get_args(annotation) for kind in inside(argument)]


def keys(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and defaults; of several alternatives, those of all."""
    for name, field in section.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        kinds = [kind for kind in inside(field.annotation) if kind not in (Duration, Fault)]
        if Codec in kinds:
            # The alternatives are found by their files' names.
            kinds = [codecs.find(each) for each in codecs.names()]
        default = field.get_default(call_default_factory=True)
        for kind in kinds:
            for key, value in keys(kind, f"{path}."):
                # The alternative that is the default says which name is the default.
                if key != f"{path}.name" or isinstance(default, kind):
                    yield key, value
        if not kinds and path != "method":
            yield path, REQUIRED if default is PydanticUndefined else plain(default)


def plain(default: Any) -> Any:
    """A default as people write it in YAML."""
    if isinstance(default, Duration):
        return default.mean_s
    return list(default) if isinstance(default, tuple) else default


def expected() -> Keys:
    found: Keys = {**dict(keys(Duration)), **dict(keys(Fault)), **dict(keys(RunConfig))}
    # What other methods have beside these stands on the page of the methods.
    found.update(keys(methods.find(DEFAULT_METHOD), "method."))
    return found


def test_the_page_names_every_key_with_its_default() -> None:
    named = rows(PAGE.read_text(encoding="utf-8"))
    assert len(named) == len(dict(named)), "a key stands on the page twice"
    found, wanted = dict(named), expected()
    assert sorted(wanted.keys() - found.keys()) == [], "keys that the page lacks"
    assert sorted(found.keys() - wanted.keys()) == [], "keys that no longer exist"
    assert {k: (found[k], wanted[k]) for k in wanted if found[k] != wanted[k]} == {}


def test_the_page_names_what_no_resume_changes() -> None:
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    sentence = page.partition(" may change all but ")[2].partition(", because")[0]
    assert sorted(re.findall(r"`(\w+)`", sentence)) == sorted(_FIXED_ON_RESUME)


def test_no_limit_means_what_the_page_says() -> None:
    assert "`null` = ten million" in PAGE.read_text(encoding="utf-8")
    assert inline._WAIT_LIMIT_S == 10_000_000


def test_hints_lead_to_keys_that_exist() -> None:
    arguments = {
        f"method.optimizer.arguments.{name}"
        for optimizer in (torch.optim.SGD, torch.optim.Adam)
        for name in inspect.signature(optimizer).parameters
    }
    sections = {key.rpartition(".")[0] for key in expected()}
    assert set(FAMILIAR.values()) - arguments - expected().keys() - sections == set()


def test_rows_are_read() -> None:
    page = "| key | default | m |\n|---|---|---|\n| `a.b` | `1.0` | x |\n| `c` | required | y |\n"
    assert rows(page + "| `d` | `{lr: 0.1}` | z |\n| `e` | `null` |  |\n") == [
        ("a.b", 1.0),
        ("c", REQUIRED),
        ("d", {"lr": 0.1}),
    ]


def test_keys_are_found() -> None:
    class Inner(Section):
        depth: int = 3

    class Outer(Section):
        must: int
        inner: Inner = Inner()
        times: tuple[Duration, ...] = ()
        pause: Duration = Duration(mean_s=0.5)

    assert dict(keys(Outer)) == {"must": REQUIRED, "inner.depth": 3, "times": [], "pause": 0.5}


@pytest.mark.parametrize("key", ["method.staleness.below", "failure.lease_s", "mean_s", "rate"])
def test_the_keys_of_every_level_are_expected(key: str) -> None:
    assert key in expected()
