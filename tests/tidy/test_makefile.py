"""The Makefile installs once, says what is wrong, and has the targets that the pages promise.

A script stands in for Python: it makes environments whose interpreter only notes what it was asked.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")

PYTHON = """#!/bin/sh
case "$1" in
  --version) echo "Python $VERSION" ;;
  -c) test "$VERSION" != 3.9.2 ;;
  -m)
    if [ "$2" = venv ]; then
      test -z "$NO_VENV" || { mkdir -p "$3"; touch "$3/pyvenv.cfg"; exit 1; }
      mkdir -p "$3/bin"; touch "$3/pyvenv.cfg"; cp "$0" "$3/bin/python"
      printf '#!/bin/sh\\necho "tardygrad $*" >>calls\\n' >"$3/bin/tardygrad"
      chmod +x "$3/bin/tardygrad"
    else
      shift; echo "$*" >>calls
      case "$1" in pip) test -z "$NO_NETWORK" ;; pytest) exit ${PYTEST:-0} ;; esac
    fi ;;
  *) echo "$*" >>calls ;;
esac
"""


class Checkout:
    """A fresh clone, as far as the Makefile can see."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy2(ROOT / name, path / name)
            os.utime(path / name, (1e9, 1e9))
        (path / "python").write_text(PYTHON)
        (path / "python").chmod(0o755)

    def make(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        inherited = {key: text for key, text in os.environ.items() if not key.startswith("MAKE")}
        return subprocess.run(
            ["make", "PYTHON=./python", *words],
            cwd=self.path,
            env={**inherited, "VERSION": "3.11.7", **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def calls(self) -> list[str]:
        """What was run since the last question."""
        path = self.path / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def pip(extras: str) -> str:
    return f"pip install --quiet --disable-pip-version-check -c constraints.txt -e .[{extras}]"


def test_installs_once_and_again_when_versions_change(checkout: Checkout) -> None:
    assert checkout.make().returncode == 0
    assert checkout.calls() == [pip("dev")]
    again = checkout.make()
    assert (again.returncode, checkout.calls()) == (0, [])
    assert "installing" not in again.stdout
    for name in ("pyproject.toml", "constraints.txt"):
        os.utime(checkout.path / name, (2e9, 2e9))
        assert checkout.make().returncode == 0
        assert checkout.calls() == [pip("dev")]
        os.utime(checkout.path / name, (1e9, 1e9))


def test_demo_installs_only_what_it_needs(checkout: Checkout) -> None:
    assert checkout.make("demo").returncode == 0
    assert checkout.calls() == [pip("mnist,report"), "tardygrad train mnist-async"]
    checkout.make("demo", "ARGS=--quiet")
    assert checkout.calls() == ["tardygrad train mnist-async --quiet"]
    checkout.make()
    assert checkout.calls() == [pip("dev")]


def test_demo_after_development_installs_nothing(checkout: Checkout) -> None:
    checkout.make()
    checkout.calls()
    checkout.make("demo")
    assert checkout.calls() == ["tardygrad train mnist-async"]


def test_tests_of_both_kinds(checkout: Checkout) -> None:
    assert checkout.make("test", "ARGS=tests/unit").returncode == 0
    assert checkout.calls()[1:] == [
        "pytest -n 2 -m not slow tests/unit",
        "pytest -m slow tests/unit",
    ]
    assert checkout.make("test", PYTEST="5").returncode == 0
    assert checkout.make("test", PYTEST="1").returncode != 0


def test_chaos_and_soak(checkout: Checkout) -> None:
    checkout.make("chaos", "soak", "ARGS=--seed 3")
    _, chaos, soak = checkout.calls()
    assert chaos.startswith("tardygrad chaos mnist-async --every 2s --for 60s ")
    assert soak.startswith("tardygrad chaos mnist-async --every 20s --for 15m ")
    assert chaos.endswith(" --seed 3")
    assert soak.endswith(" --seed 3")


def test_the_other_targets(checkout: Checkout) -> None:
    assert (
        checkout.make(
            "bench", "reproduce", "lint", "docs", "FIGURES=mlp", "STUDIES=outer"
        ).returncode
        == 0
    )
    assert checkout.calls()[1:] == [
        "benchmarks mlp",
        "studies outer",
        "ruff check",
        "ruff format --check",
        "mypy",
        "docs/check.py",
    ]
    (checkout.path / "src" / "__pycache__").mkdir(parents=True)
    (checkout.path / "runs").mkdir()
    checkout.make("clean")
    assert not (checkout.path / "src" / "__pycache__").exists()
    assert (checkout.path / ".venv").exists()
    checkout.make("distclean")
    assert not (checkout.path / ".venv").exists()
    assert (checkout.path / "runs").exists()


def test_help_names_every_target(checkout: Checkout) -> None:
    text = checkout.make("help").stdout
    for target in ("demo", "test", "chaos", "soak", "bench", "reproduce", "lint", "docs", "clean"):
        assert f"make {target}" in text
    assert checkout.calls() == []


def test_an_old_python_is_told(checkout: Checkout) -> None:
    result = checkout.make(VERSION="3.9.2")
    assert result.returncode != 0
    assert "needs Python 3.11 or newer, and ./python is Python 3.9.2" in result.stderr
    assert not (checkout.path / ".venv").exists()


def test_a_missing_python_is_told(checkout: Checkout) -> None:
    result = checkout.make("PYTHON=python9")
    assert result.returncode != 0 and "there is no python9 here" in result.stderr


def test_a_failed_environment_is_tried_again(checkout: Checkout) -> None:
    result = checkout.make(NO_VENV="1")
    assert result.returncode != 0 and "python3-venv" in result.stderr
    assert checkout.make().returncode == 0
    assert checkout.calls() == [pip("dev")]


def test_a_failed_installation_is_tried_again(checkout: Checkout) -> None:
    result = checkout.make(NO_NETWORK="1")
    assert result.returncode != 0 and "PIP_FIND_LINKS" in result.stderr
    assert checkout.calls() == [pip("dev")]
    assert checkout.make().returncode == 0
    assert checkout.calls() == [pip("dev")]


def test_continuous_integration_runs_everything() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK), ".ci/run is not executable: chmod +x .ci/run"
    assert "make lint test docs" in script.read_text()
