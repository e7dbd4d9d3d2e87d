"""The proof that each sample counted once: what it finds, what it demands, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tardygrad.auditing import Audit, Row, audit, run_plan
from tardygrad.config import RunConfig, to_yaml
from tardygrad.data.fragments import FragmentPlan
from tardygrad.engines.shard_host import TraceFile
from tardygrad.errors import LedgerError, RunDirectoryError
from tardygrad.protocol import trace
from tardygrad.protocol.trace import Encoder, Record, file_header, record_size
from tardygrad.storage.run_directory import Outcome, RunDirectory

# Batches of 4, 4 and 2 samples: fragment 0 has the first two, fragment 1 the short one.
PLAN = FragmentPlan(samples=10, batch_size=4, fragment_batches=2, seed=0)
PLACES = [(0, 0, 1), (0, 1, 2), (1, 0, 1)]
HEAD = len(file_header(0, 1))


def booking(epoch: int, fragment: int, first: int, stop: int, kind: int = trace.APPLIED) -> Record:
    samples = PLAN.samples_in(fragment, first, stop)
    return Record(
        kind, 0, 0, epoch=epoch, fragment=fragment, first=first, stop=stop, samples=samples
    )


def epochs(*numbers: int) -> list[Record]:
    return [booking(epoch, *place) for epoch in numbers for place in PLACES]


def snapshot(step: int) -> Record:
    return Record(trace.SNAPSHOT, 0, 0, seq=step)


def restored(step: int) -> Record:
    return Record(trace.RESTORED, 1, 0, seq=step)


def path_of(run: Path, shard: int) -> Path:
    return run / "trace" / f"shard-{shard:03d}.trace"


def write(run: Path, traces: Sequence[Iterable[Record]]) -> None:
    encoder = Encoder(len(traces))
    for shard, records in enumerate(traces):
        body = b"".join(encoder.encode(record) for record in records)
        path_of(run, shard).write_bytes(file_header(shard, len(traces)) + body)


def make_run(
    run: Path, *traces: Iterable[Record], outcome: Outcome | None = "done", **changes: object
) -> Path:
    """A run directory of two epochs with these traces."""
    document = {
        "model": {"factory": "a:b"},
        "data": {"source": "a:b"},
        "epochs": 2,
        "batch_size": PLAN.batch_size,
        "fragment_batches": PLAN.fragment_batches,
    }
    config = RunConfig.model_validate({**document, **changes})
    with RunDirectory.create(run, to_yaml(config)) as directory:
        if outcome is not None:
            directory.finish(outcome)
    start = {"event": "run_start", "time_s": 0.0, "samples_per_epoch": PLAN.samples}
    (run / "metrics.jsonl").write_text(json.dumps(start) + "\n")
    if traces:
        write(run, traces)
    return run


def test_every_sample_once(tmp_path: Path) -> None:
    found = audit(make_run(tmp_path / "run", epochs(0, 1), epochs(1, 0)))
    assert found.exact
    assert found.rows == [
        Row(epoch, shard, 10, 0, 0, 0, True) for epoch in (1, 2) for shard in (0, 1)
    ]
    assert found.verdict() == (
        "exact: 20 samples applied once on each of 2 shards, 0 dropped, 0 missing, 0 twice"
    )


def test_a_finished_run_must_have_all(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", epochs(0, 1), epochs(0, 1)[:-1])
    found = audit(run)
    assert not found.exact
    assert found.rows[3] == Row(2, 1, 8, 0, 2, 0, True)
    assert found.verdict() == (
        "NOT EXACT: 18 to 20 samples applied on each of 2 shards, "
        "0 dropped, 0 to 2 missing, 0 twice"
    )


def test_a_finished_run_must_have_epochs_that_nobody_touched(tmp_path: Path) -> None:
    found = audit(make_run(tmp_path / "run", epochs(0)))
    assert not found.exact
    assert found.rows == [Row(1, 0, 10, 0, 0, 0, True), Row(2, 0, 0, 0, 10, 0, True)]


@pytest.mark.parametrize("outcome", [None, "preempted", "failed"])
def test_an_unfinished_run_may_lack_something(tmp_path: Path, outcome: Outcome | None) -> None:
    run = make_run(tmp_path / "run", epochs(0, 1)[:-2], epochs(0), outcome=outcome)
    found = audit(run)
    assert found.exact
    assert [row.complete for row in found.rows] == [True, True, False, False]
    assert found.rows[2] == Row(2, 0, 4, 0, 6, 0, False)
    assert found.verdict() == (
        "exact: 10 to 14 samples applied once on each of 2 shards, 0 dropped, 0 missing, 0 twice, "
        "epoch 2 under way"
    )
    assert not audit(run, outcome="done").exact


def test_twice_is_wrong_at_any_time(tmp_path: Path) -> None:
    found = audit(make_run(tmp_path / "run", [*epochs(0), booking(0, 1, 0, 1)], outcome=None))
    assert not found.exact
    assert found.rows == [Row(1, 0, 10, 0, 0, 2, True)]
    assert "2 twice" in found.verdict()
    assert "on the one shard" in found.verdict()


def test_what_is_dropped_is_booked(tmp_path: Path) -> None:
    dropped = booking(0, 0, 0, 2, trace.DROPPED)
    found = audit(make_run(tmp_path / "run", [dropped, booking(0, 1, 0, 1)], epochs=1))
    assert found.exact
    assert found.rows == [Row(1, 0, 2, 8, 0, 0, True)]


def test_what_was_rolled_back_does_not_count(tmp_path: Path) -> None:
    first, second, third = epochs(0)
    records = [first, snapshot(1), second, third, restored(1), second, third]
    assert audit(make_run(tmp_path / "a", records, epochs=1)).exact
    records = [first, snapshot(1), second, restored(0), second, third]
    found = audit(make_run(tmp_path / "b", records, epochs=1))
    assert found.rows == [Row(1, 0, 6, 0, 4, 0, True)]
    with pytest.raises(LedgerError, match="restores snapshot 7"):
        audit(make_run(tmp_path / "c", [first, restored(7)]))


def test_an_epoch_that_was_rolled_back_whole_is_not_listed(tmp_path: Path) -> None:
    records = [*epochs(0), snapshot(1), *epochs(1), restored(1)]
    assert audit(make_run(tmp_path / "done", records, epochs=1)).rows == [
        Row(1, 0, 10, 0, 0, 0, True)
    ]
    going_on = audit(make_run(tmp_path / "killed", [], [*epochs(0), restored(0)], outcome=None))
    assert going_on == Audit(True, [])


def test_other_records_do_not_count(tmp_path: Path) -> None:
    noise = [booking(0, 0, 0, 1, kind) for kind in (trace.DUPLICATE, trace.REFUSED)]
    assert audit(make_run(tmp_path / "run", [*noise, *epochs(0), *noise], epochs=1)).exact


def test_nothing_applied_yet(tmp_path: Path) -> None:
    found = audit(make_run(tmp_path / "run", [], [], outcome=None))
    assert found == Audit(True, [])
    assert found.verdict() == "exact: nothing was applied yet"


@pytest.mark.parametrize("cut", [1, record_size(1) - 1])
def test_a_torn_tail_is_cut(tmp_path: Path, cut: int) -> None:
    run = make_run(tmp_path / "run", epochs(0), outcome=None)
    path = path_of(run, 0)
    path.write_bytes(path.read_bytes()[:-cut])
    assert audit(run).rows == [Row(1, 0, 8, 0, 2, 0, False)]


@pytest.mark.parametrize("tear", [lambda data: data[:-1], lambda data: data[:-9] + bytes(9)])
def test_a_server_that_comes_back_writes_on_behind_what_is_whole(
    tmp_path: Path, tear: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "shard-001.trace"
    records = epochs(0)
    for part in (records[:1], records[1:]):
        file = TraceFile(path, 1, 2)
        for record in part:
            file.write(record)
        file.close()
    path.write_bytes(tear(path.read_bytes()))
    file = TraceFile(path, 1, 2)
    file.write(records[0])
    file.close()
    shard, shards, found, valid = trace.decode_file(path.read_bytes(), "it")
    assert (shard, shards, valid) == (1, 2, path.stat().st_size)
    assert [record[:13] for record in found] == [r[:13] for r in [*records[:-1], records[0]]]


def test_a_head_that_was_never_written(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", epochs(0), [], outcome=None)
    path_of(run, 1).write_bytes(b"")
    assert [row.applied for row in audit(run).rows] == [10, 0]


def test_damage_is_not_cut(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", epochs(0))
    data = bytearray(path_of(run, 0).read_bytes())
    data[HEAD + 5] ^= 1
    path_of(run, 0).write_bytes(data)
    with pytest.raises(LedgerError, match=rf"shard-000.trace: the record at byte {HEAD} is dam"):
        audit(run)


def test_traces_that_do_not_belong_together(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="holds no trace"):
        audit(make_run(tmp_path / "none"))
    run = make_run(tmp_path / "run", epochs(0), epochs(0))
    data = path_of(run, 1).read_bytes()
    path_of(run, 1).unlink()
    with pytest.raises(LedgerError, match=r"trace lacks shard-001\.trace; restore the folder"):
        audit(run)
    path_of(run, 2).write_bytes(data)
    with pytest.raises(LedgerError, match=r"shard-002.trace holds the trace of shard 1"):
        audit(run)
    path_of(run, 2).rename(path_of(run, 1))
    path_of(run, 5).touch()
    with pytest.raises(LedgerError, match=r"is of 2 shards and should not have shard-005\.trace"):
        audit(run)


def test_a_configuration_that_is_not_the_traces_own(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", epochs(0, 1), batch_size=5)
    with pytest.raises(LedgerError, match=r"not of this configuration.*restore config\.yaml"):
        audit(run)


def test_the_plan(tmp_path: Path) -> None:
    assert run_plan(make_run(tmp_path / "run", seed=7)) == FragmentPlan(
        samples=10, batch_size=4, fragment_batches=2, seed=7
    )
    chosen = run_plan(make_run(tmp_path / "chosen", fragment_batches=None, batch_size=1, workers=1))
    assert chosen.fragment_batches == 1


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError):
        audit(tmp_path)
    run = make_run(tmp_path / "run", epochs(0))
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(RunDirectoryError, match="has not begun to train"):
        audit(run)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 1),
            st.sampled_from(PLACES),
            st.sampled_from([trace.APPLIED, trace.DROPPED]),
        ),
        max_size=8,
    )
)
def test_counts_agree_with_counting_samples(
    tmp_path_factory: pytest.TempPathFactory, bookings: list[tuple[int, tuple[int, int, int], int]]
) -> None:
    records = [booking(epoch, *place, kind) for epoch, place, kind in bookings]
    run = make_run(tmp_path_factory.mktemp("runs") / "run", records)
    for row in audit(run).rows:
        mine = [(place, kind) for epoch, place, kind in bookings if epoch + 1 == row.epoch]
        applied = {place for place, kind in mine if kind == trace.APPLIED}
        touched = {place for place, _ in mine}
        assert row.applied == sum(PLAN.samples_in(*place) for place in applied)
        assert row.dropped == sum(PLAN.samples_in(*place) for place in touched - applied)
        assert row.missing == 10 - row.applied - row.dropped
        times = sum(PLAN.samples_in(*place) for place, _ in mine)
        assert row.twice == times - row.applied - row.dropped
