"""A run goes on with other shards as if it had always had them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tardygrad
from stopping import StopAfter
from tardygrad.auditing import audit
from tardygrad.callbacks import Callback
from tardygrad.cli import main
from tardygrad.cli.summary import summarize
from tardygrad.errors import CheckpointError, RunDirectoryError
from tardygrad.methods import find, names
from tardygrad.metrics.sink import read
from tardygrad.storage.checkpoints import CheckpointStore
from tardygrad.storage.traces import cuts

pytestmark = pytest.mark.usefixtures("no_pictures")

SAMPLES = 96


def model() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(6, 9), torch.nn.BatchNorm1d(9), torch.nn.Tanh(), torch.nn.Linear(9, 3)
    )


def data() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(SAMPLES, 6, generator=torch.Generator().manual_seed(1))
    return x, x[:, :3].argmax(dim=1)


SETTINGS: dict[str, Any] = {
    "engine": "inline",
    "epochs": 4,
    "batch_size": 8,
    "fragment_batches": 3,
    "quiet": True,
    "evaluation": {"every_epochs": 0},
    "simulation": {"compute": {"distribution": "exponential", "mean_s": 0.2}},
}


def stopped(run: Path, **settings: Any) -> Path:
    changes = {**SETTINGS, **settings}
    result = tardygrad.train(model, data(), out=run, callbacks=[StopAfter(1)], **changes)
    assert result.outcome == "preempted"
    return run


def digest(run: Path) -> str:
    return str([e for e in read(run / "metrics.jsonl") if e["event"] == "run_end"][-1]["digest"])


def decisions(run: Path) -> str:
    return (run / "events.log").read_text()


OPTIMIZERS = {
    "momentum": {"class": "SGD", "arguments": {"lr": 0.05, "momentum": 0.9}},
    "adam": {"class": "AdamW", "arguments": {"lr": 0.01, "amsgrad": True}},
}
METHODS: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name in names() if find(name).locality == "element"},
    **{key: {"name": "async_sgd", "optimizer": value} for key, value in OPTIMIZERS.items()},
}


@pytest.mark.parametrize("key", METHODS)
def test_any_number_of_shards_gives_the_same_parameters(tmp_path: Path, key: str) -> None:
    method = METHODS[key]
    common: dict[str, Any] = {"workers": 1, "method": {**method, "in_flight": 0}}
    found = []
    for number, shards in enumerate(([2, 3, 1], [1, 1, 1], [3, 2, 4])):
        run = stopped(tmp_path / f"{number}", servers=shards[0], **common)
        again = tardygrad.resume(
            run, servers=shards[1], quiet=True, epochs=5, callbacks=[StopAfter(3)]
        )
        assert again.outcome == "preempted"
        result = tardygrad.resume(run, servers=shards[2], quiet=True)
        assert result.outcome == "done"
        assert "begins anew" not in decisions(run)
        assert len(cuts(run)) == (0 if set(shards) == {1} else 2)
        books = audit(run)
        assert books.exact, books.verdict()
        assert {(row.shard, row.applied) for row in books.rows} == {
            (shard, SAMPLES) for shard in range(shards[2])
        }
        found.append(digest(run))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("key", ["async_sgd", "adam", "dana", "ringleader", "sync_sgd"])
def test_many_workers_other_shards_other_workers_another_method(tmp_path: Path, key: str) -> None:
    run = stopped(tmp_path / "run", workers=3, servers=2, method=METHODS[key])
    assert tardygrad.resume(
        run, servers=4, workers=2, quiet=True, epochs=6, callbacks=[StopAfter(3)]
    ).outcome == "preempted"  # fmt: skip
    result = tardygrad.resume(run, servers=3, workers=4, quiet=True, method="ssp")
    assert result.outcome == "done"
    assert len(cuts(run)) == 2
    books = audit(run)
    assert books.exact, books.verdict()
    assert len(books.rows) == 3 * 6
    assert main(["ledger", str(run)]) == 0
    with pytest.raises(RunDirectoryError, match=r"another method|another number of servers"):
        tardygrad.replay(run)
    assert "the run goes on with 4 shards" in decisions(run)


def test_a_replay_across_the_cut_is_refused(tmp_path: Path) -> None:
    run = stopped(tmp_path / "run", servers=1)
    assert tardygrad.resume(run, servers=2, quiet=True).outcome == "done"
    with pytest.raises(RunDirectoryError, match="resumed with another number of servers"):
        tardygrad.replay(run)


def test_what_the_new_shards_lack_or_have_twice_is_found(tmp_path: Path) -> None:
    run = stopped(tmp_path / "run", servers=2, workers=2)
    tardygrad.resume(run, servers=3, quiet=True)
    old = sorted((run / "trace-before").rglob("*.trace"))
    assert len(old) == 2
    kept = old[1].read_bytes()
    # An update of the second old shard that never was.
    from tardygrad.protocol import trace

    _, shards, records, _ = trace.decode_file(kept, "t")
    encoder = trace.Encoder(shards)
    first = next(i for i, r in enumerate(records) if r.kind == trace.APPLIED)
    short = records[:first] + records[first + 1 :]
    old[1].write_bytes(kept[:16] + b"".join(map(encoder.encode, short)))
    books = audit(run)
    assert not books.exact
    # The new shards that have elements of it: not the first one.
    assert {row.shard for row in books.rows if row.missing} == {1, 2}
    double = [*records[: first + 1], *records[first:]]
    old[1].write_bytes(kept[:16] + b"".join(map(encoder.encode, double)))
    assert {row.shard for row in audit(run).rows if row.twice} == {1, 2}


def disagree(run: Path) -> None:
    """As if shard 1 had not booked the last fragment when its snapshot was taken."""
    store = CheckpointStore(run)
    checkpoint = store.newest_valid()
    assert checkpoint is not None
    files = []
    for shard in range(2):
        tensors, metadata = store.load_shard(checkpoint, shard)
        if shard == 1:
            ledger = metadata["state"]["ledger"]
            if ledger["entries"]:
                ledger["entries"].pop()
            else:
                ledger["complete"].pop()
        files.append(store.write_shard(checkpoint.step, shard, tensors, metadata))
    store.commit(checkpoint.step, checkpoint.manifest, files)


def test_shards_that_lag_are_not_joined_but_may_be_cut(tmp_path: Path) -> None:
    run = stopped(tmp_path / "run", servers=2, workers=2)
    disagree(run)
    before = {p: p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}
    with pytest.raises(CheckpointError, match=r"not booked the same .*servers=2, stop it with"):
        tardygrad.resume(run, servers=1, quiet=True)
    assert before == {p: p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}
    # Every one of four lies in one of the two.
    assert tardygrad.resume(run, servers=4, quiet=True).outcome == "done"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = stopped(tmp_path / "run", servers=1)
    assert main(["train", "--resume", str(run), "--set", "servers=2", "--quiet"]) == 0
    assert json.loads((run / "run.json").read_text())["outcome"] == "done"
    assert "servers: 2" in (run / "config.yaml").read_text()


def test_too_many_servers_change_nothing(tmp_path: Path) -> None:
    run = stopped(tmp_path / "run", servers=1)
    with pytest.raises(tardygrad.errors.ConfigError, match="at most"):
        tardygrad.resume(run, servers=1000, quiet=True)
    assert not cuts(run)
    assert tardygrad.resume(run, quiet=True).outcome == "done"


# --- whoever reshapes may die anywhere -------------------------------------------------------


class Died(BaseException):
    pass


@pytest.mark.parametrize("at", ["set_aside", "commit", "write_bytes"])
@pytest.mark.parametrize("then", [1, 2, 3])
def test_whoever_dies_while_the_shards_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, then: int
) -> None:
    """Right before the traces move, before the checkpoint is visible, and after it."""
    run = stopped(tmp_path / "run", servers=2, workers=2)
    where = {
        "set_aside": "tardygrad.reshaping.set_aside",
        "commit": "tardygrad.engines.stores.DirectoryStore.commit",
        "write_bytes": "tardygrad.training.write_bytes",
    }

    def die(*arguments: Any, **more: Any) -> None:
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(where[at], die)
        with pytest.raises(Died):
            tardygrad.resume(run, servers=3, quiet=True)
    result = tardygrad.resume(run, servers=then, quiet=True)
    assert result.outcome == "done"
    books = audit(run)
    assert books.exact, books.verdict()
    assert {row.shard for row in books.rows} == set(range(then))


def test_a_damaged_checkpoint_of_the_new_shards_gives_way_to_the_old(tmp_path: Path) -> None:
    run = stopped(tmp_path / "run", servers=2, workers=2)
    tardygrad.resume(run, servers=3, quiet=True, epochs=3, callbacks=[StopAfter(2)])
    store = CheckpointStore(run)
    (first,) = [s for s in store.steps() if len(store.read(s).shards) == 2]
    for step in store.steps():
        if step > first:
            (store.directory(step) / "shard-002.safetensors").write_bytes(b"")
    # All that was trained since is trained again.
    result = tardygrad.resume(run, servers=3, quiet=True)
    assert result.outcome == "done"
    assert len(cuts(run)) == 2
    books = audit(run)
    assert books.exact, books.verdict()
    assert result.summary["ledger"]["applied"] == 3 * 3 * SAMPLES


class DieAfter(Callback):
    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        raise Died


def test_before_the_first_checkpoint_the_run_begins_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    never = {"every_s": 1000.0}
    with pytest.raises(Died):
        tardygrad.train(
            model, data(), out=run, callbacks=[DieAfter()], servers=2, checkpoint=never, **SETTINGS
        )
    assert not CheckpointStore(run).steps()
    (run / "trace" / "shard-001.trace").unlink()  # as if its server had never begun
    for servers in (3, 1):
        with pytest.raises(Died):
            tardygrad.resume(run, servers=servers, quiet=True, callbacks=[DieAfter()])
    assert "it begins again" in decisions(run)
    result = tardygrad.resume(run, servers=3, quiet=True, epochs=5, callbacks=[StopAfter(2)])
    assert result.outcome == "preempted" and audit(run).exact
    # And what is trained since may be cut as ever.
    assert tardygrad.resume(run, servers=2, quiet=True).outcome == "done"
    assert [cut.from_step == 0 for cut, _ in cuts(run)] == [True, True, True, False]
    books = audit(run)
    assert books.exact, books.verdict()
    assert {(row.shard, row.applied) for row in books.rows} == {(0, SAMPLES), (1, SAMPLES)}
    assert len(books.rows) == 2 * 5


@pytest.mark.parametrize("then", [1, 2, 3])
def test_when_all_checkpoints_of_the_new_shards_are_lost(tmp_path: Path, then: int) -> None:
    """The newest whole checkpoint is of the old shards, and the traces are of the new ones."""
    run = stopped(tmp_path / "run", servers=2, workers=2)
    assert tardygrad.resume(run, servers=3, quiet=True).outcome == "done"
    store = CheckpointStore(run)
    lost = [step for step in store.steps() if len(store.read(step).shards) == 3]
    for step in lost:
        path = store.directory(step) / "shard-001.safetensors"
        path.write_bytes(b"x" + path.read_bytes()[1:])
    assert len(lost) < len(store.steps())
    assert tardygrad.resume(run, servers=then, quiet=True, epochs=6).outcome == "done"
    books = audit(run)
    assert books.exact, books.verdict()
    assert len(cuts(run)) == 2
    assert {(row.shard, row.applied) for row in books.rows} == {
        (shard, SAMPLES) for shard in range(then)
    }
    assert len(books.rows) == then * 6


def test_a_replay_is_proposed_only_where_it_can_be_made(tmp_path: Path) -> None:
    run = tmp_path / "same"
    same = tardygrad.train(model, data(), out=run, servers=2, **SETTINGS)
    assert f"tardygrad replay {same.run_directory}" in "\n".join(summarize(same))
    changed = tardygrad.resume(stopped(tmp_path / "changed", servers=1), servers=2, quiet=True)
    assert "tardygrad replay" not in "\n".join(summarize(changed))
    for path in (run / "trace").glob("*.trace"):
        path.write_bytes(path.read_bytes()[:16])
    lines = "\n".join(summarize(same))
    assert "NOT EXACT" in lines and "tardygrad replay" not in lines
