"""Processes that die or freeze: the run goes on, and every sample counts once."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import zmq
from real_runs import (
    SAMPLES,
    alive,
    assert_exact,
    descendants,
    epochs_begun,
    events,
    killing,
    leftovers,
    members,
    saboteur,
    samples_of,
    send,
    settings,
    states,
    wait_until,
    zygote,
)

import tardygrad
from tardygrad.callbacks import Callback
from tardygrad.errors import TrainingFailed

ME = os.getpid()


def test_workers_killed_at_random_moments(tmp_path: Path) -> None:
    run = tmp_path / "run"

    document = settings(epochs=40, evaluation={"every_epochs": 4})
    with killing(run, 1, evaluator=1, worker=7):
        result = tardygrad.train(recipe=document, out=run, quiet=True)
    assert result.outcome == "done", result.reason
    died = states(run, "worker", "died")
    assert len(died) >= 7
    assert {e["reason"] for e in died} == {"killed by SIGKILL"}
    assert_exact(run, epochs=40, samples=SAMPLES)
    restarts = sum(row["restarts"] for row in result.summary["workers"])
    assert restarts == len(died)
    # The evaluator was replaced too.
    assert max(e["epoch"] for e in events(run, "evaluate") if not e["final"]) >= 32


def test_the_frozen_are_replaced_and_nobody_waits_for_them(tmp_path: Path) -> None:
    run = tmp_path / "run"
    frozen: list[int] = []

    def deed() -> None:
        wait_until(lambda: samples_of(run), "the run trains")
        frozen.append(members(ME, "worker")["worker-1"])
        send(frozen[0], signal.SIGSTOP)
        before = samples_of(run)
        wait_until(lambda: samples_of(run) > before + SAMPLES, "the others go on")
        wait_until(lambda: not alive(frozen), "the frozen one is gone")
        frozen.append(members(ME, "server")["server-0"])
        send(frozen[1], signal.SIGSTOP)
        wait_until(lambda: not alive(frozen), "the frozen server is gone")
        wait_until(lambda: len(states(run, "server", "ready")) == 3, "it is replaced")
        seen_enough.stop_training = True

    failure = {"lease_s": 1.0, "backoff_s": 0.01}
    seen_enough = Callback()
    with saboteur(deed):
        tardygrad.train(
            recipe=settings(epochs=1000, failure=failure), out=run, quiet=True,
            callbacks=[seen_enough],
        )  # fmt: skip
    suspected = states(run, "worker", "suspected")
    assert [e["id"] for e in suspected][:1] == [1]
    assert "no sign of life" in suspected[0]["reason"]
    died = states(run, "server", "died")
    assert [e["id"] for e in died] == [0] and "no sign of life" in died[0]["reason"]
    epochs = epochs_begun(run)
    result = tardygrad.resume(run, quiet=True, epochs=epochs)
    assert result.outcome == "done", result.reason
    assert_exact(run, epochs=epochs, samples=SAMPLES)


class KillServer(Callback):
    """Kills a server once, after the first event of a kind."""

    def __init__(self, after: str) -> None:
        self.after = after
        self.killed: dict[str, int] = {}

    def _kill(self, event: str) -> None:
        if event == self.after and not self.killed:
            self.killed = members(ME, "server")
            send(self.killed["server-1"], signal.SIGKILL)

    def on_step_end(self, samples: int, logs: dict[str, Any]) -> None:
        if samples:
            self._kill("step")

    def on_checkpoint(self, logs: dict[str, Any]) -> None:
        # The first one may come before the first update.
        if logs["samples"]:
            self._kill("checkpoint")


@pytest.mark.parametrize(("after", "every_s"), [("step", 1000.0), ("checkpoint", 0.3)])
def test_a_killed_server_comes_back_from_its_snapshot(
    tmp_path: Path, after: str, every_s: float
) -> None:
    run = tmp_path / "run"
    killer = KillServer(after)
    document = settings(epochs=20, checkpoint={"every_s": every_s})
    result = tardygrad.train(recipe=document, out=run, quiet=True, callbacks=[killer])
    assert result.outcome == "done", result.reason
    assert killer.killed
    ready = [e for e in states(run, "server", "ready") if e["id"] == 1]
    assert len(ready) == 2
    # Without a checkpoint it begins again; with one it stands somewhere.
    assert (ready[-1]["reason"] == "v0") == (after == "step")
    assert_exact(run, epochs=20, samples=SAMPLES)


def test_restarts_run_out_and_a_resume_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"

    def deed() -> None:
        wait_until(lambda: samples_of(run), "the run trains")
        # One restart: the first death is made good, the next ones are not.
        for count in (2, 2, 1):
            workers = wait_for_workers(count)
            before = samples_of(run)
            wait_until(lambda n=before: samples_of(run) > n, "training goes on")
            victim = workers[min(workers)]
            send(victim, signal.SIGKILL)
            wait_until(lambda p=victim: not alive([p]), "it is gone")

    def wait_for_workers(count: int) -> dict[str, int]:
        wait_until(lambda: len(members(ME, "worker")) == count, f"{count} workers are there")
        return members(ME, "worker")

    document = settings(epochs=1000, workers=2, failure={"restarts": 1, "backoff_s": 0.01})
    told = "no worker is left and all 1 restarts are used up; the last one: killed by SIGKILL"
    with saboteur(deed), pytest.raises(TrainingFailed, match=told):
        tardygrad.train(recipe=document, out=run, quiet=True)
    assert len(states(run, "worker", "put_aside")) == 2
    done = samples_of(run) // SAMPLES + 1

    again = tardygrad.resume(run, quiet=True, epochs=done + 1)
    assert again.outcome == "done", again.reason
    assert_exact(run, epochs=done + 1, samples=SAMPLES)


def test_strangers_are_not_listened_to(tmp_path: Path) -> None:
    run = tmp_path / "run"

    def deed() -> None:
        wait_until(lambda: samples_of(run), "the run trains")
        (directory,) = leftovers(ME)
        rng = random.Random(0)
        with zmq.Context() as context:
            for name in ("control", "heartbeats"):
                for identity in (b"stranger", b"worker-99.0", b"server-0.777", b"\xff-1.1"):
                    with context.socket(zmq.DEALER) as stranger:
                        stranger.setsockopt(zmq.IDENTITY, identity)
                        stranger.connect(f"ipc://{directory / name}")
                        for size in (0, 1, 7, 100):
                            noise = rng.randbytes(size)
                            for frames in ([noise], [b"m", noise], [b"r", noise], [noise] * 4):
                                stranger.send_multipart(frames)

    with saboteur(deed):
        result = tardygrad.train(recipe=settings(epochs=20), out=run, quiet=True)
    assert result.outcome == "done", result.reason
    assert "messages were refused in all" in (run / "events.log").read_text()
    assert_exact(run, epochs=20, samples=SAMPLES)


def test_without_the_process_that_starts_others_the_run_ends_clearly(tmp_path: Path) -> None:
    run = tmp_path / "run"
    children: list[int] = []

    def deed() -> None:
        wait_until(lambda: samples_of(run), "the run trains")
        children.extend(descendants(ME))
        send(next(iter(members(ME, "worker").values())), signal.SIGSTOP)
        send(zygote(ME), signal.SIGKILL)
        wait_until(lambda: not alive(children), "all children are gone, the frozen one too")

    with saboteur(deed), pytest.raises(TrainingFailed, match="resume the run"):
        tardygrad.train(recipe=settings(epochs=1000), out=run, quiet=True)
