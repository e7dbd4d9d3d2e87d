"""A run that is stopped goes on with its residuals: the same parameters as if it had not been."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tardygrad
from stopping import StopAfter
from tardygrad.codecs import names
from tardygrad.config import parse_overrides
from tardygrad.data.sources import ArraySource
from tardygrad.engines.base import Job, RunEnd, WorkerState
from tardygrad.engines.inline import InlineEngine
from tardygrad.engines.stores import DirectoryStore
from tardygrad.errors import CheckpointError, StorageError
from tardygrad.methods import parse
from tardygrad.resuming import with_residuals
from tardygrad.storage.run_directory import RunDirectory
from tardygrad.testing.fuzz import check_replay
from tardygrad.testing.simulation import (
    MemoryStore,
    SilentObserver,
    SimulatedCluster,
    Stop,
    null_job,
    resumed,
    torch_job,
)
from tardygrad.training import resumed_config


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))


def job(codec: Any, workers: int = 1, **method: Any) -> Job:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(160, 6, generator=generator)
    return torch_job(
        network, ArraySource(inputs, inputs[:, :3].argmax(dim=1)), workers=workers, servers=2,
        epochs=3, batch_size=8, fragment_batches=5, threads=1,
        failure={"lease_s": 0.4, "heartbeat_s": 0.02},
        method={"name": "async_sgd", "in_flight": 0, "codec": codec, **method},
    )  # fmt: skip


def ended(made: Job, store: MemoryStore) -> RunEnd:
    end = InlineEngine().run(made, SilentObserver(), store)
    assert end.outcome == "done"
    return end


@pytest.mark.parametrize("codec", names())
def test_a_stop_changes_nothing(codec: str) -> None:
    """Stopped after an epoch, since within one the fragments go on in another order."""
    made, store = job(codec), MemoryStore()
    short = dataclasses.replace(made, config=made.config.model_copy(update={"epochs": 1}))
    ended(short, store)
    stopped = ended(resumed(made, store), store)
    assert torch.equal(ended(made, MemoryStore()).parameters, stopped.parameters)
    if made.method.codec.remembers:
        forgetful = MemoryStore()
        ended(short, forgetful)
        made = dataclasses.replace(resumed(made, forgetful), residuals=0)
        assert not torch.equal(ended(made, forgetful).parameters, stopped.parameters)


@pytest.mark.parametrize("codec", ["top_k", "power_sgd", "int8"])
@pytest.mark.parametrize("in_flight", [0, 2])
def test_many_workers_stop_and_the_replay_is_the_run(codec: str, in_flight: int) -> None:
    made = job(codec, workers=3, in_flight=in_flight, mixing=0.5)
    stops = Stop("preempt", 0.1), Stop("power_cut", 0.05), Stop("preempt", 0.06)
    cluster = SimulatedCluster(made, stops=stops)
    end = cluster.run()
    assert end.outcome == "done" and len(cluster.observers) == 4
    cluster.check(end)
    check_replay(cluster, end)


class Left(MemoryStore):
    """A store of one checkpoint, with what workers left."""

    def __init__(self, *left: WorkerState, step: int = 7) -> None:
        super().__init__()
        self._step, self._found = step, {state.worker: state for state in left}

    def workers(self) -> tuple[int, dict[int, WorkerState], list[str]]:
        return self._step, self._found, []


def left(worker: int, codec: Any = "top_k", method: str = "async_sgd") -> WorkerState:
    made = parse({"name": method, "codec": codec})
    return WorkerState(worker, 0, made.pushes, made.codec.model_dump(mode="json"))


BLIND = {"error_feedback": False}
DROPPED = "without error feedback; what workers held is dropped"


@pytest.mark.parametrize(
    ("codec", "states", "step", "told"),
    [
        ("top_k", [left(0), left(1)], 7, []),
        ("top_k", [], 0, ["the newest checkpoint has nothing of it"]),
        ("top_k", [left(0)], 7, ["none of worker 1, who begin"]),
        ("top_k", [left(w) for w in range(4)], 7, ["2 workers now; that of workers 2, 3 is"]),
        ("int8", [left(0), left(1)], 7, ["left by another codec.* and is kept"]),
        ("fp32", [left(0), left(1)], 0, ["leaves nothing out; what workers held is dropped"]),
        ("fp32", [], 0, []),
        ("top_k", [left(0), left(1, method="local_sgd")], 0, ["of the way .* with sums of grad"]),
        ({"name": "top_k", **BLIND}, [left(0), left(1)], 0, [DROPPED]),
        ({"name": "top_k", **BLIND}, [], 0, []),
        (
            {"name": "power_sgd", **BLIND},
            [left(0, "power_sgd"), left(1, "power_sgd")],
            0,
            [DROPPED],
        ),
        (
            {"name": "power_sgd", **BLIND},
            [left(w, {"name": "power_sgd", **BLIND}) for w in (0, 1)],
            7,
            [],
        ),
    ],
)
def test_what_is_taken_up_and_why_not(
    codec: Any, states: list[WorkerState], step: int, told: list[str]
) -> None:
    made = null_job(workers=2, method={"name": "async_sgd", "codec": codec})
    found, reasons = with_residuals(made, Left(*states))
    assert found.residuals == step
    assert len(reasons) == len(told)
    for reason, pattern in zip(reasons, told, strict=True):
        assert re.search(pattern, reason), reason
    assert dataclasses.replace(found, residuals=0) == dataclasses.replace(made, residuals=0)


def test_another_optimizer_of_the_servers_drops_nothing() -> None:
    adam = {"class": "Adam", "arguments": {"lr": 0.01}}
    made = null_job(workers=1, method={"name": "async_sgd", "codec": "top_k", "optimizer": adam})
    found, reasons = with_residuals(made, Left(left(0)))
    assert (found.residuals, reasons) == (7, [])


def test_a_late_worker_begins_without_what_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    class Pruned(MemoryStore):
        def worker(self, step: int, worker: int) -> WorkerState | None:
            raise CheckpointError("000000000007 has no manifest.json")

    made = dataclasses.replace(job("top_k"), residuals=7)
    entries: list[Any] = []
    packer = made.packer(0, 0, Pruned(), entries.append)
    assert packer is not None and packer.residual is not None and not packer.residual.any()
    assert entries == [] and "worker 0 begins without what its slot had left" in caplog.text


# --- run directories --------------------------------------------------------------------------


def document(**changes: Any) -> dict[str, Any]:
    return {
        "engine": "inline", "workers": 1, "servers": 2, "epochs": 4, "batch_size": 32,
        "data": {"source": "tardygrad.recipes.blobs:blobs", "arguments": {"train": 512}},
        "method": {"name": "async_sgd", "in_flight": 0, "codec": {"name": "top_k"}},
        **changes,
    }  # fmt: skip


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10))


def manifest(directory: Path) -> dict[str, Any]:
    newest = max((directory / "checkpoints").glob("*/manifest.json"))
    found: dict[str, Any] = json.loads(newest.read_text())["manifest"]
    return found


def test_a_run_directory_keeps_residuals(tmp_path: Path) -> None:
    whole = tardygrad.train(model, recipe=document(), out=tmp_path / "whole", quiet=True)
    path = tmp_path / "stopped"
    first = tardygrad.train(
        model, recipe=document(), out=path, quiet=True, callbacks=[StopAfter(2)]
    )
    assert first.outcome == "preempted"
    [entry] = manifest(path)["workers"]
    assert (entry["worker"], entry["incarnation"]) == (0, 0)
    second = tardygrad.resume(path, quiet=True)
    assert second.summary["digest"] == whole.summary["digest"]
    assert tardygrad.replay(path).matches
    pushed, unencoded = whole.summary["bytes_pushed"], whole.summary["bytes_unencoded"]
    assert 0 < 20 * pushed < unencoded

    more = tardygrad.resume(path, quiet=True, epochs=5, method={"codec": "int8"}, workers=2)
    assert more.outcome == "done"
    log = (path / "events.log").read_text(encoding="utf-8")
    assert "left by another codec" in log and "none of worker 1" in log
    with pytest.raises(tardygrad.errors.RunDirectoryError, match="other settings"):
        tardygrad.replay(path)


def test_what_is_damaged_is_not_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "run"
    tardygrad.train(model, recipe=document(), out=path, quiet=True)
    [entry] = manifest(path)["workers"]
    [file] = (path / "checkpoints").glob(f"*/{entry['name']}")
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    assert tardygrad.resume(path, quiet=True, epochs=5).outcome == "done"
    log = (path / "events.log").read_text(encoding="utf-8")
    assert f"that of worker 0 is lost: {file} is damaged" in log
    assert "has nothing of it" not in log
    assert tardygrad.replay(path).matches


def test_a_commit_that_fails_can_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = job("top_k")
    store = DirectoryStore(tmp_path, made.layout, made.ranges)
    kept = left(0)
    store.write_worker(dataclasses.replace(kept, tensors={"residual": torch.ones(3)}))
    shards = range(len(made.ranges))
    state = {"left": [[0, 0]], "samples": [0 for _ in shards], "versions": [0 for _ in shards]}
    for step in (1, 2):
        files = tuple(store.write(step, s, {"x": torch.ones(2)}, {}) for s in shards)
        if step == 1:
            with monkeypatch.context() as patch:
                patch.setattr(store.files, "commit", full)
                with pytest.raises(StorageError):
                    store.commit(step, files, state)
            store.discard(step)
    store.commit(2, files, state)
    assert not (tmp_path / "checkpoints" / "workers").exists()
    step, found, lost = store.workers()
    assert (step, list(found), lost) == (2, [0], [])
    assert (found[0].pushes, found[0].codec) == (kept.pushes, kept.codec)


def full(*arguments: Any) -> None:
    raise StorageError("no space left")


def test_another_codec_on_resume_begins_with_its_own_settings(tmp_path: Path) -> None:
    path = tmp_path / "run"
    method = {"name": "async_sgd", "codec": {"name": "power_sgd", "rank": 2}, "balance": "batch"}
    recipe = document(method=method, workers=2)
    tardygrad.train(model, recipe=recipe, out=path, quiet=True, callbacks=[StopAfter(2)])
    for changes in (
        ["method.codec.name=top_k", "method.balance.name=fixed"],
        ["method.codec={name: top_k}", "method.balance=fixed"],
        ["method.codec=top_k", "method.codec.fraction=0.01", "method.balance=fixed"],
    ):
        found = resumed_config(RunDirectory.open(path), parse_overrides(changes)).method
        assert found["codec"]["name"] == "top_k" and "rank" not in found["codec"]
        assert found["balance"] == {"name": "fixed"}
