"""The changelog speaks of the version that the package has."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEADING = re.compile(r"^##\s+\[?v?(\d+\.\d+[\w.+-]*)\]?", re.MULTILINE)


def top_version(changelog: str) -> str | None:
    """The version of the first heading that has one; an ``Unreleased`` above it may be."""
    match = HEADING.search(changelog)
    return match.group(1) if match else None


def test_changelog_matches_the_version() -> None:
    path = ROOT / "CHANGELOG.md"
    assert path.is_file(), "CHANGELOG.md is missing"
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    found = top_version(path.read_text(encoding="utf-8"))
    assert found == version, (
        f"CHANGELOG.md begins with version {found}, and pyproject.toml says {version}: "
        f"write a section '## {version}'"
    )


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("# Changelog\n\n## 0.1.0 (2026-01-31)\n## 0.0.9\n", "0.1.0"),
        ("## Unreleased\n\n## [1.2.3rc1] - 2026-01-31\n", "1.2.3rc1"),
        ("## v2.0\n", "2.0"),
        ("# 0.1.0\nwith 0.2.0\n", None),
    ],
)
def test_headings_are_read(text: str, version: str | None) -> None:
    assert top_version(text) == version
