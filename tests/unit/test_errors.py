"""The exception tree: complete in its picture, picklable, with the promised exit statuses."""

from __future__ import annotations

import doctest
import inspect
import pickle
import re

import pytest

from tardygrad import errors
from tardygrad.errors import ConfigError, TardygradError, nearest, unknown

TREE: list[type[TardygradError]] = [
    value
    for _, value in inspect.getmembers(errors, inspect.isclass)
    if issubclass(value, TardygradError)
]


def test_the_picture_in_the_docstring_is_the_tree() -> None:
    lines = [line for line in (errors.__doc__ or "").splitlines() if re.match(r" {4}\S", line)]
    lines += [line for line in (errors.__doc__ or "").splitlines() if "-- " in line]
    drawn = {match[1] for line in lines if (match := re.match(r"[ |`-]*(\w+)", line))}
    assert drawn == {cls.__name__ for cls in TREE}


@pytest.mark.parametrize("cls", TREE, ids=lambda cls: cls.__name__)
def test_every_error_travels_between_processes(cls: type[TardygradError]) -> None:
    error = pickle.loads(pickle.dumps(cls("what was passed, what was expected")))
    assert type(error) is cls
    assert str(error) == "what was passed, what was expected"


def test_exit_statuses() -> None:
    statuses = {cls.__name__: cls.exit_code for cls in TREE}
    usage = {name for name, status in statuses.items() if status == 2}
    assert usage == {"UsageError", "ConfigError", "DataError", "ModelError", "RunDirectoryError"}
    assert {name for name, status in statuses.items() if status == 75} == {"Preempted"}
    assert set(statuses.values()) == {1, 2, 75}


def test_a_config_error_tells_its_problems_apart() -> None:
    assert ConfigError("a: wrong\nb: wrong too").problems == ("a: wrong", "b: wrong too")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mnist-asinc", "mnist-async"),
        ("MNIST_ASYNC", "mnist-async"),
        ("mnist_async", "mnist-async"),
        ("mm", "mnist-mlp"),
        ("xyzzy", None),
        ("", None),
    ],
)
def test_nearest(name: str, expected: str | None) -> None:
    assert nearest(name, ["mnist-async", "mnist-mlp", "blobs"]) == expected


def test_unknown_without_any_choice() -> None:
    assert unknown("callback", "on_end", []) == "unknown callback 'on_end' (there are none)"


def test_doctests() -> None:
    assert doctest.testmod(errors).failed == 0
