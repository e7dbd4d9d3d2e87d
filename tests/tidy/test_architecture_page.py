"""The architecture page names every module, and nothing that is not there.

The page has a fenced block that begins with ``src/tardygrad/`` and lists what lies below, one name
a line, indented, with a remark after it.  The modules of a folder may also stand on its line::

    src/tardygrad/
      config.py       frozen, validated
      data/           sources.py fragments.py mnist.py
      methods/        one file per method
        async_sgd.py  asynchronous SGD

``__init__.py`` need not be named.  A tree in the README may be shorter, but not wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "src/tardygrad"
PAGE = "docs/architecture.md"

FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
ENTRY = re.compile(r"(?P<indent>[\s│├└─|`+-]*)(?P<name>[\w.-]+/?)(?P<rest>\s.*)?$")
MODULE = re.compile(r"\w+\.py")


def trees(markdown: str) -> Iterator[list[str]]:
    """The fenced blocks whose first line names a folder and nothing else."""
    for block in FENCE.findall(markdown):
        lines = [line for line in block.splitlines() if line.strip()]
        if len(lines) > 1 and re.fullmatch(r"(\.|[\w.-]+(/[\w.-]+)*)/(\s.*)?", lines[0]):
            yield lines


def names(lines: list[str]) -> Iterator[str]:
    """All paths a tree names; folders end in a slash."""
    root = PurePosixPath(lines[0].split()[0])
    folders: list[tuple[int, PurePosixPath]] = [(-1, root)]
    yield f"{root}/"
    for line in lines[1:]:
        entry = ENTRY.match(line)
        if entry is None:
            continue
        depth, name = len(entry["indent"]), entry["name"]
        while folders[-1][0] >= depth:
            folders.pop()
        path = folders[-1][1] / name
        if name.endswith("/"):
            yield f"{path}/"
            folders.append((depth, path))
            words = [word.strip(",;:") for word in (entry["rest"] or "").split()]
            yield from (str(path / word) for word in words if MODULE.fullmatch(word))
        elif "." in name:
            yield str(path)


def modules(root: Path) -> set[str]:
    return {
        str(path.relative_to(root).as_posix())
        for path in (root / PACKAGE).rglob("*.py")
        if path.name != "__init__.py"
    }


def missing(named: set[str], root: Path) -> list[str]:
    """What is named and not there."""
    return sorted(
        name
        for name in named
        if not ((root / name).is_dir() if name.endswith("/") else (root / name).is_file())
    )


def package_tree(markdown: str) -> set[str]:
    found = [tree for tree in trees(markdown) if tree[0].split()[0].rstrip("/") == PACKAGE]
    assert found, f"{PAGE} has no fenced block that begins with {PACKAGE}/ (see {__file__})"
    return {name for tree in found for name in names(tree)}


def test_the_page_and_the_package_agree() -> None:
    path = ROOT / PAGE
    assert path.is_file(), f"{PAGE} is missing"
    named = package_tree(path.read_text(encoding="utf-8"))
    unnamed = sorted(modules(ROOT) - named)
    absent = missing(named, ROOT)
    assert not unnamed, f"the tree in {PAGE} does not name: {', '.join(unnamed)}"
    assert not absent, f"the tree in {PAGE} names what is not there: {', '.join(absent)}"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_other_trees_name_only_what_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    absent = missing({name for tree in trees(text) for name in names(tree)}, ROOT)
    assert not absent, f"a tree in {page} names what is not there: {', '.join(absent)}"


SAMPLE = """
```bash
make demo
```
```text
src/tardygrad/      the package
  __init__.py       the public API; see also cli/
  data/             sources.py, fragments.py: who gets what
  engines/          three of them
    base.py         what they share
    deep/
      inner.py
  config.py         beside data/
```
"""
DRAWN = """
```
src/tardygrad/
├── __init__.py     the public API
├── data/           sources.py fragments.py
├── engines/
│   ├── base.py
│   └── deep/
│       └── inner.py
└── config.py
```
"""


@pytest.mark.parametrize("text", [SAMPLE, DRAWN])
def test_trees_are_read(text: str) -> None:
    assert package_tree(text) == {
        "src/tardygrad/",
        "src/tardygrad/__init__.py",
        "src/tardygrad/data/",
        "src/tardygrad/data/sources.py",
        "src/tardygrad/data/fragments.py",
        "src/tardygrad/engines/",
        "src/tardygrad/engines/base.py",
        "src/tardygrad/engines/deep/",
        "src/tardygrad/engines/deep/inner.py",
        "src/tardygrad/config.py",
    }


def test_differences_are_found(tmp_path: Path) -> None:
    for name in ("config.py", "data/sources.py", "data/extra.py", "data/__init__.py"):
        path = tmp_path / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    named = package_tree(SAMPLE)
    assert modules(tmp_path) - named == {"src/tardygrad/data/extra.py"}
    assert "src/tardygrad/engines/" in missing(named, tmp_path)
    assert "src/tardygrad/data/fragments.py" in missing(named, tmp_path)
    assert "src/tardygrad/config.py" not in missing(named, tmp_path)


def test_a_page_without_a_tree_is_an_error() -> None:
    with pytest.raises(AssertionError, match="no fenced block"):
        package_tree("```\nelsewhere/\n  a.py\n```")
