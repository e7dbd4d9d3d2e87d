"""The Python interface: what it takes, what it refuses, and that a run can go on from there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tardygrad
from tardygrad import auditing
from tardygrad.api import _method, _recipe
from tardygrad.errors import CheckpointError, ModelError, TrainingFailed, UsageError
from tardygrad.metrics import wording
from tardygrad.metrics.sink import read
from tardygrad.storage.run_directory import RunDirectory

THREADS: set[int] = set()


class Network(torch.nn.Module):
    """Notes how many compute threads it may use."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        THREADS.add(torch.get_num_threads())
        output: torch.Tensor = self.linear(x)
        return output


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(96, 4, generator=generator), torch.arange(96) % 3


def simulate(run: Path, **settings: Any) -> tardygrad.Result:
    here = {"engine": "inline", "workers": 2, "batch_size": 8, "epochs": 2, **settings}
    return tardygrad.train(Network, data(), out=run, quiet=True, **here)


def test_a_simulation_computes_as_its_replay_does(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        THREADS.clear()
        simulate(tmp_path / "run")
        assert 1 in THREADS
        assert tardygrad.replay(tmp_path / "run").matches
        assert tardygrad.audit(tmp_path / "run").exact
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_simulated_death_is_told_when_it_happens_and_why(tmp_path: Path) -> None:
    run = tmp_path / "run"
    crash = {"kind": "crash", "target": "worker-1", "at_s": 0.061}
    simulate(run, failure={"backoff_s": 0.02}, simulation={"faults": [crash]})
    (died,) = [e for e in read(run / "metrics.jsonl") if e.get("state") == "died"]
    assert 0.061 <= died["time_s"] < 0.07
    assert "worker 1 died\tkilled by the fault plan" in (run / "events.log").read_text()


def test_a_simulation_tells_as_a_real_run_does(tmp_path: Path) -> None:
    run = tmp_path / "run"
    simulate(run, test_data=data())
    told = list(read(run / "metrics.jsonl"))
    assert all((run / e["path"]).is_dir() for e in told if e["event"] == "checkpoint")
    tested = [(e["epoch"], e["final"]) for e in told if e["event"] == "evaluate"]
    assert tested == [(1, False), (2, True)]


# --- arguments --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"callbacks": tardygrad.Callback()}, "expected a list"),
        ({"callbacks": [object()]}, "callbacks has an object of type object"),
        ({"metrics": ["accuracy"]}, "expected {'name': function}"),
        ({"method": 3}, "method is an object of type int"),
        ({"recipe": 3}, "recipe is an object of type int"),
        ({"recipe": "nowhere.yaml"}, "cannot read the configuration 'nowhere.yaml'"),
        ({"model": 3}, "model is an object of type int"),
        ({"data": "mnist", "test_data": data()}, "leave out test_data"),
        ({"data": None, "test_data": data()}, "give both"),
        ({"data": None}, "data is missing"),
    ],
)
def test_what_cannot_be_used_is_refused(
    tmp_path: Path, arguments: dict[str, Any], told: str
) -> None:
    given = {"model": Network, "data": data(), **arguments}
    with pytest.raises(UsageError) as error:
        tardygrad.train(**given, out=tmp_path / "run", quiet=True)
    assert told in str(error.value)
    assert not (tmp_path / "run").exists()


def test_settings_of_the_same_method_are_merged() -> None:
    recipe = {"name": "async_sgd", "weight_decay": 0.1, "clip_norm": 2.0}
    assert _method({"clip_norm": 1.0}, recipe) == {**recipe, "clip_norm": 1.0}
    assert _method("async_sgd", recipe) == recipe
    assert _method({"name": "other"}, recipe) == {"name": "other"}
    assert _method({"mixing": 0.5}, {}) == {"name": "async_sgd", "mixing": 0.5}


def test_another_method_takes_over_what_means_the_same() -> None:
    recipe = {"name": "async_sgd", "weight_decay": 0.1, "mixing": 0.5, "exchange_period": 4}
    recipe["optimizer"] = {"class": "SGD", "arguments": {"lr": 0.3}}
    same = {"weight_decay": 0.1, "optimizer": recipe["optimizer"]}
    assert _method("local_sgd", recipe) == {"name": "local_sgd", **same}
    assert _method({"name": "diloco", "exchange_period": 50}, recipe) == {
        "name": "diloco",
        "weight_decay": 0.1,
        "exchange_period": 50,
    }


def test_a_recipe_may_be_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("epochs: 3\n")
    assert _recipe(str(file)) == _recipe(file) == {"epochs": 3}


# --- what cannot go on ------------------------------------------------------------------------


def test_epochs_that_the_checkpoint_lacks_are_told_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    simulate(run, epochs=3)
    # Somebody wants to train from the beginning again.
    for checkpoint in run.glob("checkpoints/*"):
        shutil.rmtree(checkpoint)
    with RunDirectory.open(run, lock=True) as directory:
        directory.finish("failed")
    tardygrad.resume(run, quiet=True)
    told = [e["epoch"] for e in read(run / "metrics.jsonl") if e["event"] == "epoch"]
    assert told == [1, 2, 3, 1, 2, 3]


@pytest.mark.parametrize(
    ("victims", "damage", "said"),
    [
        ("*.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes"),
        ("*.safetensors", Path.unlink, "is missing"),
        ("manifest.json", lambda path: path.write_text("{}"), "manifest.json is damaged"),
        ("manifest.json", Path.unlink, "never finished"),
    ],
)
def test_checkpoints_that_are_all_damaged_are_not_ignored(
    tmp_path: Path, victims: str, damage: Callable[[Path], object], said: str
) -> None:
    run = tmp_path / "run"
    simulate(run)
    for victim in run.glob(f"checkpoints/*/{victims}"):
        damage(victim)
    with pytest.raises(CheckpointError, match=rf"no checkpoint of .* can be used.*{said}") as told:
        tardygrad.resume(run, quiet=True, epochs=4)
    assert "\n" not in str(told.value)


def test_a_finished_run_goes_on_with_more_epochs(tmp_path: Path) -> None:
    run = tmp_path / "run"
    simulate(run)
    tardygrad.resume(run, quiet=True, epochs=4)
    told = [e["epoch"] for e in read(run / "metrics.jsonl") if e["event"] == "epoch"]
    assert told == [1, 2, 3, 4]
    starts = [e for e in read(run / "metrics.jsonl") if e["event"] == "run_start"]
    assert [wording.resumed(start) for start in starts] == ["", "resumed at 192 samples: "]


def test_objects_that_cannot_be_loaded_are_told(tmp_path: Path) -> None:
    run = tmp_path / "run"
    simulate(run)
    (run / "job.pkl").write_bytes(b"\x80\x05cnowhere\nmodel\n.")
    with pytest.raises(ModelError, match=r"No module named 'nowhere'.*PYTHONPATH"):
        tardygrad.replay(run)


def test_large_data_are_handed_over_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tardygrad.training._BY_VALUE_DATA_LIMIT", 100)
    run = tmp_path / "run"
    simulate(run)
    with pytest.raises(UsageError, match="hand the data over again"):
        tardygrad.replay(run)
    assert tardygrad.replay(run, data=data()).matches


def test_what_a_finished_run_owes_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verdict within the run must know that the run is done: only then is all of it due."""

    def shortened(run: Path, *, outcome: str | None = None) -> auditing.Audit:
        for trace in (run / "trace").iterdir():
            trace.write_bytes(trace.read_bytes()[:-800])
        return audit(run, outcome=outcome)

    audit = auditing.audit
    monkeypatch.setattr(auditing, "audit", shortened)
    result = simulate(tmp_path / "run")
    assert result.summary["ledger"]["exact"] is False
    assert result.summary["ledger"]["missing"] > 0


def test_a_failed_run_raises(tmp_path: Path) -> None:
    run = tmp_path / "run"
    crash = {"kind": "crash", "target": "worker-0", "at_s": 0.05}
    with pytest.raises(TrainingFailed, match=f"no worker is left.*the run is in {run}"):
        simulate(run, workers=1, epochs=50, failure={"restarts": 0}, simulation={"faults": [crash]})
