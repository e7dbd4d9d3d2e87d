"""The residual: what lost pushes did is undone, a log tells of it, files are whole or absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tardygrad.codecs import names, parse
from tardygrad.codecs.pushes import PushFormat
from tardygrad.engines.entries import EntryLog
from tardygrad.engines.packing import Packer
from tardygrad.errors import CheckpointError, ConfigError, LedgerError, StorageError
from tardygrad.layout import Layout, partition
from tardygrad.protocol.residuals import Chains, Inherited, Residual, Returned
from tardygrad.storage.traces import RESIDUALS, read_residuals
from tardygrad.storage.worker_files import WorkerFiles

LAYOUT = Layout.of([("w", (8, 8), "float32")], [("mean", (2,), "float32")])
TOP = {"name": "top_k", "fraction": 0.05}  # two of each shard's 32 elements


class Bench:
    def __init__(self, codec: Any = TOP, servers: int = 2) -> None:
        self.form = PushFormat(parse(codec), LAYOUT, partition(LAYOUT, servers))
        self.entries: list[Residual] = []
        self.packer = Packer(self.form, 3, self.entries.append)

    def push(self, seq: int, update: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(self.form.nbytes, dtype=torch.uint8)
        whole = torch.zeros(LAYOUT.size)
        whole[:64] = update
        self.packer.pack(seq, whole, out)
        self.packer.unpack(out, whole)
        return whole[:64].clone()


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("servers", [1, 2, 4])
def test_nothing_overlaps_in_a_push(name: str, servers: int) -> None:
    form = PushFormat(parse(name), LAYOUT, partition(LAYOUT, servers))
    push = torch.zeros(form.nbytes, dtype=torch.uint8)
    for shard in range(servers):
        part = form.part(push, shard)
        assert part.storage_offset() % 64 == 0
        assert form.sent[shard] == part.numel() + (64 if shard == 0 else 0)
        part += 1
    form.buffers(push).view(torch.uint8).add_(1)
    assert int(push.max()) == 1
    assert sum(form.unencoded) == 4 * LAYOUT.size
    if name == "fp32":
        assert (form.nbytes, form.sent) == (4 * LAYOUT.size, form.unencoded)


def test_a_lost_push_never_was() -> None:
    update = torch.arange(64.0)
    one, other = Bench(), Bench()
    one.push(1, update)
    other.push(1, update)
    one.push(2, 7 * update)
    one.packer.answered(1, ())
    one.packer.answered(2, (1,))
    assert one.entries == []
    later, without = one.push(3, update), other.push(3, update)
    assert one.entries == [Returned(3, 3, 2, (1,))]
    assert not torch.equal(later[:32], without[:32])
    torch.testing.assert_close(later[32:], without[32:])
    # What happened to a push is told once; others' answers mean nothing.
    one.packer.answered(2, (0, 1))
    one.packer.answered(77, (0, 1))
    one.packer.leave()
    assert len(one.entries) == 1


def test_who_leaves_settles_first() -> None:
    bench = Bench()
    bench.push(5, torch.arange(64.0))
    bench.packer.answered(5, (0, 1))
    assert not bench.packer.leave()["residual"].any()
    assert bench.entries == [Returned(3, 6, 5, (0, 1))]


def test_without_feedback_nothing_is_kept() -> None:
    bench = Bench({**TOP, "error_feedback": False})
    first = bench.push(1, torch.arange(64.0))
    bench.packer.answered(1, (0, 1))
    assert torch.equal(bench.push(2, torch.arange(64.0)), first)
    assert bench.packer.residual is None and bench.packer.leave() == {} and bench.entries == []


@given(values=st.lists(st.floats(width=32, allow_nan=False), min_size=64, max_size=64))
def test_all_of_everything_is_everything(values: list[float]) -> None:
    update = torch.tensor(values)
    found = Bench({"name": "top_k", "fraction": 1.0}).push(1, update)
    assert torch.equal(found, update)


# --- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("topk", "method.codec: unknown codec 'topk'.*'top_k'"),
        ({"name": "top_k", "fracton": 0.1}, "method.codec.fracton: unknown key.*'fraction'"),
        ({"name": "top_k", "fraction": 0.0}, "method.codec.fraction: expected a number greater"),
        ({"name": "fp32", "error_feedback": True}, "method.codec.error_feedback: unknown key"),
        ({"fraction": 0.1}, "method.codec: expected a codec's name or a section with a name"),
        (7, "method.codec: expected a codec's name"),
    ],
)
def test_a_wrong_section_is_told(section: Any, message: str) -> None:
    from tardygrad.methods import parse as parse_method

    with pytest.raises(ConfigError, match=message):
        parse_method({"name": "async_sgd", "codec": section})


def test_the_codec_goes_over_to_another_method() -> None:
    from tardygrad.methods import switch

    assert switch({"name": "async_sgd", "codec": "int8"}, "diloco")["codec"] == "int8"


# --- the log ----------------------------------------------------------------------------------

ENTRIES: list[Residual] = [Returned(1, 9, 7, (0, 2)), Inherited(1, 1024, 3)]


def test_the_log_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_residuals(tmp_path) == []
    for entry in ENTRIES:
        EntryLog(tmp_path / RESIDUALS).write(entry)
    assert read_residuals(tmp_path) == ENTRIES


def test_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    EntryLog(tmp_path / RESIDUALS).write(ENTRIES[0])
    with (tmp_path / RESIDUALS).open("a") as file:
        file.write('{"worker": 1, "at"')
    EntryLog(tmp_path / RESIDUALS).write(ENTRIES[1])
    assert read_residuals(tmp_path) == ENTRIES


def test_a_line_of_something_else_is_told(tmp_path: Path) -> None:
    (tmp_path / RESIDUALS).write_text('{"worker": 1, "why": 2, "shards": [1]}\n')
    with pytest.raises(LedgerError, match=r"residuals.jsonl, line 1, is no entry"):
        read_residuals(tmp_path)


def test_a_log_that_cannot_be_written_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="could not be replayed"):
        EntryLog(tmp_path / "gone" / RESIDUALS)


def test_chains_go_by_their_first_process() -> None:
    seq = 5 << 32
    chains = Chains([Inherited(1, 5, 2), Inherited(1, 6, 2), Returned(1, seq + 4, seq + 3, (0,))])
    assert chains.of(1, seq) == (1, 2) == chains.of(1, 2 << 32)
    assert chains.of(0, seq) == (0, 5)
    assert chains.before((1, 6)) == (1, 2) and chains.before((1, 2)) is None
    assert [entry.seq for entry in chains.returned((1, 2))] == [seq + 3]
    assert chains.returned((0, 5)) == []


# --- what workers leave -----------------------------------------------------------------------


def test_only_those_who_left_are_taken_up(tmp_path: Path) -> None:
    files = WorkerFiles(tmp_path)
    directory = tmp_path / "checkpoints" / "000000000007"
    tensors = {"residual": torch.arange(3.0)}
    for worker, incarnation in ((0, 0), (1, 0), (1, 1)):
        files.write(worker, incarnation, tensors, {"kind": f"{worker} {incarnation}"})
    directory.mkdir()
    entries = files.copy([[1, 1], [2, 0]], directory)
    assert [(e["worker"], e["incarnation"]) for e in entries] == [(1, 1)]
    files.clear()
    assert not (tmp_path / "checkpoints" / "workers").exists()
    assert files.copy([[1, 1]], directory) == []
    found, described = files.load(directory, entries[0])
    assert torch.equal(found["residual"], tensors["residual"]) and described == {"kind": "1 1"}

    path = directory / entries[0]["name"]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="is damaged"):
        files.load(directory, entries[0])
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        files.load(directory, entries[0])
