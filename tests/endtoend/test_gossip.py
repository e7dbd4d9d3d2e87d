"""Gossip in real processes: workers freeze, runs stop, and other methods take over."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from real_runs import (
    SAMPLES,
    alive,
    assert_exact,
    epochs_begun,
    members,
    saboteur,
    samples_of,
    send,
    settings,
    wait_until,
)

import tardygrad
from tardygrad.callbacks import Callback
from tardygrad.storage.traces import read_meetings

METHOD = {"name": "gossip", "optimizer": {"class": "SGD", "arguments": {"lr": 0.3}}}


def document(**changes: Any) -> dict[str, Any]:
    return settings(**{"method": METHOD, **changes})


def test_a_frozen_worker_holds_nobody_up_and_all_is_repeated(tmp_path: Path) -> None:
    run = tmp_path / "run"

    def deed() -> None:
        wait_until(lambda: samples_of(run), "the run trains")
        frozen = members(os.getpid(), "worker")["worker-1"]
        send(frozen, signal.SIGSTOP)
        before = samples_of(run)
        wait_until(lambda: samples_of(run) > before + SAMPLES, "the others go on")
        wait_until(lambda: not alive([frozen]), "the frozen one is gone")
        before = samples_of(run)
        wait_until(lambda: samples_of(run) > before + 2 * SAMPLES, "there is a new one")
        seen_enough.stop_training = True

    seen_enough = Callback()
    failure = {"lease_s": 3.0, "backoff_s": 0.1}
    with saboteur(deed):
        tardygrad.train(
            recipe=document(epochs=1000, failure=failure), out=run, quiet=True,
            callbacks=[seen_enough],
        )  # fmt: skip
    epochs = epochs_begun(run) + 1
    result = tardygrad.resume(run, quiet=True, epochs=epochs)
    assert result.outcome == "done", result.reason
    assert_exact(run, epochs=epochs, samples=SAMPLES)
    met = read_meetings(run / "trace")
    taken = [m.took for m in met if m.took is not None]
    assert len(taken) == len(set(taken)) > len(met) / 10
    assert {m.worker for m in met if m.back is not None} == {0, 1, 2}
    assert tardygrad.replay(run).matches


def test_others_take_over_and_leave_it_what_they_had(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = document(epochs=2, method={"name": "diloco", "exchange_period": 4})
    assert tardygrad.train(recipe=first, out=run, quiet=True).outcome == "done"
    for epochs, name in ((4, "gossip"), (6, "async_sgd"), (8, "gossip"), (10, "easgd")):
        result = tardygrad.resume(run, epochs=epochs, method=name, quiet=True)
        assert result.outcome == "done", result.reason
        assert_exact(run, epochs=epochs, samples=SAMPLES)
    assert read_meetings(run / "trace")
