"""Real processes: every test here is slow, and must leave nothing behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_runs import alive, descendants, leftovers, wait_until


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def nothing_stays(no_pictures: None) -> Iterator[None]:
    """No process and no runtime directory outlives a test."""
    before = descendants(os.getpid())
    yield
    new = [p for p in descendants(os.getpid()) if p not in before]
    wait_until(lambda: not alive(new), f"processes {new} are gone")
    assert not leftovers(os.getpid())
