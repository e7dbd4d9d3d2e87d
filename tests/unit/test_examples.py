"""The examples run as they stand."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.slow
def test_own_model_trains(tmp_path: Path) -> None:
    script = EXAMPLES / "own_model.py"
    result = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    accuracy = float(result.stdout.partition("accuracy ")[2].partition(",")[0])
    assert accuracy > 0.9
    assert "preempted: UntilGood set stop_training" in result.stdout
    [run] = (tmp_path / "runs").iterdir()
    assert (run / "metrics.jsonl").is_file()


def test_own_model_is_short_and_needs_no_guard() -> None:
    text = (EXAMPLES / "own_model.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 40
    assert "__main__" not in text


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_are_in_the_readme(path: Path) -> None:
    ast.parse(path.read_text(encoding="utf-8"), path.name)
    assert f"`examples/{path.name}`" in (EXAMPLES / "README.md").read_text(encoding="utf-8")
