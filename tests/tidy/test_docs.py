"""The checker of the pages finds what is wrong, and the pages have nothing wrong."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load_checker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_check", ROOT / "docs" / "check.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


check = load_checker()

CONFIG = '''
import math
from pathlib import Path
LIMIT: int = 3
class RunConfig:
    """Doc."""
    name: str = "run"
    def __init__(self): self.made = 1
    def merge(self): ...
class Child(RunConfig): ...
def load(): ...
'''
FILES = {
    "Makefile": "PYTHON ?= python3\nX := 1\n.PHONY: venv demo\nvenv demo-all: x\ndemo:\n\techo\n",
    "docs/other.md": "# Other page\n## A `code` heading, (really)!\n## Twice\n## Twice\n",
    "src/tardygrad/__init__.py": '__all__ = ["train"]\n',
    "src/tardygrad/config.py": CONFIG,
    "src/tardygrad/cli/__init__.py": 'COMMANDS = ["train"]',
    "src/tardygrad/cli/ledger.py": "",
    "src/tardygrad/data/__init__.py": "from tardygrad.data.mnist import load",
    "src/tardygrad/data/mnist.py": "",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def found(project: Path, page: str) -> list[str]:
    (project / "README.md").write_text(page)
    return list(check.problems(project))


GOOD = """
# Title here

[a](docs/other.md) [b](docs/other.md#twice-1) [c](#title-here) [d](https://a.org/x.md) [e](src)
![picture](docs/other.md "a title") [h](docs/other.md#a-code-heading-really)
`src/tardygrad/config.py` `src/tardygrad/config.py:12` `src/tardygrad/NAME.py` `src/*/x.py`
`tardygrad.config` `tardygrad.config.RunConfig` `tardygrad.config.RunConfig.name` `anything/else`
`tardygrad.config.RunConfig.made` `tardygrad.config.RunConfig.merge(other)` `tardygrad.train(...)`
`tardygrad.config.LIMIT` `tardygrad.config.Child.unknown` `tardygrad.data.load` `[x](nowhere.md)`
`make demo` `make venv PYTHON=python3.12` `tardygrad ledger RUN` `tardygrad RUN` `tardygrad --help`

```bash
make demo-less  # not at all
```
~~~
$ make demo && tardygrad train mnist
see [x](nowhere.md); tardygrad is here
~~~

[ref]: docs/other.md
"""


def test_a_good_page(project: Path) -> None:
    assert [problem.split(": ", 1)[1] for problem in found(project, GOOD)] == [
        "`make demo-less`: the Makefile has no such target"
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[a](docs/gone.md)", "link to docs/gone.md: there is no such file"),
        ("![a](docs/gone.png)", "link to docs/gone.png: there is no such file"),
        ("[a](../outside.md)", "link to ../outside.md: there is no such file"),
        ("[a](docs/other.md#gone)", "link to docs/other.md#gone: there is no such heading"),
        ("[a](#gone)", "link to #gone: there is no such heading"),
        ("[ref]: docs/gone.md", "link to docs/gone.md: there is no such file"),
        ("`src/tardygrad/gone.py`", "`src/tardygrad/gone.py`: there is no such file"),
        ("`tests/gone`", "`tests/gone`: there is no such file"),
        ("``tardygrad.gone``", "`tardygrad.gone`: there is no such name in the source"),
        ("`tardygrad.config.load_it()`", "`tardygrad.config.load_it()`: there is no such name"),
        ("`tardygrad.config.RunConfig.x`", "`tardygrad.config.RunConfig.x`: there is no such"),
        ("`tardygrad.data.mnist.load`", "`tardygrad.data.mnist.load`: there is no such name"),
        ("`make gone`", "`make gone`: the Makefile has no such target"),
        ("`tardygrad gone RUN`", "`tardygrad gone`: there is no such command"),
        ("```\n$ tardygrad gone\n```", "`tardygrad gone`: there is no such command"),
        ("```\nmake demo && make gone\n```", "`make gone`: the Makefile has no such target"),
    ],
)
def test_a_bad_page(project: Path, text: str, problem: str) -> None:
    [line] = found(project, f"# Title\n\n{text}\n")
    where, what = line.split(": ", 1)
    assert where.startswith("README.md:") and int(where.split(":")[1]) in (3, 4)
    assert what.startswith(problem)


def test_the_pages_are_right() -> None:
    problems = list(check.problems(ROOT))
    assert not problems, "\n" + "\n".join(problems)
