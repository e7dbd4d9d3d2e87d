"""Servers with backups: killed or frozen, nothing is lost, and the run can be computed again."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from real_runs import (
    SAMPLES,
    alive,
    assert_exact,
    members,
    saboteur,
    samples_of,
    send,
    settings,
    states,
    wait_until,
)

import tardygrad
from tardygrad.protocol import trace
from tardygrad.storage.traces import read_traces

ME = os.getpid()


class Normed(torch.nn.Module):
    """BatchNorm and dropout, and steps that leave time for misfortunes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(32, 16),
            torch.nn.BatchNorm1d(16),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.2),
            torch.nn.Linear(16, 10),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            time.sleep(0.004)
        return self.layers(x)


def ready(run: Path, number: int, times: int) -> None:
    """Wait until a backup has become ready so many times."""
    wait_until(
        lambda: [e["id"] for e in states(run, "backup", "ready")].count(number) >= times,
        f"backup {number} is ready for the {times}. time",
    )


def kinds(run: Path) -> list[list[int]]:
    """The kinds of the records of each shard."""
    return [[record.kind for record in records] for records in read_traces(run / "trace")]


@pytest.mark.parametrize(
    "method",
    [
        {"name": "async_sgd", "optimizer": {"class": "Adam", "arguments": {"lr": 0.01}}},
        {"name": "async_sgd", "codec": {"name": "power_sgd"}},
        {"name": "sync_sgd"},
        {"name": "dc_asgd"},
        {"name": "easgd"},
    ],
    ids=lambda method: method["name"] + "-" + str(method.get("codec", {}).get("name", "")),
)
def test_killed_servers_lose_nothing(tmp_path: Path, method: dict[str, Any]) -> None:
    run = tmp_path / "run"

    def deed() -> None:
        for times in (1, 2):
            ready(run, 0, times)
            before = samples_of(run)
            wait_until(lambda before=before: samples_of(run) > before, "the run trains")
            send(members(ME, "server")["server-0"], signal.SIGKILL)
            wait_until(
                lambda times=times: len(states(run, "server", "died")) == times, "it is told"
            )

    document = settings(
        epochs=40, method=method, replicas=1, checkpoint={"every_s": 1000.0}, workers=2
    )
    del document["model"]
    with saboteur(deed):
        result = tardygrad.train(Normed, recipe=document, out=run, quiet=True)
    assert result.outcome == "done", result.reason
    assert_exact(run, epochs=40, samples=SAMPLES)
    found = kinds(run)
    assert found[0].count(trace.PROMOTED) == 2
    assert all(trace.RESTORED not in records for records in found)
    report = tardygrad.replay(run)
    assert report.matches, (report.expected, report.found)


def test_workers_that_join_are_known_to_a_backup(tmp_path: Path) -> None:
    """Backups are filled before they join; what these push is there after the promotion."""
    run = tmp_path / "run"

    def deed() -> None:
        ready(run, 0, 1)
        ready(run, 1, 1)
        tardygrad.workers(run, add=2)
        wait_until(lambda: tardygrad.workers(run)[3]["samples"] > 0, "the last one works")
        for pid in (members(ME, "server")["server-0"], members(ME, "server")["server-1"]):
            send(pid, signal.SIGKILL)
        wait_until(lambda: len(states(run, "server", "died")) == 2, "it is told")
        tardygrad.workers(run, remove=1)
        wait_until(lambda: tardygrad.workers(run)[3]["state"] == "left", "it has left")

    document = settings(
        epochs=60, workers=2, replicas=1, checkpoint={"every_s": 1000.0},
        elastic={"learning_rate": "linear"},
    )  # fmt: skip
    with saboteur(deed):
        result = tardygrad.train(recipe=document, out=run, quiet=True)
    assert result.outcome == "done", result.reason
    assert_exact(run, epochs=60, samples=SAMPLES)
    for records in read_traces(run / "trace"):
        found = [record.kind for record in records]
        assert found.count(trace.PROMOTED) == 1 and trace.RESTORED not in found
        after = records[found.index(trace.PROMOTED) :]
        assert {2, 3} <= {record.worker for record in after if record.samples}
        assert {1.5, 2.0} <= {record.scale for record in after if record.samples}
    report = tardygrad.replay(run)
    assert report.matches, (report.expected, report.found)


def test_a_frozen_server_and_a_frozen_backup_are_replaced(tmp_path: Path) -> None:
    run = tmp_path / "run"

    def deed() -> None:
        ready(run, 0, 1)
        ready(run, 1, 1)
        wait_until(lambda: samples_of(run), "the run trains")
        frozen = [members(ME, "server")["server-0"], members(ME, "backup")["backup-1"]]
        for pid in frozen:
            send(pid, signal.SIGSTOP)
        wait_until(lambda: not alive(frozen), "the frozen are gone")
        ready(run, 0, 2)
        ready(run, 1, 2)

    failure = {"lease_s": 1.0, "backoff_s": 0.01}
    with saboteur(deed):
        result = tardygrad.train(
            recipe=settings(epochs=60, replicas=1, failure=failure), out=run, quiet=True
        )
    assert result.outcome == "done", result.reason
    assert_exact(run, epochs=60, samples=SAMPLES)
    assert [records.count(trace.PROMOTED) for records in kinds(run)] == [1, 0]


def test_without_a_server_and_its_backup_the_newest_snapshot_is_taken(tmp_path: Path) -> None:
    run = tmp_path / "run"

    def deed() -> None:
        ready(run, 0, 1)
        wait_until(lambda: samples_of(run), "the run trains")
        both = [members(ME, "backup")["backup-0"], members(ME, "server")["server-0"]]
        for pid in both:
            send(pid, signal.SIGKILL)
        ready(run, 0, 2)

    document = settings(epochs=20, replicas=1, checkpoint={"every_s": 0.3})
    with saboteur(deed):
        result = tardygrad.train(recipe=document, out=run, quiet=True)
    assert result.outcome == "done", result.reason
    assert_exact(run, epochs=20, samples=SAMPLES)
    assert kinds(run)[0].count(trace.RESTORED) == 1
