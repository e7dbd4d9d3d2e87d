"""What a run under chaos is judged by: plans, goodput, work done again, recoveries, memory."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tardygrad.callbacks import Callback, CallbackList
from tardygrad.chaos import goodput, memory, processes
from tardygrad.chaos.goodput import Interval
from tardygrad.chaos.leaks import leaks
from tardygrad.chaos.memory import Slope
from tardygrad.chaos.outcome import LIMITS, Outcome
from tardygrad.chaos.plan import KINDS, VICTIMS, make_plan
from tardygrad.chaos.recovery import QUESTIONS, Fault, Recoveries, quantile, table
from tardygrad.chaos.redone import by_reason, redone
from tardygrad.chaos.tails import MetricsTail, TraceTail
from tardygrad.protocol import trace
from tardygrad.protocol.trace import Record

# --- plans ------------------------------------------------------------------------------------


@given(
    kinds=st.lists(st.sampled_from(sorted(KINDS)), min_size=1, unique=True),
    every_s=st.floats(0.1, 10.0),
    count=st.integers(0, 50),
    seed=st.integers(0, 2**32),
)
def test_a_plan(kinds: list[str], every_s: float, count: int, seed: int) -> None:
    plan = make_plan(kinds, every_s, count * every_s, seed, lease_s=5.0)
    assert len(plan) == count
    assert plan == make_plan(kinds[::-1], every_s, count * every_s, seed, lease_s=5.0)
    for number, planned in enumerate(plan):
        assert planned.number == number
        assert number * every_s <= planned.at_s <= (number + 1) * every_s
        assert planned.kind in kinds
        assert 0 <= planned.pick < 1
        assert (planned.length_s > 0) == (planned.kind in ("stop", "slow", "disk"))
    # Every kind has its turn before any comes again.
    for start in range(0, count - len(kinds) + 1, len(kinds)):
        deck = [planned.kind for planned in plan[start : start + len(kinds)]]
        assert sorted(deck) == sorted(kinds)


def test_every_kind_is_known_everywhere() -> None:
    assert set(KINDS) == set(QUESTIONS) == {*VICTIMS, "disk"}


# --- goodput ----------------------------------------------------------------------------------

moments = st.floats(0.0, 100.0)
intervals = st.lists(st.tuples(moments, moments).map(lambda pair: tuple(sorted(pair))), max_size=4)
workers = st.lists(st.tuples(intervals, intervals), min_size=1, max_size=5)


@given(workers=workers, window=st.tuples(moments, moments), cores=st.integers(1, 6))
def test_capacity(
    workers: list[tuple[list[Interval], list[Interval]]], window: Interval, cores: int
) -> None:
    start, stop = sorted(window)
    alive = [there for there, _ in workers]
    held = [taken for _, taken in workers]
    found = goodput.capacity_s(alive, held, (start, stop), cores)
    assert -1e-9 <= found <= stop - start + 1e-9
    # A window is the sum of its parts.
    middle = (start + stop) / 2
    parts = [
        goodput.capacity_s(alive, held, part, cores) for part in ((start, middle), (middle, stop))
    ]
    assert sum(parts) == pytest.approx(found, abs=1e-6)
    # Whom nothing disturbs can do no less.
    assert goodput.capacity_s(alive, [[] for _ in held], (start, stop), cores) >= found - 1e-9
    # With a core for each it is the mean of the times.
    many = goodput.capacity_s(alive, held, (start, stop), cores=len(workers))
    each = [
        goodput.capacity_s([there], [taken], (start, stop), 1)
        for there, taken in zip(alive, held, strict=True)
    ]
    assert many == pytest.approx(sum(each) / len(workers), abs=1e-6)


@given(st.integers(1, 8), st.integers(1, 8))
def test_capacity_without_disturbance_is_time(workers: int, cores: int) -> None:
    alive: list[list[Interval]] = [[(0.0, 9.0)] for _ in range(workers)]
    assert goodput.capacity_s(alive, [[] for _ in alive], (2.0, 7.0), cores) == pytest.approx(5.0)


def test_the_others_have_the_cores_of_the_dead() -> None:
    assert [goodput.capacity(n, 4, 2) for n in range(5)] == [0, 0.5, 1, 1, 1]


def member(at_s: float, worker: int, state: str) -> dict[str, Any]:
    return {"event": "member", "kind": "worker", "id": worker, "state": state, "time_s": at_s}


def test_times_alive() -> None:
    events = [
        {"event": "run_start", "time_s": 0.0},
        {**member(0.5, 0, "ready"), "kind": "server"},
        member(1.0, 0, "ready"),
        member(1.5, 1, "ready"),
        member(4.1, 0, "died"),
        member(5.0, 0, "ready"),
        member(7.0, 1, "suspected"),
        member(7.0, 1, "died"),
    ]
    # The killing of worker 0 comes before the run hears of it.
    found = goodput.times_alive(events, [(4.0, 0)], 2, end_s=10.0)
    assert found == [[(1.0, 4.0), (5.0, 10.0)], [(1.5, 7.0)]]


def progress(at_s: float, samples: int) -> dict[str, Any]:
    return {"event": "progress", "time_s": at_s, "samples": samples}


def test_booked_between_and_speed() -> None:
    events = [progress(0.5 * n, 10 * max(n - 2, 0)) for n in range(10)]
    assert goodput.booked_between(events, (1.2, 3.9)) == (40, (1.5, 3.5))
    assert goodput.booked_between(events, (1.2, 1.9)) is None
    events += [progress(5.0 + 0.5 * n, 70) for n in range(5)]
    assert goodput.speed(events) == pytest.approx(20.0)
    assert goodput.speed(events[:2]) is None


# --- work that was done again -----------------------------------------------------------------


def pushed(kind: int, first: int, stop: int, *, worker: int, session: int, fence: int) -> Record:
    return Record(
        kind, 0, 0, worker=worker, session=session, seq=first + 1, fence=fence, first=first,
        stop=stop, samples=stop - first,
    )  # fmt: skip


def test_what_two_shards_tell_of_a_death() -> None:
    a = [pushed(trace.APPLIED, n, n + 1, worker=0, session=1, fence=1) for n in range(4)]
    again = [pushed(trace.APPLIED, n, n + 1, worker=1, session=2, fence=2) for n in range(2, 6)]
    seen = [pushed(trace.DUPLICATE, n, n + 1, worker=1, session=2, fence=2) for n in (2, 3)]
    # Shard 1 lacks what shard 0 has of batches 2 and 3; worker 1 computes them again.
    computed, items = redone([[*a, *seen, *again[2:]], [*a[:2], *again]])
    assert computed == 8
    assert [(i.first, i.stop, i.times) for i in items] == [(2, 4, 1)]
    assert by_reason(items) == {"worker 0 was lost before every shard had it": 2}


def test_what_a_restored_shard_lacks() -> None:
    snapshot, back = Record(trace.SNAPSHOT, 0, 2, seq=7), Record(trace.RESTORED, 1, 2, seq=7)
    a = [pushed(trace.APPLIED, n, n + 1, worker=0, session=1, fence=1) for n in range(4)]
    again = [pushed(trace.APPLIED, n, n + 1, worker=0, session=2, fence=2) for n in range(2, 4)]
    seen = [pushed(trace.DUPLICATE, n, n + 1, worker=0, session=2, fence=2) for n in range(2, 4)]
    computed, items = redone([[*a, *seen], [*a[:2], snapshot, *a[2:], back, *again]])
    assert computed == 6
    assert by_reason(items) == {"shard 1 went back to a snapshot that lacked it": 2}


def test_what_was_refused() -> None:
    late = pushed(trace.REFUSED, 0, 1, worker=0, session=1, fence=1)
    taken = pushed(trace.APPLIED, 0, 1, worker=1, session=2, fence=2)
    _, items = redone([[late, taken], [taken]])
    assert by_reason(items) == {"worker 0's lease or session had ended when it came": 1}


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.integers(1, 3))
def test_what_is_computed_once_is_not_redone(lengths: list[int], shards: int) -> None:
    records, first = [], 0
    for length in lengths:
        records.append(pushed(trace.APPLIED, first, first + length, worker=0, session=1, fence=1))
        first += length
    assert redone([records] * shards) == (first, [])


@given(counts=st.lists(st.integers(1, 4), min_size=1, max_size=20), seed=st.integers(0, 1000))
def test_every_computation_but_the_last_is_redone(counts: list[int], seed: int) -> None:
    records = [
        pushed(
            trace.APPLIED if fence == count - 1 else trace.REFUSED,
            batch,
            batch + 1,
            worker=fence % 2,
            session=fence,
            fence=fence,
        )
        for batch, count in enumerate(counts)
        for fence in range(count)
    ]
    random.Random(seed).shuffle(records)
    computed, items = redone([records])
    assert computed == sum(counts)
    assert sum(by_reason(items).values()) == sum(counts) - len(counts)


# --- recoveries -------------------------------------------------------------------------------


def booked(worker: int, session: int, fence: int = 1) -> Record:
    return Record(trace.APPLIED, 0, 0, worker=worker, session=session, fence=fence)


def answers(recoveries: Recoveries) -> dict[str, float]:
    return {r.question: pytest.approx(r.seconds) for r in recoveries.found}


def test_a_killed_worker() -> None:
    watch = Recoveries(2)
    watch.record(0, booked(0, 5), 9.0)
    watch.began(Fault(0, "kill", "worker-0", 10.0, 10.0))
    watch.record(0, booked(0, 5), 10.01)  # it was on its way when its worker died
    watch.record(0, booked(1, 6), 10.02)
    assert answers(watch) == {}
    watch.record(1, booked(1, 6), 10.05)
    watch.record(0, booked(0, 7), 11.0)
    assert answers(watch) == {"others": 0.05, "replacement": 1.0}
    assert list(watch.open()) == []


def test_a_stopped_worker_that_goes_on() -> None:
    watch = Recoveries(1)
    watch.record(0, booked(0, 5), 9.0)
    fault = Fault(0, "stop", "worker-0", 10.0, 14.0)
    watch.began(fault)
    watch.record(0, booked(0, 5), 10.001)
    watch.record(0, booked(1, 6), 10.1)
    watch.record(0, booked(0, 5), 14.2)
    assert answers(watch) == {"others": 0.1, "replacement": 0.2}


def test_servers_leases_and_checkpoints() -> None:
    watch = Recoveries(2)
    watch.record(0, booked(0, 5, fence=3), 9.0)
    watch.began(Fault(0, "server", "server-1", 10.0, 10.0))
    watch.began(Fault(1, "scheduler", "scheduler-0", 10.0, 10.0))
    watch.began(Fault(2, "disk", "checkpoints", 10.0, 12.0))
    watch.record(0, booked(0, 5, fence=3), 10.5)
    watch.event({"event": "checkpoint", "time_s": 11.0})
    assert [q for _, q in watch.open()] == ["shard", "leases", "checkpoint"]
    watch.record(1, booked(0, 6, fence=4), 10.7)
    watch.event({"event": "checkpoint", "time_s": 12.5})
    assert answers(watch) == {"shard": 0.7, "leases": 0.7, "checkpoint": 0.5}
    assert list(watch.open()) == []


def test_what_was_never_answered() -> None:
    watch = Recoveries(1)
    fault = Fault(0, "server", "server-0", 10.0, 10.0)
    watch.began(fault)
    assert list(watch.open(before_s=9.0)) == []
    assert list(watch.open(before_s=11.0)) == [(fault, "shard")]


@given(st.lists(st.floats(0.0, 1e3), min_size=1), st.floats(0.001, 1.0))
def test_quantiles(values: list[float], part: float) -> None:
    found = quantile(values, part)
    assert found in values
    assert sum(value <= found for value in values) >= part * len(values) - 1e-9
    assert sum(value < found for value in values) < part * len(values)


def test_the_table() -> None:
    watch = Recoveries(1)
    for number in range(3):
        watch.began(Fault(number, "slow", "worker-0", 10.0 * number, 10.0 * number + 1))
        watch.record(0, booked(1, 1), 10.0 * number + 0.25 * (number + 1))
    [row] = table(watch.found)
    assert (row["kind"], row["question"], row["count"]) == ("slow", "others", 3)
    assert (row["p50_s"], row["p99_s"], row["max_s"]) == (0.5, 0.75, 0.75)


# --- memory -----------------------------------------------------------------------------------


@given(slope=st.floats(-5.0, 5.0), size=st.floats(100.0, 1000.0))
def test_the_slope_of_a_line(slope: float, size: float) -> None:
    points = [(float(t), int((size + slope * t / 60) * 2**20)) for t in range(0, 200, 5)]
    # What a process takes in its first minute is no growth.
    points[:6] = [(at, 0) for at, _ in points[:6]]
    [found] = memory.slopes({("main", 1): points, ("worker-0", 2): points[:20]})
    assert found.name == "main"
    assert found.mebibytes_per_minute == pytest.approx(slope, abs=0.01)


# --- what a run writes ------------------------------------------------------------------------


def test_a_trace_that_grows_and_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "shard-000.trace"
    tail = TraceTail(path, 0, 2)
    assert tail.new() == []
    encoder = trace.Encoder(2)
    records = [Record(trace.APPLIED, 0, n, reads=((0, n), (0, n))) for n in range(4)]
    path.write_bytes(trace.file_header(0, 2) + b"".join(map(encoder.encode, records[:2])))
    assert tail.new() == records[:2]
    with path.open("ab") as file:
        file.write(encoder.encode(records[2]) + b"torn")
    assert tail.new() == records[2:3]
    os.truncate(path, path.stat().st_size - 4)
    with path.open("ab") as file:
        file.write(encoder.encode(records[3]))
    assert tail.new() == records[3:]
    assert tail.new() == []


def test_metrics_that_grow(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    assert tail.new() == []
    path.write_text('{"event":"a"}\n{"eve')
    assert tail.new() == [{"event": "a"}]
    with path.open("a") as file:
        file.write('nt":"b"}\n')
    assert tail.new() == [{"event": "b"}]


def test_this_process_is_seen() -> None:
    found = processes.look(os.getpid())
    assert found is not None
    assert processes.lives(found)
    assert not processes.lives(found._replace(started="0"))
    assert (processes.memory_bytes(found) or 0) > 0
    assert processes.look(2**22 + 1) is None


# --- the verdict ------------------------------------------------------------------------------


def outcome(**changes: Any) -> Outcome:
    recoveries = [
        {"kind": kind, "question": question, "count": 1, "p50_s": 0.1, "p99_s": 0.2, "max_s": 0.3}
        for kind, questions in QUESTIONS.items()
        for question in questions
    ]
    good: dict[str, Any] = {
        "run": Path("runs/a"), "seed": 0, "planned_s": 60.0, "chaos_s": 60.0, "outcome": "done",
        "reason": "", "faults": [Fault(0, "kill", "worker-0", 1.0, 1.0)], "skipped": 0,
        "missing": {}, "exact": True, "verdict": "exact", "speed": 100.0, "goodput": 0.95,
        "of_undisturbed": 0.9, "metrics": {"accuracy": 0.98, "loss": 0.1},
        "undisturbed": {"accuracy": 0.981, "loss": 0.1}, "computed": 10, "redone": [],
        "recoveries": recoveries, "unanswered": [], "leaks": [], "processes": 9,
        "memory": [Slope("main", 1, 200.0, 100.0, 0.5)], "paused_s": 0.0,
    }  # fmt: skip
    return Outcome(**{**good, **changes})


KEPT = {
    "goodput": 0.95, "accuracy": 0.2, "others": 0.3, "replacement": 0.3, "shard": 0.3,
    "scheduler": 0.3, "memory": 0.5,
}  # fmt: skip
MISSED = {name: 0.96 if name == "goodput" else limit * 0.4 for name, limit in KEPT.items()}


@pytest.mark.parametrize("name", LIMITS)
def test_limits(name: str) -> None:
    assert outcome().failures({name: KEPT[name]}) == []
    [failure] = outcome().failures({name: MISSED[name]})
    assert "demanded" in failure


@pytest.mark.parametrize(
    "changes",
    [
        {"outcome": "failed"},
        {"exact": False},
        {"leaks": ["process 7"]},
        {"unanswered": ["kill worker-0"]},
        {"faults": []},
    ],
)
def test_what_is_always_demanded(changes: dict[str, Any]) -> None:
    assert outcome().failures({}) == []
    assert len(outcome(**changes).failures({})) == 1


def test_what_is_unknown_is_missed() -> None:
    assert len(outcome(goodput=None).failures({"goodput": 0.0})) == 1
    assert len(outcome(undisturbed={}).failures({"accuracy": 9.0})) == 1


def test_how_an_outcome_reads() -> None:
    text = "\n".join(outcome(missing={"scheduler": "no process"}).lines())
    assert "kind 'scheduler' is not available: no process" in text
    assert "accuracy        98.00 %, undisturbed 98.10 %: -0.10 points" in text
    assert "95.0% of what the live workers could have done" in text


def test_leaks_are_found(tmp_path: Path) -> None:
    run, temporary = tmp_path / "run", tmp_path / "temporary"
    (run / "checkpoints" / "000000000001").mkdir(parents=True)
    (temporary / "below").mkdir(parents=True)
    main = 2**22 + 1
    assert leaks(tmp_path / "empty", main, set(), "no such mark", tmp_path / "empty") == []
    (temporary / "below" / "a.txt").touch()
    (run / ".run.json.0123abcd.tmp").touch()
    found = leaks(run, main, set(), "no such mark", temporary)
    assert [line.rpartition("/")[2] for line in found] == [
        "a.txt", ".run.json.0123abcd.tmp", "000000000001",
    ]  # fmt: skip


def test_callbacks_put_events_into_the_record() -> None:
    callback, told = Callback(), []
    with pytest.raises(ValueError, match="before the run"):
        callback.emit("note")
    CallbackList([callback]).begin(lambda event, **fields: told.append((event, fields)))
    callback.emit("note", text="here")
    assert told == [("note", {"text": "here"})]
