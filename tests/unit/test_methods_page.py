"""docs/methods.md says what the methods say of themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tardygrad import methods

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_page_is_up_to_date() -> None:
    command = [sys.executable, str(DOCS / "methods_page.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_table_names_every_method() -> None:
    page = (DOCS / "methods.md").read_text(encoding="utf-8")
    table = page.partition("\n## ")[0]
    assert [name for name in methods.names() if f"(#{name})" not in table] == []


def test_every_method_says_when_to_use_it_and_when_not() -> None:
    page = (DOCS / "methods.md").read_text(encoding="utf-8")
    for section in page.split("\n## ")[1:]:
        text = " ".join(section.split())
        name = text.partition(" ")[0]
        assert "Formula" in text, name
        assert "When to use it:" in text, name
        assert "When not:" in text, name
