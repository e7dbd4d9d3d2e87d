"""docs/python.md names everything public, and its examples run as they stand."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tardygrad
from tardygrad.data import mnist

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"


def test_every_public_name_is_there() -> None:
    page = PAGE.read_text(encoding="utf-8")
    found = set(re.findall(r"tardygrad\.(\w+)", page))
    assert sorted(set(tardygrad.__all__) - found) == []


def test_every_callback_is_there_with_its_arguments() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name, value in vars(tardygrad.Callback).items():
        if inspect.isfunction(value):
            assert f"| `{name}({', '.join(inspect.signature(value).parameters)})` |" in page
        elif not name.startswith("_"):
            assert f"self.{name} = " in page


def test_every_field_of_a_result_is_there() -> None:
    page = PAGE.read_text(encoding="utf-8")
    fields = {field.name for field in dataclasses.fields(tardygrad.Result)}
    properties = {
        name for name, value in vars(tardygrad.Result).items() if isinstance(value, property)
    }
    rows = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert sorted((fields | properties) - rows) == []


def test_every_argument_is_there() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for function in (tardygrad.train, mnist.load):
        for name in inspect.signature(function).parameters:
            assert name == "settings" or f"`{name}`" in page


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_examples_run(tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    (tmp_path / "page.py").write_text("\n".join(re.findall(r"```python\n(.*?)```", page, re.S)))
    done = subprocess.run(
        [sys.executable, "page.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "preempted UntilGood set stop_training [" in done.stdout
    assert "\nexact: 9,216 samples applied once on each of 2 shards" in done.stdout
    assert re.search(r"^True [0-9a-f]{64}$", done.stdout, re.MULTILINE)
