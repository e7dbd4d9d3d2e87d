"""What tests of whole runs have in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from tardygrad.errors import UsageError


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take a second and are tested elsewhere."""

    def refuse(run: Path) -> list[Path]:
        raise UsageError("no pictures here")

    monkeypatch.setattr("tardygrad.metrics.report.report", refuse)
