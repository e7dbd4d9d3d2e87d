"""The scheduler dies or stands still: another takes up its journal, and nothing is done twice."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from real_runs import (
    SAMPLES,
    alive,
    assert_exact,
    epochs_begun,
    killing,
    members,
    saboteur,
    samples_of,
    send,
    settings,
    states,
    wait_until,
)

import tardygrad
from tardygrad.callbacks import Callback
from tardygrad.errors import TrainingFailed
from tardygrad.protocol import trace
from tardygrad.storage.traces import read_traces

ME = os.getpid()


def assert_nobody_else_noticed(run: Path) -> None:
    """The same processes, the same leases, every push taken the first time it came."""
    for kind in ("worker", "server"):
        assert not states(run, kind, "died") and not states(run, kind, "suspected")
    records = [r for shard in read_traces(run / "trace") for r in shard]
    pushes = [r for r in records if r.kind not in (trace.SNAPSHOT, trace.RESTORED)]
    assert {r.kind for r in pushes} == {trace.APPLIED}
    assert {r.session for r in pushes} == {1, 2, 3}


def scheduler() -> int:
    return int(wait_until(lambda: members(ME, "scheduler"), "it is there")["scheduler-0"])


def test_a_scheduler_killed_at_random_moments(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with killing(run, 1, scheduler=6):
        result = tardygrad.train(recipe=settings(epochs=30), out=run, quiet=True)
    assert result.outcome == "done", result.reason
    died = states(run, "scheduler", "died")
    assert len(died) == 6
    assert {e["reason"] for e in died} == {"killed by SIGKILL"}
    back = states(run, "scheduler", "ready")[1:]
    assert all(e["reason"].startswith("away for") for e in back)
    assert result.summary["scheduler"]["restarts"] == 6
    assert_nobody_else_noticed(run)
    assert_exact(run, epochs=30, samples=SAMPLES)


def test_one_that_stands_still_is_replaced(tmp_path: Path) -> None:
    run = tmp_path / "run"
    seen_enough = Callback()

    def deed() -> None:
        wait_until(lambda: samples_of(run), "the run trains")
        frozen = scheduler()
        send(frozen, signal.SIGSTOP)
        wait_until(lambda: not alive([frozen]), "it is killed")
        wait_until(lambda: len(states(run, "scheduler", "ready")) == 2, "another is there")
        before = samples_of(run)
        wait_until(lambda: samples_of(run) > before + SAMPLES, "leases are given out again")
        seen_enough.stop_training = True

    failure = {"lease_s": 1.0, "backoff_s": 0.01}
    with saboteur(deed):
        tardygrad.train(
            recipe=settings(epochs=1000, failure=failure), out=run, quiet=True,
            callbacks=[seen_enough],
        )  # fmt: skip
    (suspected,) = states(run, "scheduler", "suspected")
    assert "no answer for" in suspected["reason"]
    assert_nobody_else_noticed(run)
    epochs = epochs_begun(run)
    result = tardygrad.resume(run, quiet=True, epochs=epochs)
    assert result.outcome == "done", result.reason
    assert_exact(run, epochs=epochs, samples=SAMPLES)


def test_what_the_journal_lacks_is_told_again(tmp_path: Path) -> None:
    run = tmp_path / "run"

    def flipped(data: bytes) -> bytes:
        middle = len(data) * 2 // 3
        return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]

    def torn(data: bytes) -> bytes:
        return data[: len(data) // 2]

    def lost(data: bytes) -> bytes:
        return b""

    def deed() -> None:
        for number, damage in enumerate((flipped, torn, lost)):
            wait_until(
                lambda n=number: len(states(run, "scheduler", "ready")) > n, "a scheduler is there"
            )
            before = samples_of(run)
            wait_until(lambda n=before: samples_of(run) > n, "the run trains")
            pid, journal = scheduler(), run / "scheduler" / "journal"
            send(pid, signal.SIGSTOP)
            journal.write_bytes(damage(journal.read_bytes()))
            send(pid, signal.SIGKILL)

    with saboteur(deed):
        result = tardygrad.train(recipe=settings(epochs=40), out=run, quiet=True)
    assert result.outcome == "done", result.reason
    assert result.summary["scheduler"]["restarts"] == 3
    told = [e["reason"] for e in states(run, "scheduler", "ready")]
    assert "bytes of the journal were torn or damaged" in told[1]
    assert "; 0 events of its journal" in told[3]
    assert_nobody_else_noticed(run)
    assert_exact(run, epochs=40, samples=SAMPLES)


def test_restarts_run_out_and_a_resume_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"

    def deed() -> None:
        for count in (1, 2):
            wait_until(lambda n=count: len(states(run, "scheduler", "ready")) == n, "it is there")
            before = samples_of(run)
            wait_until(lambda n=before: samples_of(run) > n, "training goes on")
            victim = scheduler()
            send(victim, signal.SIGKILL)
            wait_until(lambda p=victim: not alive([p]), "it is gone")

    document = settings(
        epochs=1000, failure={"restarts": 1, "backoff_s": 0.01}, checkpoint={"every_s": 0.3}
    )
    told = "the scheduler: all 1 restarts are used up; the last death: killed by SIGKILL"
    with saboteur(deed), pytest.raises(TrainingFailed, match=told):
        tardygrad.train(recipe=document, out=run, quiet=True)
    epochs = samples_of(run) // SAMPLES + 2
    again = tardygrad.resume(run, quiet=True, epochs=epochs)
    assert again.outcome == "done", again.reason
    assert_exact(run, epochs=epochs, samples=SAMPLES)


def test_a_journal_that_cannot_be_written_ends_the_run_clearly(tmp_path: Path) -> None:
    run = tmp_path / "run"

    def deed() -> None:
        wait_until(lambda: samples_of(run), "the run trains")
        journal = run / "scheduler" / "journal"
        pid = scheduler()
        # Another finds a folder where the journal was.
        send(pid, signal.SIGSTOP)
        journal.unlink()
        journal.mkdir()
        send(pid, signal.SIGKILL)

    with saboteur(deed), pytest.raises(TrainingFailed, match="the scheduler: cannot write"):
        tardygrad.train(recipe=settings(epochs=1000), out=run, quiet=True)
    (run / "scheduler" / "journal").rmdir()
    epochs = samples_of(run) // SAMPLES + 2
    again = tardygrad.resume(run, quiet=True, epochs=epochs)
    assert again.outcome == "done", again.reason
    assert_exact(run, epochs=epochs, samples=SAMPLES)
