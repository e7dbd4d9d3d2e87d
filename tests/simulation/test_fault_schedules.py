"""Three thousand random fault schedules, every invariant checked after every event.

More of them: ``python -m tardygrad.testing.fuzz --count 20000``; a failure prints its seed and the
command that repeats it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tardygrad.testing.fuzz import describe, run_schedule, run_schedules

SCHEDULES = 3000
CHUNK = 100


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(0, SCHEDULES, CHUNK))
def test_no_schedule_breaks_an_invariant(first: int) -> None:
    failed = [r for r in run_schedules(range(first, first + CHUNK)) if r.problem]
    assert not failed, "\n".join(describe(result) for result in failed)


def _seeds() -> list[int]:
    """Those that have found something; each line is a seed and what it found."""
    lines = Path(__file__).with_name("found_by_seed.txt").read_text(encoding="utf-8").splitlines()
    return [int(line.split(None, 1)[0]) for line in lines if line and not line.startswith("#")]


@pytest.mark.timeout(600)
def test_what_a_seed_has_found_stays_mended() -> None:
    failed = [r for r in map(run_schedule, _seeds()) if r.problem]
    assert not failed, "\n".join(describe(result) for result in failed)
