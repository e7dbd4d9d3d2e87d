"""The log, the recorder that feeds it, and the TensorBoard view beside it."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tardygrad.errors import RunDirectoryError, StorageError, UsageError
from tardygrad.metrics import MetricsLog, Recorder, sink
from tardygrad.metrics.tensorboard import TensorBoardView


class FakeClock:
    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class ListView:
    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.closed = 0

    def update(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    def close(self) -> None:
        self.closed += 1


class BrokenView(ListView):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def update(self, event: dict[str, Any]) -> None:
        super().update(event)
        raise self.error


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def written(path: Path, *events: dict[str, Any]) -> bytes:
    with MetricsLog(path) as log:
        for event in events:
            log.write(event)
    return path.read_bytes()


# --- the log ----------------------------------------------------------------------------------


def test_each_event_is_one_line_and_is_there_before_close(path: Path) -> None:
    log = MetricsLog(path)
    log.write({"event": "a", "time_s": 0.5})
    assert path.read_bytes() == b'{"event":"a","time_s":0.5}\n'
    log.write({"event": "b", "text": "line\nbreak · ü"})
    assert [event["event"] for event in sink.read(path)] == ["a", "b"]
    assert path.read_bytes().count(b"\n") == 2
    log.close()
    log.close()
    with pytest.raises(ValueError, match="closed"):
        log.write({"event": "c"})


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats()
    | st.text().filter(lambda text: text not in ("NaN", "Infinity", "-Infinity")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_strict_json_round_trips_every_event(event: dict[str, Any]) -> None:
    line = sink.encode(event)
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert b"\n" not in line
    np.testing.assert_equal(sink._decode(line + b"\n"), event)


def test_scalars_of_other_libraries_become_plain_numbers(path: Path) -> None:
    event = {
        "loss": np.float32(0.5),
        "diverged": np.float32("nan"),
        "samples": np.int64(7),
        "path": Path("a/b"),
        "values": np.arange(2),
    }
    written(path, event)
    [read] = sink.read(path)
    assert math.isnan(read.pop("diverged"))
    assert read == {"loss": 0.5, "samples": 7, "path": "a/b", "values": [0, 1]}


def test_a_value_that_is_no_json_is_refused_by_name(path: Path) -> None:
    with MetricsLog(path) as log, pytest.raises(TypeError, match="of type object"):
        log.write({"event": object()})
    assert path.read_bytes() == b""


@given(cut=st.integers(0, 60), garbage=st.sampled_from([b"", b"\x00\x00", b"\xff\n", b"[1]\n"]))
def test_a_torn_end_is_passed_over_and_cut_on_resume(
    tmp_path_factory: pytest.TempPathFactory, cut: int, garbage: bytes
) -> None:
    path = tmp_path_factory.mktemp("torn") / "metrics.jsonl"
    first = written(path, {"event": "first", "time_s": 1.25})
    whole = written(path, {"event": "second", "time_s": 2.5})
    kept = whole[: max(len(first), len(whole) - 1 - cut)]
    path.write_bytes(kept + garbage if kept == first else kept)

    assert [event["event"] for event in sink.read(path)] == ["first"]
    with MetricsLog(path) as log:
        assert path.read_bytes() == first
        assert log.last_time_s == 1.25
        log.write({"event": "third"})
    assert [event["event"] for event in sink.read(path)] == ["first", "third"]


def test_a_torn_line_longer_than_a_block_is_cut_whole(path: Path) -> None:
    first = written(path, {"event": "first", "text": "x" * 200_000, "time_s": 3.0})
    path.write_bytes(first + b'{"event":"' + b"y" * 200_000)
    with MetricsLog(path) as log:
        assert log.last_time_s == 3.0
    assert path.read_bytes() == first


def test_a_file_with_nothing_whole_starts_afresh(path: Path) -> None:
    path.write_bytes(b'{"event":"ru')
    with MetricsLog(path) as log:
        assert log.last_time_s == 0.0
    assert path.read_bytes() == b""
    assert list(sink.read(path)) == []


def test_damage_in_the_middle_is_an_error_that_names_the_line(path: Path) -> None:
    path.write_bytes(b'{"event":"a"}\n{"event"\n{"event":"b"}\n')
    with pytest.raises(RunDirectoryError, match=r"metrics\.jsonl, line 2: expected one JSON"):
        list(sink.read(path))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_failed_write_says_which_file_and_why(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(fd: int, data: bytes) -> int:
        raise OSError(code, os.strerror(code))

    log = MetricsLog(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        with pytest.raises(StorageError) as caught:
            log.write({"event": "a"})
    log.close()
    assert str(path) in str(caught.value)
    assert os.strerror(code) in str(caught.value)


def short_writes(limit: int) -> Callable[[int, bytes], int]:
    """A device with room for ``limit`` bytes that takes what it can, as POSIX allows."""
    room, real = limit, os.write

    def write(fd: int, data: bytes) -> int:
        nonlocal room
        if room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = real(fd, bytes(data[: min(room, 10)]))
        room -= count
        return count

    return write


def test_a_disk_that_fills_in_a_line_leaves_no_half_line(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = written(path, {"event": "first"})
    log = MetricsLog(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", short_writes(15))
        with pytest.raises(StorageError, match="No space left"):
            log.write({"event": "a line of more than fifteen bytes"})
    assert path.read_bytes() == before
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", short_writes(1000))
        log.write({"event": "a line of more than fifteen bytes"})
    log.close()
    assert [event["event"][:5] for event in sink.read(path)] == ["first", "a lin"]


def test_a_directory_that_is_missing_or_is_a_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot append to .*No such file"):
        MetricsLog(tmp_path / "missing" / "metrics.jsonl")
    with pytest.raises(StorageError, match=r"cannot read .*No such file"):
        list(sink.read(tmp_path / "metrics.jsonl"))


def test_replacing_a_file_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    sink.replace_file(path, b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["curves.png"]
    with pytest.raises(StorageError, match="cannot write"):
        sink.replace_file(tmp_path / "missing" / "curves.png", b"new")


# --- the recorder -----------------------------------------------------------------------------


def test_the_recorder_stamps_and_tells_log_and_views_alike(path: Path) -> None:
    clock, views = FakeClock(100.0), (ListView(), ListView())
    with Recorder(MetricsLog(path), views, clock) as recorder:
        recorder.emit("run_start", workers=4)
        clock.now = 101.5
        record = recorder.emit("epoch", epoch=1)
    assert record == {"event": "epoch", "time_s": 1.5, "epoch": 1}
    assert views[0].events == views[1].events == list(sink.read(path))
    assert [view.closed for view in views] == [1, 1]


def test_time_goes_on_across_a_resume_and_never_back(path: Path) -> None:
    clock = FakeClock(7.0)
    with Recorder(MetricsLog(path), (), clock, origin=5.0) as recorder:
        assert recorder.emit("run_start")["time_s"] == 2.0
    clock.now = 0.0
    with Recorder(MetricsLog(path), (), clock) as recorder:
        assert recorder.emit("run_start")["time_s"] == 2.0
        clock.now = 3.0
        assert recorder.emit("progress")["time_s"] == 5.0
        clock.now = 2.0
        assert recorder.emit("progress")["time_s"] == 5.0


def test_a_view_that_fails_is_put_aside_and_the_run_goes_on(path: Path) -> None:
    broken, sound = BrokenView(KeyError("colour")), ListView()
    with Recorder(MetricsLog(path), (broken, sound), FakeClock()) as recorder:
        with pytest.warns(RuntimeWarning, match="BrokenView failed .*colour"):
            recorder.emit("run_start")
        recorder.emit("run_end")
    assert len(broken.events) == 1
    assert len(sound.events) == len(list(sink.read(path))) == 2


def test_a_storage_error_of_a_view_ends_the_run() -> None:
    recorder = Recorder(None, (BrokenView(StorageError("disk full")),), FakeClock())
    with pytest.raises(StorageError, match="disk full"):
        recorder.emit("run_start")


def test_the_stamp_is_the_recorders() -> None:
    with pytest.raises(ValueError, match="time_s=3"):
        Recorder(None).emit("progress", time_s=3)


# --- TensorBoard ------------------------------------------------------------------------------


def test_tensorboard_missing_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match=r"pip install 'tardygrad\[tensorboard\]'"):
        TensorBoardView(tmp_path)


class FakeWriter:
    def __init__(self, directory: str, purge_step: int | None = None) -> None:
        self.scalars: dict[str, tuple[float, int]] = {}
        self.closed = 0

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars[name] = (value, step)

    def close(self) -> None:
        self.closed += 1


def test_tensorboard_scalars_have_samples_as_their_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = type(sys)("torch.utils.tensorboard")
    vars(module)["SummaryWriter"] = FakeWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    view = TensorBoardView(tmp_path)
    row = {"worker": 1, "samples_per_s": 4.0, "staleness": {"mean": 2.0}}
    view.update({"event": "progress", "samples": 64, "loss": 0.5, "epoch": 0.1, "workers": [row]})
    view.update({"event": "progress", "samples": 96, "loss": None})
    view.update({"event": "evaluate", "epoch": 1, "samples": 128, "loss": 0.2, "accuracy": 0.9})
    view.close()
    view.update({"event": "epoch", "samples": 256, "loss": 0.1})
    view.close()
    writer = view._writer
    assert writer.scalars["train/loss"] == (0.5, 64)
    assert writer.scalars["worker_1/staleness_mean"] == (2.0, 64)
    assert writer.scalars["test/accuracy"] == (0.9, 128)
    assert "train/loss_epoch" not in writer.scalars
    assert writer.closed == 1
