"""Functions and files stay small enough to be read in one go."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("src", "tests", "benchmarks", "studies", "examples", "docs")
FUNCTION_LINES = 70
FILE_LINES = 500


def oversized(label: str, text: str) -> Iterator[str]:
    """One line for each function and for the file, if they reach the limits."""
    lines = len(text.splitlines())
    if lines >= FILE_LINES:
        yield f"{label}: {lines} lines; a file has fewer than {FILE_LINES}: split it by topic"
    for node in ast.walk(ast.parse(text, label)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length >= FUNCTION_LINES:
                yield (
                    f"{label}:{node.lineno}: {node.name} has {length} lines; "
                    f"a function has fewer than {FUNCTION_LINES}: give its parts names"
                )


def test_functions_and_files_are_small() -> None:
    problems = [
        problem
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        for problem in oversized(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))
    ]
    assert not problems, "\n" + "\n".join(problems)


def function(lines: int, indent: str = "") -> str:
    return f"{indent}def f():\n" + f"{indent}    pass\n" * (lines - 1)


def test_the_limits_are_exact() -> None:
    assert list(oversized("a.py", function(FUNCTION_LINES - 1))) == []
    [problem] = oversized("a.py", "\n" + function(FUNCTION_LINES))
    assert problem.startswith("a.py:2: f has 70 lines")
    assert list(oversized("a.py", "\n" * (FILE_LINES - 1))) == []
    [problem] = oversized("a.py", "\n" * FILE_LINES)
    assert problem.startswith("a.py: 500 lines")


def test_methods_and_coroutines_count_too() -> None:
    method = "class A:\n" + function(FUNCTION_LINES, "    ")
    assert len(list(oversized("a.py", method))) == 1
    assert len(list(oversized("a.py", "async " + function(FUNCTION_LINES)))) == 1
