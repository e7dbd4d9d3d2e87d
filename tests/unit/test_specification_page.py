"""docs/specification.md is what the tables say that the machines run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tardygrad.protocol.states import LIVES

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_page_is_up_to_date() -> None:
    command = [sys.executable, str(DOCS / "specification_page.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_transition_is_in_a_table_and_in_a_diagram() -> None:
    text = (DOCS / "specification.md").read_text(encoding="utf-8")
    for life in LIVES:
        _, _, section = text.partition(f"## The states of a {life.name}\n")
        section = section.partition("\n## ")[0]
        for row in life.rows:
            assert f"| {row.state} | {row.cause} | {row.next} | {row.why} |" in section
            assert f"    {row.state} --> {row.next}: " in section
