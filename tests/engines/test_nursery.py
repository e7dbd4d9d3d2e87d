"""The process that forks the others: it starts and reaps them, and none outlives the main one."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tardygrad.engines import nursery
from tardygrad.engines.nursery import Exit, Nursery
from tardygrad.engines.seals import Secret
from tardygrad.errors import TrainingFailed

pytestmark = pytest.mark.slow
PATIENCE_S = 60.0

# Found by every interpreter that starts with its directory on the path: a part to play.
PART = """
import os, sys, time, types

def main(after_s=0.0, status=0, error=""):
    print("it is", os.environ.get("TARDYGRAD_JOB"), flush=True)
    time.sleep(after_s)
    if error:
        raise RuntimeError(error)
    return status

part = types.ModuleType("tardygrad.engines.part_process")
part.main = main
sys.modules[part.__name__] = part
"""


@pytest.fixture(autouse=True)
def part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(PART)
    monkeypatch.syspath_prepend(tmp_path / "path")
    return tmp_path / "path"


@pytest.fixture
def children() -> Iterator[Nursery]:
    found = Nursery()
    yield found
    found.close()


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.02)


def exits(children: Nursery, count: int) -> list[Exit]:
    found: list[Exit] = []
    while len(found) < count:
        assert select.select([children.fileno()], [], [], PATIENCE_S)[0], found
        found += children.exits()
    return found


def test_children_are_started_reaped_and_ended(children: Nursery, tmp_path: Path) -> None:
    log = tmp_path / "log"
    children.job("/some/job", Secret.draw(1))
    ends = {
        children.spawn("part", {"status": 0}, str(log)): 0,
        children.spawn("part", {"status": 5}, str(log)): 5,
        children.spawn("part", {"error": "told in the log"}, str(log)): 1,
        children.spawn("nonexistent", {}, str(log)): 1,
    }
    victim = children.spawn("part", {"after_s": 1000.0}, str(log))
    os.kill(victim, signal.SIGTERM)  # a child does not decide when to leave
    os.kill(victim, signal.SIGINT)
    assert dict(exits(children, 4)) == ends
    wait_until(lambda: log.read_text().count("it is") == 4, "all have begun")
    assert alive(victim)
    os.kill(victim, signal.SIGKILL)
    assert exits(children, 1) == [Exit(victim, -signal.SIGKILL)]
    text = log.read_text()
    assert text.count("it is /some/job") == 4
    assert "RuntimeError: told in the log" in text and "nonexistent_process" in text

    # Without a place for its log a child lives all the same.
    silent = children.spawn("part", {"status": 7}, str(tmp_path / "nowhere" / "log"))
    assert exits(children, 1) == [Exit(silent, 7)]

    frozen = children.spawn("part", {"after_s": 1000.0}, str(log))
    wait_until(lambda: log.read_text().count("it is") == 5, "it lives")
    os.kill(frozen, signal.SIGSTOP)
    zygote = children.pid
    children.close()
    assert not alive(frozen) and not alive(zygote)
    with pytest.raises(TrainingFailed, match="resume the run"):
        children.spawn("part", {}, str(log))


def test_a_killed_zygote_is_told_and_takes_its_children_along(
    children: Nursery, tmp_path: Path
) -> None:
    child = children.spawn("part", {"after_s": 1000.0}, str(tmp_path / "log"))
    os.kill(children.pid, signal.SIGKILL)
    with pytest.raises(TrainingFailed, match="is gone; resume the run"):
        exits(children, 1)
    wait_until(lambda: not alive(child), "the child is gone")


MAIN = """
import os, sys, time
from tardygrad.engines.nursery import Nursery
children = Nursery()
pids = [children.spawn("part", {"after_s": 1000.0}, sys.argv[1]) for _ in range(3)]
holder = os.fork()  # whoever the caller's program forks holds the lifeline too
if holder == 0:
    time.sleep(1000)
print(holder, children.pid, *pids, flush=True)
time.sleep(1000)
"""


def test_all_leave_when_the_main_process_is_killed(tmp_path: Path, part: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(part)}
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, str(tmp_path / "log")],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    holder, *pids = map(int, process.stdout.readline().split())
    try:
        assert len(pids) == 4 and all(map(alive, pids))
        os.kill(pids[-1], signal.SIGSTOP)
        process.kill()
        process.wait()
        wait_until(lambda: not any(map(alive, pids)), "all are gone, the frozen one too")
    finally:
        os.kill(holder, signal.SIGKILL)
        process.stdout.close()


def test_one_is_started_ahead_and_used_or_discarded() -> None:
    nursery.prestart()
    first = nursery.take()
    nursery.prestart()
    nursery.prestart()
    second = nursery.take()
    assert first.pid != second.pid
    nursery.prestart()
    nursery.discard()
    nursery.discard()
    for used in (first, second):
        used.close()
        used.close()
        assert not alive(used.pid)
