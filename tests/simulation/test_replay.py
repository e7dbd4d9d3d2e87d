"""A replay of the traces gives the parameters of the run that wrote them, bit for bit."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tardygrad.config import to_yaml
from tardygrad.data.sources import ArraySource
from tardygrad.engines.base import Job, RunEnd
from tardygrad.engines.inline import InlineEngine
from tardygrad.engines.shard_host import digest
from tardygrad.errors import LedgerError, ReplayMismatch, RunDirectoryError
from tardygrad.models.null import NullAdapter
from tardygrad.protocol import trace
from tardygrad.protocol.meetings import Back, Met, Took
from tardygrad.protocol.trace import Record
from tardygrad.replaying import _Execution, replay, replay_traces
from tardygrad.storage.run_directory import RunDirectory
from tardygrad.storage.traces import read_meetings, read_traces
from tardygrad.testing import simulation
from tardygrad.testing.simulation import MemoryStore, SilentObserver

SAMPLES = 83  # the last batch is short

MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)),
    "batchnorm": lambda: nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Linear(9, 3)),
    "dropout": lambda: nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.4), nn.Linear(16, 3)),
}


def make_document(**document: Any) -> dict[str, Any]:
    faults = document.pop("faults", [])
    return {
        "workers": 3,
        "epochs": 2,
        "batch_size": 8,
        "fragment_batches": 3,
        "failure": {"lease_s": 0.5, "heartbeat_s": 0.05, "backoff_s": 0.05},
        "simulation": {
            "compute": {"distribution": "exponential", "mean_s": 0.01},
            "faults": faults,
            "limit_s": 100,
        },
        **document,
    }


def make_job(traces: Path | None, model: str = "mlp", **document: Any) -> Job:
    settings = make_document(**document)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(SAMPLES, 6, generator=generator)
    train = ArraySource(inputs, inputs[:, :3].argmax(dim=1))
    if model == "null":
        job = simulation.make_job(lambda: NullAdapter(100), train, samples=SAMPLES, **settings)
    else:
        job = simulation.torch_job(MODELS[model], train, **settings)
    return dataclasses.replace(job, trace_directory=traces)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads only cost time on models this small, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Recorded(NamedTuple):
    """A run, how it ended, and what it wrote."""

    job: Job
    end: RunEnd
    traces: list[list[Record]]
    meetings: list[Met]

    def __repr__(self) -> str:
        return f"<a run with {[len(records) for records in self.traces]} records>"

    def kinds(self) -> set[str]:
        return {trace.KIND_NAMES[record.kind] for records in self.traces for record in records}

    def found(self, traces: list[list[Record]] | None = None) -> str:
        traces = self.traces if traces is None else traces
        return digest([replay_traces(self.job, traces, meetings=self.meetings)])

    def expected(self) -> str:
        return str(self.end.figures["digest"])


def record(directory: Path, model: str = "mlp", **document: Any) -> Recorded:
    job = make_job(directory, model, **document)
    end = InlineEngine().run(job, SilentObserver(), MemoryStore())
    assert end.outcome == "done"
    assert model == "null" or not torch.equal(end.parameters, job.initial)
    return Recorded(job, end, read_traces(directory), read_meetings(directory))


def crash(target: str, at_s: float) -> dict[str, Any]:
    return {"kind": "crash", "target": target, "at_s": at_s}


ADAM = {"class": "Adam", "arguments": {"lr": 0.01}}
MOMENTUM = {"class": "SGD", "arguments": {"lr": 0.05, "momentum": 0.9}}
COSINE = {"name": "cosine", "total": 2 * SAMPLES, "warmup": 20}
ELASTIC = {"mixing": 0.5, "exchange_period": 3}
GOSSIP = {"name": "gossip", "momentum": 0.9}

# Model, settings, and what must have happened for the case to mean anything.
CASES: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "alone": ("mlp", {"workers": 1, "method": {"in_flight": 0}}, set()),
    "three shards, Adam": ("mlp", {"servers": 3, "method": {"optimizer": ADAM}}, set()),
    "two in flight": ("mlp", {"servers": 2, "method": {"in_flight": 2}}, set()),
    "batchnorm": ("batchnorm", {"servers": 2, "method": {"optimizer": MOMENTUM}}, set()),
    "dropout, clipping": ("dropout", {"method": {"clip_norm": 0.1, "weight_decay": 0.1}}, set()),
    "elastic": ("dropout", {"servers": 2, "method": {**ELASTIC, "schedule": COSINE}}, set()),
    "elastic, batchnorm": ("batchnorm", {"method": {**ELASTIC, "in_flight": 2}}, set()),
    "bounded": (
        "mlp",
        {"servers": 2, "method": {"consistency": {"name": "ssp", "bound": 1}}},
        set(),
    ),
    "scaled": ("mlp", {"method": {"staleness": {"name": "polynomial"}}}, set()),
    "dropped": (
        "batchnorm",
        {
            "workers": 4,
            "servers": 2,
            "method": {**ELASTIC, "staleness": {"name": "cut_off", "below": 2}, "schedule": COSINE},
        },
        {"dropped"},
    ),
    "computed again": (
        "batchnorm",
        {
            "workers": 4,
            "method": {
                "mixing": 0.5,
                "in_flight": 2,
                "staleness": {"name": "cut_off", "below": 3, "again": True},
            },
        },
        {"refused"},
    ),
    "doubled": (
        "dropout",
        {"servers": 2, "method": ELASTIC, "faults": [{"kind": "duplicate", "rate": 0.3}]},
        {"duplicate"},
    ),
    "lost and sent again": (
        "batchnorm",
        {
            "servers": 2,
            "method": {"in_flight": 2, "mixing": 0.5},
            "faults": [{"kind": "loss", "rate": 0.1}],
        },
        {"refused"},
    ),
    "a worker dies": (
        "batchnorm",
        {"servers": 2, "method": ELASTIC, "faults": [crash("worker-1", 0.05)]},
        set(),
    ),
    "a server dies before any checkpoint": (
        "batchnorm",
        {"servers": 2, "method": {"optimizer": ADAM}, "faults": [crash("server-0", 0.05)]},
        {"restored"},
    ),
    "servers and a worker die": (
        "batchnorm",
        {
            "servers": 3,
            "epochs": 6,
            "method": {**ELASTIC, "optimizer": ADAM, "schedule": COSINE},
            "checkpoint": {"every_s": 0.02},
            "faults": [crash("server-0", 0.13), crash("worker-0", 0.15), crash("server-2", 0.28)],
        },
        {"restored", "snapshot"},
    ),
    "nothing is computed": ("null", {"servers": 2}, set()),
    "replicas averaged": (
        "batchnorm",
        {"servers": 2, "workers": 4, "method": {**GOSSIP, "schedule": COSINE}},
        set(),
    ),
    "replicas averaged, members die": (
        "dropout",
        {
            "servers": 2,
            "epochs": 6,
            "method": {**GOSSIP, "exchange_period": 2},
            "checkpoint": {"every_s": 0.02},
            "faults": [
                crash("worker-1", 0.07),
                crash("server-0", 0.13),
                crash("worker-0", 0.2),
                {"kind": "loss", "rate": 0.1},
                {"kind": "hang", "target": "worker-2", "at_s": 0.1, "for_s": 0.1},
            ],
        },
        {"restored", "snapshot"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_same_bits(case: str, tmp_path: Path) -> None:
    model, document, kinds = CASES[case]
    run = record(tmp_path, model, **document)
    assert kinds <= run.kinds()
    assert run.found() == run.expected()


def test_a_checkpoint_was_gone_back_to(tmp_path: Path) -> None:
    model, document, _ = CASES["servers and a worker die"]
    run = record(tmp_path, model, **document)
    steps = [r.seq for records in run.traces for r in records if r.kind == trace.RESTORED]
    assert len(steps) == 2
    assert min(steps) > 0


def test_shards_that_wait_for_one_another() -> None:
    """Shard 0 waits for shard 1 to be restored, which then waits for shard 0."""
    job = make_job(None, servers=2)
    step = Record(trace.APPLIED, 0, 1, session=1, seq=1, stop=1, samples=8, reads=((0, 0), (1, 0)))
    other = step._replace(incarnation=1, seq=2, first=1, stop=2, reads=((0, 1), (1, 0)))
    snapshot = Record(trace.SNAPSHOT, 0, 0, seq=1)
    restored = Record(trace.RESTORED, 1, 0, seq=1)
    progress: list[tuple[int, int]] = []
    replay_traces(
        job, [[step], [snapshot, restored, other]], progress=lambda *at: progress.append(at)
    )
    assert progress[-1] == (2, 2)


def test_what_nobody_needs_is_not_computed(tmp_path: Path) -> None:
    run = record(tmp_path, servers=2, faults=[crash("server-0", 0.05), crash("server-1", 0.05)])
    steps = {(r.session, r.seq) for rs in run.traces for r in rs if r.kind == trace.APPLIED}
    progress: list[tuple[int, int]] = []
    replay_traces(run.job, run.traces, progress=lambda done, total: progress.append((done, total)))
    done, total = progress[-1]
    assert done == total == 2 * run.job.plan.batches_per_epoch < len(steps)


def test_memory_does_not_grow_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, document, _ = CASES["servers and a worker die"]
    run = record(tmp_path, model, **document)
    monkeypatch.setattr(sys.modules[_Execution.__module__], "_REPORT_EVERY_S", 0.0)
    kept: list[int] = []

    def look(done: int, total: int) -> None:
        memory = execution._memory
        kept.append(len(memory._copies) + len(memory._snapshots) + len(execution._updates))

    execution = _Execution(run.job, run.traces, (), look)
    execution.run()
    assert len(kept) > 20
    assert max(kept) < 20  # a few versions of three shards, a few updates, a snapshot or two
    assert kept[-1] == 0
    assert not execution._hosts


# Traces that are not what the run wrote.


@pytest.fixture(scope="module")
def elastic(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    method = {"mixing": 0.5, "optimizer": MOMENTUM}
    return record(tmp_path_factory.mktemp("trace"), servers=2, epochs=1, method=method)


def changed(run: Recorded, shard: int, index: int, **fields: Any) -> list[list[Record]]:
    traces = [list(records) for records in run.traces]
    traces[shard][index] = traces[shard][index]._replace(**fields)
    return traces


def index_of(run: Recorded, number: int) -> int:
    """Where shard 0's trace has its ``number``-th applied update."""
    applied = [i for i, record in enumerate(run.traces[0]) if record.kind == trace.APPLIED]
    return applied[number]


@settings(max_examples=25, deadline=None)
@given(number=st.integers(1, 10), data=st.data())
def test_a_trace_that_was_tampered_with_never_passes(
    elastic: Recorded, number: int, data: st.DataObject
) -> None:
    where = data.draw(st.integers(0, 1)), index_of(elastic, number)
    found = elastic.traces[where[0]][where[1]]
    change: dict[str, Any] = data.draw(
        st.sampled_from(
            [
                {"scale": 0.5},
                {"fragment": found.fragment - 1 if found.fragment else 1},
                {"epoch": 3},
                {"seq": found.seq + 100},
                {"version": found.version + 1},
                {"incarnation": 9},
                {"kind": trace.DROPPED},
                {"reads": ((0, found.reads[0][1] + 1), found.reads[1])},
                {"reads": ((0, 99), found.reads[1])},
            ]
        )
    )
    try:
        parameters = replay_traces(elastic.job, changed(elastic, *where, **change))
    except (LedgerError, ReplayMismatch):
        return
    assert digest([parameters]) != elastic.expected()


def test_another_order_gives_other_bits(elastic: Recorded) -> None:
    traces = [list(records) for records in elastic.traces]
    swapped = False
    for index in range(4, len(traces[0]) - 1):
        first, second = traces[0][index : index + 2]
        if first.worker != second.worker and second.reads[0][1] < first.version:
            traces[0][index] = second._replace(version=first.version)
            traces[0][index + 1] = first._replace(version=second.version)
            swapped = True
            break
    assert swapped
    assert elastic.found(traces) != elastic.expected()


def test_a_version_that_never_was(elastic: Recorded) -> None:
    index = index_of(elastic, 4)
    reads = ((0, 99), elastic.traces[0][index].reads[1])
    traces = [
        [r._replace(reads=reads) if r[4:6] == elastic.traces[0][index][4:6] else r for r in records]
        for records in elastic.traces
    ]
    expected = r"shard 0 is impossible: incarnation 0 had no version 99 to read.* step \d+ of sess"
    with pytest.raises(LedgerError, match=expected):
        elastic.found(traces)


def test_a_step_that_read_its_own_effect(elastic: Recorded) -> None:
    index = index_of(elastic, 4)
    own = elastic.traces[0][index]
    reads = ((0, own.version), own.reads[1])
    traces = [
        [r._replace(reads=reads) if r[4:6] == own[4:6] else r for r in records]
        for records in elastic.traces
    ]
    with pytest.raises(LedgerError, match="computed from something that came after it"):
        elastic.found(traces)


def test_two_shards_that_disagree(elastic: Recorded) -> None:
    index = index_of(elastic, 4)
    with pytest.raises(LedgerError, match="impossible: elsewhere that step is 'applied' of inc"):
        elastic.found(changed(elastic, 0, index, clock=99))


def test_a_record_that_is_missing(elastic: Recorded) -> None:
    index = index_of(elastic, 4)
    traces = [list(elastic.traces[0]), elastic.traces[1]]
    del traces[0][index]
    with pytest.raises(LedgerError, match="the shard was at version 5; the record is 'applied'"):
        elastic.found(traces)


def test_a_restoration_of_what_was_never_saved(elastic: Recorded) -> None:
    restored = Record(trace.RESTORED, 1, 3, seq=8)
    with pytest.raises(LedgerError, match="that snapshot was never taken; the record is 'restor"):
        elastic.found([[*elastic.traces[0], restored], elastic.traces[1]])


def test_a_shard_too_few(elastic: Recorded) -> None:
    with pytest.raises(LedgerError, match="traces of 1 shards, the run has 2"):
        elastic.found(elastic.traces[:1])


@pytest.mark.parametrize("mixing", [1.0, 0.5])
def test_a_step_without_any_record(tmp_path: Path, mixing: float) -> None:
    """It is missed where a later step depends on it, and only there."""
    staleness = {"name": "cut_off", "below": 2}
    run = record(tmp_path, method={"mixing": mixing, "staleness": staleness})
    traces = [[r for r in run.traces[0] if r.kind != trace.DROPPED]]
    assert traces != run.traces
    if mixing == 1.0:
        assert run.found(traces) == run.expected()
    else:
        with pytest.raises(ReplayMismatch, match=r"step before this one no shard.* step \d+ of"):
            run.found(traces)


# Meetings that are not what the run wrote.


@pytest.fixture(scope="module")
def gossip(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return record(tmp_path_factory.mktemp("trace"), servers=2, epochs=1, method=GOSSIP)


@settings(max_examples=25, deadline=None)
@given(index=st.integers(3, 10), data=st.data())
def test_meetings_that_were_tampered_with_never_pass(
    gossip: Recorded, index: int, data: st.DataObject
) -> None:
    meetings = list(gossip.meetings)
    found = meetings[index]
    other = meetings[data.draw(st.integers(0, index - 1))]
    change: dict[str, Any] = data.draw(
        st.sampled_from(
            [
                {"took": None if found.took else Took(other.worker, other.seq)},
                {"back": None if found.back else Back(1, other.worker, other.seq)},
                {"took": Took(found.worker, found.seq)},
                {"took": Took(9, 9)},
                {"first": found.first + 1},
                {"session": 99},
            ]
        )
    )
    meetings[index] = found._replace(**change)
    try:
        bits = gossip._replace(meetings=meetings).found()
    except (LedgerError, ReplayMismatch):
        return
    assert bits != gossip.expected()


def test_a_step_whose_meeting_is_not_on_record(gossip: Recorded) -> None:
    with pytest.raises(ReplayMismatch, match="whom its worker met before this step is not on"):
        gossip._replace(meetings=[]).found()


# The whole way, from a run directory.


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that has ended."""
    path = tmp_path / "run"
    with RunDirectory.create(path, to_yaml(make_job(None).config)) as created:
        run = record(created.trace)
        created.finish("done")
    write_events(path, {"event": "run_start"}, {"event": "run_end", "digest": run.expected()})
    monkeypatch.setattr("tardygrad.training.job_of_run", lambda run, *data: make_job(None))
    return path


def write_events(run: Path, *events: dict[str, Any]) -> None:
    lines = [json.dumps({**event, "time_s": 0.0}) + "\n" for event in events]
    (run / "metrics.jsonl").write_text("".join(lines))


def test_a_run_directory(directory: Path) -> None:
    progress: list[tuple[int, int]] = []
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    threads = torch.get_num_threads()
    report = replay(directory, lambda done, total: progress.append((done, total)))
    assert report.matches
    assert report.expected == report.found
    assert progress[-1] == (report.updates, report.updates)
    assert report.updates == 2 * 11
    assert report.seconds > 0
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_another_digest(directory: Path) -> None:
    write_events(directory, {"event": "run_start"}, {"event": "run_end", "digest": "ab"})
    report = replay(str(directory))
    assert not report.matches
    assert report.expected == "ab"


def test_a_run_that_has_not_ended(directory: Path) -> None:
    end = {"event": "run_end", "digest": "ab"}
    for events in ([{"event": "run_start"}], [{"event": "run_start"}, end, {"event": "run_start"}]):
        write_events(directory, *events)
        with pytest.raises(RunDirectoryError, match="no end to compare with"):
            replay(directory)
