"""All-reduce in real processes: ranks freeze, runs stop, and other methods take over."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from real_runs import (
    SAMPLES,
    alive,
    assert_exact,
    descendants,
    epochs_begun,
    events,
    finish,
    killing,
    members,
    saboteur,
    samples_of,
    send,
    settings,
    states,
    training,
    wait_until,
)

import tardygrad
from tardygrad.callbacks import Callback
from tardygrad.protocol import trace
from tardygrad.storage.traces import read_traces

METHOD = {"name": "all_reduce", "optimizer": {"class": "SGD", "arguments": {"lr": 0.1}}}


def document(**changes: Any) -> dict[str, Any]:
    return settings(**{"method": METHOD, **changes})


def sums_of(run: Path) -> list[trace.Record]:
    """The parts of groups' sums on the first shard, but for each sum's last one."""
    return [r for r in read_traces(run / "trace")[0] if r.kind == trace.INCLUDED]


def begun(run: Path) -> list[str]:
    """Which workers have begun together, in order."""
    lines = (run / "events.log").read_text(encoding="utf-8").splitlines()
    told = [line.split("\t")[1:] for line in lines if "\tworkers " in line]
    return [what for what, how in told if how == "together"]


def test_a_frozen_rank_is_left_behind_and_its_successor_joins(tmp_path: Path) -> None:
    run = tmp_path / "run"

    def deed() -> None:
        wait_until(lambda: samples_of(run), "the run trains")
        frozen = members(os.getpid(), "worker")["worker-1"]
        send(frozen, signal.SIGSTOP)
        wait_until(lambda: not alive([frozen]), "the frozen one is gone")
        wait_until(lambda: begun(run)[-1] == "workers 0, 1, 2 begin", "all are together again")
        before = samples_of(run)
        wait_until(lambda: samples_of(run) > before + SAMPLES, "they go on")
        seen_enough.stop_training = True

    seen_enough = Callback()
    failure = {"lease_s": 1.0, "backoff_s": 0.3}
    with saboteur(deed):
        tardygrad.train(
            recipe=document(epochs=1000, failure=failure), out=run, quiet=True,
            callbacks=[seen_enough],
        )  # fmt: skip
    suspected = states(run, "worker", "suspected")
    assert [e["id"] for e in suspected] == [1]
    assert "workers 0, 2 begin" in begun(run)
    epochs = epochs_begun(run)
    result = tardygrad.resume(run, quiet=True, epochs=epochs)
    assert result.outcome == "done", result.reason
    assert_exact(run, epochs=epochs, samples=SAMPLES)
    assert tardygrad.replay(run).matches


def test_a_run_that_is_stopped_or_killed_goes_on_and_others_take_over(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = training(run, tmp_path, method=METHOD, epochs=1000, checkpoint={"every_s": 0.2})
    send(process.pid, signal.SIGINT)
    assert finish(process)[0] == 75
    assert events(run, "run_end")[-1]["ledger"]["twice"] == 0

    before = samples_of(run)
    killed: list[int] = []

    class Kill(Callback):
        """Kills all workers at once."""

        def on_step_end(self, samples: int, logs: dict[str, Any]) -> None:
            if samples > before + SAMPLES and not killed:
                killed.extend(members(os.getpid(), "worker").values())
                for pid in killed:
                    send(pid, signal.SIGKILL)

    # Long enough to be told of its progress, and to be killed, on a fast machine too.
    epochs = epochs_begun(run) + 60
    result = tardygrad.resume(run, quiet=True, epochs=epochs, callbacks=[Kill()])
    assert result.outcome == "done", result.reason
    assert len(killed) == 3
    assert_exact(run, epochs=epochs, samples=SAMPLES)
    assert sums_of(run)
    for more, name in ((1, "sync_sgd"), (2, "all_reduce")):
        result = tardygrad.resume(run, quiet=True, epochs=epochs + more, method=name)
        assert result.outcome == "done", result.reason
        assert_exact(run, epochs=epochs + more, samples=SAMPLES)


def test_the_main_process_dies_and_no_rank_waits_for_another(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = training(run, tmp_path, method=METHOD, epochs=1000, checkpoint={"every_s": 0.2})
    # The first may be taken while the ranks connect, with nothing in it.
    wait_until(lambda: any(e["samples"] for e in events(run, "checkpoint")), "a checkpoint")
    children = list(descendants(process.pid))
    send(process.pid, signal.SIGKILL)
    process.communicate()
    wait_until(lambda: not alive(children), "all children are gone")
    epochs = epochs_begun(run) + 1
    result = tardygrad.resume(run, quiet=True, epochs=epochs)
    assert result.outcome == "done", result.reason
    assert_exact(run, epochs=epochs, samples=SAMPLES)


def test_one_server_and_adam_through_deaths_of_ranks(tmp_path: Path) -> None:
    run = tmp_path / "run"

    adam = {**METHOD, "optimizer": {"class": "Adam", "arguments": {"lr": 0.01}}}
    with killing(run, 3, worker=4):
        result = tardygrad.train(
            recipe=document(epochs=20, workers=2, servers=1, method=adam), out=run, quiet=True
        )
    assert result.outcome == "done", result.reason
    assert_exact(run, epochs=20, samples=SAMPLES)
    assert result.summary["staleness"]["max"] == 0
    assert tardygrad.replay(run).matches
