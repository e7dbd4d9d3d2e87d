"""A checkpoint as a plain state dict: names, dtypes, shapes, ties, and what nobody trains."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import tardygrad
from tardygrad.auditing import audit
from tardygrad.cli import main
from tardygrad.errors import CheckpointError, RunDirectoryError, StorageError
from tardygrad.storage.checkpoints import MANIFEST, CheckpointStore, _checksum

pytestmark = pytest.mark.usefixtures("no_pictures")


class Everything(nn.Module):
    """Half precision, tied, frozen, averaged and counting tensors, and a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8, bias=False)
        self.norm = nn.BatchNorm1d(8)
        self.lower = nn.Linear(8, 8).to(torch.bfloat16)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.frozen = nn.Linear(8, 8)
        self.frozen.requires_grad_(False)
        self.out = nn.Linear(8, 6, bias=False)
        self.back = nn.Linear(6, 8, bias=False)
        self.back.weight = self.embed.weight
        self.same_norm = self.norm
        self.register_buffer("offsets", torch.arange(3))
        self.register_buffer("cache", torch.zeros(5), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(self.embed(x))
        h = self.lower(h.to(torch.bfloat16)).float() + self.frozen(h) * self.scale
        return self.out(h + self.back(x))


def data() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    return x, x.argmax(dim=1)


def trained(run: Path, **settings: Any) -> tardygrad.Result:
    defaults = {"workers": 2, "servers": 3, "epochs": 2, "batch_size": 8, "engine": "inline"}
    checkpoint = {"every_s": 0.05, "keep": 3}
    slowly = {"compute": 0.2}
    chosen = {**defaults, "checkpoint": checkpoint, "simulation": slowly, **settings}
    return tardygrad.train(Everything, data(), out=run, quiet=True, **chosen)


def equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert torch.equal(found[name], tensor), name


def test_it_is_the_trained_module(tmp_path: Path) -> None:
    result = trained(tmp_path / "run")
    made = tardygrad.export(result.run_directory, tmp_path / "model.safetensors")
    assert made.path == tmp_path / "model.safetensors"
    assert (made.samples, made.passed_over, made.left_out) == (128, (), ())
    state = load_file(made.path)
    equal(state, dict(result.model.state_dict()))
    fresh = Everything()
    fresh.load_state_dict(state)
    assert fresh.back.weight is fresh.embed.weight
    x, _ = data()
    assert torch.equal(fresh.eval()(x), result.model(x))
    with safe_open(made.path, "pt") as file:
        assert file.metadata()["format"] == "pt"
        assert file.metadata()["samples"] == "128"


def test_without_the_models_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = trained(tmp_path / "run")
    run = tmp_path / "elsewhere"
    shutil.copytree(result.run_directory, run)
    (run / "job.pkl").write_bytes(b"no pickle")
    assert main(["export", str(run)]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(f"{run / 'model.safetensors'} (checkpoint ")
    assert "128 samples" in shown.out and not shown.err
    equal(load_file(run / "model.safetensors"), dict(result.model.state_dict()))


def test_any_checkpoint_and_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(tmp_path / "run").run_directory
    store = CheckpointStore(run)
    *_, before, newest = store.steps()
    assert tardygrad.export(run, checkpoint=before).step == before
    shard = store.directory(newest) / "shard-001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    out = tmp_path / "model.safetensors"
    assert main(["export", str(run), "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert f"checkpoint {before}," in shown.out
    assert "passed over" in shown.err and "shard-001.safetensors has" in shown.err
    out.unlink()
    for words, said in (
        (["--checkpoint", str(newest)], "shard-001.safetensors has"),
        (["--checkpoint", "999"], f"has no checkpoint 999; there are: {store.steps()[0]}, "),
    ):
        assert main(["export", str(run), "--out", str(out), *words]) == 1
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    for step in store.steps():
        (store.directory(step) / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"no checkpoint of .* can be used: .*damaged"):
        tardygrad.export(run, out)
    shutil.rmtree(store.path)
    with pytest.raises(CheckpointError, match="is done, and its checkpoints are gone"):
        tardygrad.export(run, out)
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "outcome": None}))
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        tardygrad.export(run, out)
    assert not out.exists()
    with pytest.raises(RunDirectoryError):
        tardygrad.export(tmp_path / "nothing")


def test_another_runs_checkpoint_and_places_that_cannot_be(tmp_path: Path) -> None:
    one, other = (trained(tmp_path / name).run_directory for name in ("a", "b"))
    newest = CheckpointStore(other).steps()[-1]
    place = one / "checkpoints" / f"{newest:012d}"
    shutil.rmtree(place)
    shutil.copytree(other / "checkpoints" / place.name, place)
    with pytest.raises(CheckpointError, match="is of another run"):
        tardygrad.export(one, checkpoint=newest)
    made = tardygrad.export(one)
    assert made.step < newest and "is of another run" in made.passed_over[0]
    with pytest.raises(StorageError, match="cannot write"):
        tardygrad.export(one, tmp_path / "nowhere" / "model.safetensors")
    (one / "fixed.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"fixed.safetensors is damaged"):
        tardygrad.export(one)
    (one / "fixed.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"fixed.safetensors is missing"):
        tardygrad.export(one)


WRONG: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no step": lambda d: d.pop("step"),
    "no shards": lambda d: d.pop("shards"),
    "shards: {}": lambda d: d.update(shards={}),
    "shards: []": lambda d: d.update(shards=[]),
    "shards: [1]": lambda d: d.update(shards=[1]),
    "more about a shard": lambda d: d["shards"][0].update(more=1),
    "less about a shard": lambda d: d["shards"][0].pop("sha256"),
    "a file elsewhere": lambda d: d["shards"][0].update(name="shard-000./../../x"),
    "manifest: []": lambda d: d.update(manifest=[]),
    "no layout": lambda d: d["manifest"].pop("layout"),
    "layout: []": lambda d: d["manifest"].update(layout=[]),
    "a lost field": lambda d: d["manifest"]["layout"]["fields"].pop(),
    "no samples": lambda d: d["manifest"].pop("samples"),
    "samples: [x]": lambda d: d["manifest"].update(samples=["x", 1, 1]),
    "workers: [{}]": lambda d: d["manifest"].update(workers=[{}]),
    "no ranges": lambda d: d["manifest"].pop("ranges"),
    "a lost range": lambda d: d["manifest"]["ranges"].pop(),
    "ranges: [1]": lambda d: d["manifest"].update(ranges=[1]),
    "a gap": lambda d: d["manifest"]["ranges"][1].__setitem__(0, 999),
    "a short end": lambda d: d["manifest"]["ranges"][-1].__setitem__(1, 96),
}


@pytest.fixture(scope="module")
def done_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("wrong") / "run"
    trained(run)
    return run


@pytest.mark.parametrize("key", WRONG)
def test_a_manifest_with_wrong_content_is_damaged(done_run: Path, tmp_path: Path, key: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(done_run, run)
    before, newest = CheckpointStore(run).steps()[-2:]
    falsify(run, newest, WRONG[key])
    with pytest.raises(CheckpointError, match="damaged"):
        tardygrad.export(run, checkpoint=newest)
    assert tardygrad.export(run).step == before
    assert tardygrad.resume(run, epochs=3, quiet=True).outcome == "done"
    assert audit(run).exact


def test_ranges_that_do_not_fit_the_shards_are_damage(done_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(done_run, run)
    newest = CheckpointStore(run).steps()[-1]

    def shift(document: dict[str, Any]) -> None:
        first, second, _ = document["manifest"]["ranges"]
        first[1] = second[0] = first[1] - 16

    falsify(run, newest, shift)
    with pytest.raises(CheckpointError, match=r"damaged: shard 0 has \d+ parameters"):
        tardygrad.export(run)


def falsify(run: Path, step: int, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a manifest and make its checksum right again."""
    path = CheckpointStore(run).directory(step) / MANIFEST
    document = json.loads(path.read_text())
    del document["sha256"]
    change(document)
    path.write_text(json.dumps({**document, "sha256": _checksum(document)}))


class Talkative(nn.Linear):
    """Its state dict has something that is no tensor."""

    def get_extra_state(self) -> Any:
        return {"a": 1}

    def set_extra_state(self, state: Any) -> None:
        pass


class Folded(nn.Linear):
    """Its state dict does not have its parameter, but something made of it."""

    def __init__(self) -> None:
        super().__init__(6, 6)
        self.register_state_dict_post_hook(
            lambda module, state, prefix, _: state.update({f"{prefix}weight": module.weight * 2})
        )


def test_what_is_no_tensor_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    tardygrad.train(lambda: Talkative(6, 6), data(), out=run, quiet=True, engine="inline", epochs=1)
    assert main(["export", str(run)]) == 0
    assert "left out, because it is no tensor: _extra_state" in capsys.readouterr().err
    assert set(load_file(run / "model.safetensors")) == {"weight", "bias"}


def test_a_state_dict_that_is_made_of_others_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    tardygrad.train(Folded, data(), out=run, quiet=True, engine="inline", epochs=1)
    with pytest.raises(CheckpointError, match="no entry that is its 'weight'"):
        tardygrad.export(run)


def test_a_checkpoint_that_is_only_at_the_url_is_fetched_and_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = (tmp_path / "copies").as_uri()
    run = trained(tmp_path / "run", checkpoint={"every_s": 0.05, "url": url}).run_directory
    assert main(["export", str(run)]) == 0
    own = load_file(run / "model.safetensors")
    assert "fetched" not in capsys.readouterr().out
    shutil.rmtree(run / "checkpoints")
    assert main(["export", str(run)]) == 0
    assert f", fetched from {url})" in capsys.readouterr().out
    fetched = load_file(run / "model.safetensors")
    assert all(torch.equal(own[name], fetched[name]) for name in own)
