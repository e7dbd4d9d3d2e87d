"""Two thousand random fault schedules, every invariant checked after every event.

More of them: ``python -m tardygrad.testing.fuzz --count 20000``; a failure prints its seed and the
command that repeats it.
"""

from __future__ import annotations

import pytest

from tardygrad.testing.fuzz import describe, run_schedules

SCHEDULES = 2000
CHUNK = 100


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(0, SCHEDULES, CHUNK))
def test_no_schedule_breaks_an_invariant(first: int) -> None:
    failed = [r for r in run_schedules(range(first, first + CHUNK)) if r.problem]
    assert not failed, "\n".join(describe(result) for result in failed)
