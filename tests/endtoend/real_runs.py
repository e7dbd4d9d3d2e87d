"""What the tests of this folder share: models, and ways to see and disturb a run's processes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from tardygrad.auditing import audit
from tardygrad.metrics.sink import read
from tardygrad.storage.checkpoints import CheckpointStore

PATIENCE_S = 60.0
"""How long a loaded machine may take for what is due at once."""

HERE = Path(__file__).parent

SAMPLES = 1024
"""In an epoch."""
LEFTOVERS = Path("/dev/shm")


# --- models -----------------------------------------------------------------------------------


class Paced(torch.nn.Module):
    """A small network whose steps take ``pause_s`` seconds, without using a processor."""

    def __init__(self, pause_s: float) -> None:
        super().__init__()
        self.pause_s = pause_s
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(32, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            time.sleep(self.pause_s)
        return self.layers(x)


def paced(pause_s: float = 0.01) -> torch.nn.Module:
    return Paced(pause_s)


def settings(**changes: Any) -> dict[str, Any]:
    """A run of a second or two in which something can happen."""
    document: dict[str, Any] = {
        "name": "test",
        "model": {"factory": "real_runs:paced"},
        "data": {"source": "tardygrad.recipes.blobs:blobs", "arguments": {"train": SAMPLES}},
        "method": {"name": "async_sgd", "optimizer": {"class": "SGD", "arguments": {"lr": 0.1}}},
        "epochs": 8,
        "batch_size": 32,
        "workers": 3,
        "servers": 2,
        "evaluation": {"every_epochs": 0},
        "failure": {"backoff_s": 0.01, "restarts": 50},
    }
    return {**document, **changes}


# --- processes --------------------------------------------------------------------------------


def _parents() -> dict[int, tuple[int, str]]:
    """Every process that is no zombie: its parent and its name."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            text = (entry / "stat").read_text()
            name, fields = text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") :]
            _, state, parent = fields.split()[:3]
            if state != "Z":
                found[int(entry.name)] = (int(parent), name)
    return found


def descendants(pid: int) -> dict[int, str]:
    """The living processes below ``pid``, with their names."""
    parents = _parents()
    below: dict[int, str] = {}
    grown = True
    while grown:
        new = {
            p: name
            for p, (parent, name) in parents.items()
            if p not in below and (parent == pid or parent in below)
        }
        below |= new
        grown = bool(new)
    return below


def members(pid: int, kind: str) -> dict[str, int]:
    """The processes of a run by name (``worker-0``), those of one kind."""
    found = {name.removeprefix("tg "): p for p, name in descendants(pid).items()}
    return {name: p for name, p in found.items() if name.startswith(f"{kind}-")}


def zygote(pid: int) -> int:
    """The process that a run's processes are forked from."""
    worker = next(iter(members(pid, "worker").values()))
    return _parents()[worker][0]


def alive(pids: list[int]) -> list[int]:
    """Those that still run."""
    living = _parents()
    return [p for p in pids if p in living]


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """What the condition returns once it is true."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.02)
    return found


def leftovers(pid: int) -> list[Path]:
    """Runtime directories of a main process."""
    return sorted(LEFTOVERS.glob(f"tardygrad-{os.getuid()}-{pid}-*"))


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


@contextlib.contextmanager
def saboteur(deed: Callable[[], None]) -> Iterator[None]:
    """Do something to the run of this process meanwhile; what it raises fails the test."""
    errors: list[BaseException] = []

    def do() -> None:
        try:
            deed()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=do)
    thread.start()
    try:
        yield
    finally:
        thread.join(PATIENCE_S)
    if errors:
        raise errors[0]


def kill_some(kind: str, times: int, seed: int) -> None:
    """Kill members of this process's run at random moments."""
    rng = random.Random(seed)
    for _ in range(times):
        choice = wait_until(lambda: members(os.getpid(), kind), f"a {kind} lives")
        time.sleep(rng.uniform(0.0, 0.15))
        victim = choice[rng.choice(sorted(choice))]
        send(victim, signal.SIGKILL)
        wait_until(lambda pid=victim: not alive([pid]), "it is gone")


def killing(run: Path, seed: int, **times: int) -> contextlib.AbstractContextManager[None]:
    """Kill so many members of each kind, one kind after the other, once the run trains."""

    def deed() -> None:
        wait_until(lambda: samples_of(run), "the run trains")
        for kind, count in times.items():
            kill_some(kind, count, seed)

    return saboteur(deed)


# --- the command line -------------------------------------------------------------------------


def command(*words: str, **options: Any) -> subprocess.Popen[str]:
    """Start ``tardygrad ...`` as a process of its own."""
    paths = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": paths, "TARDYGRAD_DEBUG": ""}
    return subprocess.Popen(
        [sys.executable, "-m", "tardygrad", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


def training(run: Path, tmp_path: Path, **changes: Any) -> subprocess.Popen[str]:
    """Start a run, and wait until it has trained something."""
    document = tmp_path / "run.yaml"
    document.write_text(json.dumps(settings(**changes)))
    process = command("train", str(document), "--out", str(run))
    wait_until(lambda: samples_of(run) or process.poll() is not None, "the run trains")
    assert process.poll() is None, process.communicate()
    return process


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status and standard error."""
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert "Traceback" not in errors, errors
    return process.returncode, errors


# --- what a run says --------------------------------------------------------------------------


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    """The run's events of one kind."""
    path = run / "metrics.jsonl"
    return [e for e in read(path) if e["event"] == kind] if path.exists() else []


def samples_of(run: Path) -> int:
    """Samples that are booked so far."""
    return max((e["samples"] for e in events(run, "progress")), default=0)


def epochs_begun(run: Path) -> int:
    """Up to which epoch the run's newest checkpoint has samples."""
    store = CheckpointStore(run)
    checkpoint = store.newest_valid()
    assert checkpoint is not None
    ledgers = [store.load_metadata(checkpoint, s)["state"]["ledger"] for s in (0, 1)]
    return max(epoch + 1 for ledger in ledgers for epoch, _ in ledger["applied"])


def states(run: Path, kind: str, state: str) -> list[dict[str, Any]]:
    """When members of a kind came into a state."""
    return [e for e in events(run, "member") if (e["kind"], e["state"]) == (kind, state)]


def assert_exact(run: Path, *, epochs: int, samples: int) -> None:
    """Every sample of every epoch was applied once on every shard."""
    found = audit(run)
    assert found.exact, found.verdict()
    assert found.rows
    for row in found.rows:
        assert (row.applied, row.missing, row.twice) == (samples, 0, 0), row
    assert {row.epoch for row in found.rows} == set(range(1, epochs + 1))
