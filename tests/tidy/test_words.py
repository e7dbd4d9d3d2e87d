"""Nothing speaks of the place it was written in, and nothing is left to do."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = {".git", ".venv", "__pycache__", "build", "dist", "node_modules", "results", "runs"}
TEXTS = {".cff", ".cfg", ".css", ".html", ".ini", ".ipynb", ".js", ".json", ".md", ".py", ".pyi"}
TEXTS |= {".rst", ".sh", ".svg", ".toml", ".txt", ".yaml", ".yml", ""}


def spell(text: str) -> str:
    """Words are written with a + inside, so that this file does not contain them itself."""
    return text.replace("+", "")


PLACES = re.compile(
    "|".join(
        [
            spell(r"(?<![\w.:/~-])/wo+rk(?![\w-])"),
            spell(r"(?<![\w/])\.lib+rary\b"),
            spell(r"\.\./sha+red\b"),
            spell(r"/tmp/con+tract\b"),
        ]
    )
)
UNFINISHED = re.compile(spell(r"\b(TO+DO|FIX+ME|XX+X|HA+CK)\b"))


def hits(pattern: re.Pattern[str], label: str, text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), 1):
        for match in pattern.finditer(line):
            yield f"{label}:{number}: {match.group()!r} in: {line.strip()[:90]}"


def texts(root: Path) -> Iterator[tuple[str, str]]:
    """All text files of the project; what is built, installed or recorded is not of it."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(
            name
            for name in folders
            if name not in SKIPPED and not name.endswith(("_cache", ".egg-info"))
        )
        folders[:] = [name for name in folders if name != ".hypothesis"]
        for name in sorted(files):
            path = Path(folder, name)
            if path.suffix in TEXTS and path.is_file():
                yield str(path.relative_to(root)), path.read_text("utf-8", errors="replace")


def test_no_place_of_writing_is_named() -> None:
    problems = [hit for label, text in texts(ROOT) for hit in hits(PLACES, label, text)]
    assert not problems, "\n" + "\n".join(problems)


def test_nothing_is_left_to_do() -> None:
    problems = [hit for label, text in texts(ROOT / "src") for hit in hits(UNFINISHED, label, text)]
    assert not problems, "\n" + "\n".join(problems)


@pytest.mark.parametrize(
    "text",
    ["see /wo+rk/main", "cd /wo+rk", "'.lib+rary/x'", "../sha+red/a.md", "/tmp/con+tract.md"],
)
def test_places_are_recognised(text: str) -> None:
    assert len(list(hits(PLACES, "a", f"fine\n{spell(text)}"))) == 1


@pytest.mark.parametrize(
    "text",
    ["net/wo+rk", "do/wo+rk", "https://a.org/wo+rk/x", "a.lib+rary", "/wo+rkers", "../shard"],
)
def test_other_words_are_not(text: str) -> None:
    assert list(hits(PLACES, "a", spell(text))) == []


def test_unfinished_words_are_recognised() -> None:
    assert len(list(hits(UNFINISHED, "a", spell("# TO+DO: more\nmastodon TO+DOS")))) == 1


def test_only_texts_of_the_project_are_read(tmp_path: Path) -> None:
    for name in ("a.py", "Makefile", "b.png", ".venv/c.py", "x/.ruff_cache/d", "src/x.egg-info/e"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text")
    assert [label for label, _ in texts(tmp_path)] == ["Makefile", "a.py"]
