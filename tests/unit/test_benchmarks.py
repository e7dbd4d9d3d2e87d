"""The benchmarks' harness: pairs, ratios, selection, what is written, what happens on failure."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks are no part of the package

from benchmarks import __main__ as command  # noqa: E402
from benchmarks import figures, harness, memory, ours, startup, uneven  # noqa: E402
from benchmarks.harness import Figure, SideFailed, measure, select, verdict  # noqa: E402

KEYS = {"figure", "unit", "ours", "peer", "ratio", "spread", "at_least", "aim"}
POSITIVE = st.floats(min_value=0.01, max_value=1e9)


def reading(values: list[float]) -> Callable[[int], float]:
    return lambda number: values[number]


def figure(ours: list[float], peer: list[float] | None = None, **changes: Any) -> Figure:
    made = Figure(
        "name", "samples/s", reading(ours), None if peer is None else reading(peer), 1.0, 2.0,
        rounds=len(ours),
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def document(made: Figure) -> dict[str, Any]:
    return measure(made, lambda text: None).document()


def test_sides_alternate_and_so_does_who_begins() -> None:
    order: list[str] = []

    def side(name: str) -> Callable[[int], float]:
        def run(number: int) -> float:
            order.append(f"{name}{number}")
            return 1.0

        return run

    told: list[str] = []
    measure(Figure("f", "s", side("o"), side("p"), None, None, rounds=3), told.append)
    assert order == ["o0", "p0", "p1", "o1", "o2", "p2"]
    assert told[2] == "f: round 2 of 3, peer"


def test_the_ratio_is_formed_pair_by_pair() -> None:
    # The machine slows down by ten, on both sides: medians of sides would give 20 / 20.
    found = document(figure([200.0, 20.0, 20.0], [100.0, 10.0, 20.0]))
    assert (found["ours"], found["peer"]) == (20.0, 20.0)
    assert found["ratio"] == 2.0
    assert found["spread"] == [1.0, 2.0]
    assert found["rounds"] == 3


def test_where_smaller_is_better_the_ratio_still_grows_with_ours() -> None:
    assert document(figure([2.0], [6.0], smaller_is_better=True))["ratio"] == 3.0


@given(st.lists(st.tuples(POSITIVE, POSITIVE), min_size=1, max_size=9))
def test_median_within_spread(pairs: list[tuple[float, float]]) -> None:
    found = document(figure([o for o, _ in pairs], [p for _, p in pairs]))
    low, high = found["spread"]
    assert low <= found["ratio"] <= high
    assert low == min(o / p for o, p in pairs)


def test_without_a_peer_the_spread_is_of_the_values() -> None:
    found = document(figure([3.0, 1.0, 2.0]))
    assert (found["ours"], found["peer"], found["ratio"]) == (2.0, None, None)
    assert found["spread"] == [1.0, 3.0]


@pytest.mark.parametrize(
    ("changes", "value", "expected"),
    [
        ({}, 2.0, "aim"),
        ({}, 1.99, "ok"),
        ({}, 1.0, "ok"),
        ({}, 0.99, "below"),
        ({"aim": None}, 5.0, "ok"),
        ({"at_least": None, "aim": None}, 0.0, ""),
        ({"at_least": 10.0, "aim": 5.0, "smaller_is_better": True}, 5.0, "aim"),
        ({"at_least": 10.0, "aim": 5.0, "smaller_is_better": True}, 10.0, "ok"),
        ({"at_least": 10.0, "aim": 5.0, "smaller_is_better": True}, 10.1, "below"),
    ],
)
def test_verdict_on_values(changes: dict[str, Any], value: float, expected: str) -> None:
    assert verdict(document(figure([value], **changes))) == expected


@pytest.mark.parametrize("smaller_is_better", [False, True])
def test_verdict_on_ratios_wants_them_large(smaller_is_better: bool) -> None:
    pair = ([1.0], [3.0]) if smaller_is_better else ([3.0], [1.0])
    assert verdict(document(figure(*pair, smaller_is_better=smaller_is_better))) == "aim"
    pair = pair[1], pair[0]
    assert verdict(document(figure(*pair, smaller_is_better=smaller_is_better))) == "below"


def test_figures_are_selected_by_any_word() -> None:
    available = [figure([1.0], name=name) for name in ("mlp, vs plain", "mlp, vs ddp", "cnn")]
    assert [f.name for f in select(["cnn", "ddp"], available)] == ["mlp, vs ddp", "cnn"]
    assert [f.name for f in select(["CNN,ddp"], available)] == ["mlp, vs ddp", "cnn"]
    assert select([], available) == select([""], available) == available
    assert select(["rnn"], available) == []


def test_one_valid_object_a_line(tmp_path: Path) -> None:
    documents = [document(figure([1.0], [2.0])), document(figure([1.0], note=lambda: "late"))]
    path = harness.save(documents, tmp_path / "new" / "latest.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 2
    assert all(line.keys() >= KEYS and "torch" in line["machine"] for line in lines)
    assert lines[1]["note"] == "late"
    with pytest.raises(ValueError, match="JSON"):
        harness.save([document(figure([math.inf]))], tmp_path / "x.jsonl")


def run(code: str, timeout_s: float = 10.0) -> dict[str, Any]:
    return harness.run_command([sys.executable, "-S", "-c", code], timeout_s)


def test_a_side_says_its_value_in_the_last_line_and_computes_in_one_thread() -> None:
    found = run("import os\nprint('loading')\nprint('{\"n\": %s}' % os.environ['OMP_NUM_THREADS'])")
    assert found == {"n": 1}


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise SystemExit('no such thing')", "status 1:\nno such thing"),
        ("print('done')", "no JSON object, but: 'done"),
        ("", "no JSON object"),
    ],
)
def test_a_side_that_fails_says_why(code: str, message: str) -> None:
    with pytest.raises(SideFailed, match=message):
        run(code)


def test_a_side_that_hangs_is_ended_with_its_children() -> None:
    began = time.monotonic()
    with pytest.raises(SideFailed, match="longer than"):
        run("import os, time\nos.fork()\ntime.sleep(60)", timeout_s=0.3)
    # The child holds the other end of the pipe: had it been left alive, this had taken a minute.
    assert time.monotonic() - began < 30


def test_a_figure_that_fails_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(number: int) -> float:
        raise SideFailed("no memory")

    bad = Figure("bad", "s", fail, None, None, None)
    listed = [bad, figure([4.0], [2.0], name="good")]
    monkeypatch.setattr(command, "figures", lambda: listed)
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    assert command.main([]) == 1
    [line] = (tmp_path / "latest.jsonl").read_text().splitlines()
    assert json.loads(line)["figure"] == "good"
    shown = capsys.readouterr()
    assert "bad: no memory" in shown.err
    assert "aim" in shown.out
    assert command.main(["good"]) == 0


def test_an_unknown_figure_is_a_mistake_of_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["no-such-figure"]) == 2
    assert "mlp, 1 worker" in capsys.readouterr().err


def test_numbers_are_short() -> None:
    shown = [command.number(n) for n in (None, 0.98765, 12.0, 1234.5)]
    assert shown == ["", "0.988", "12", "1,234"]


def test_every_figure_is_called_once_and_asks_for_something_possible() -> None:
    listed = figures.figures()
    assert len({f.name for f in listed}) == len(listed)
    for made in listed:
        if made.at_least is not None and made.aim is not None:
            upper = made.peer is None and made.smaller_is_better
            assert (made.aim <= made.at_least) if upper else (made.aim >= made.at_least)


def test_the_best_rate_must_always_arrive() -> None:
    times = {0.1: [9.0, 9.0, 9.0], 0.2: [1.0, 1.0, math.inf], 0.3: [1.0, 8.0, 20.0]}
    assert figures.best_rate(times) == 0.3
    with pytest.raises(SideFailed, match="no learning rate"):
        figures.best_rate({0.1: [math.inf]})


def test_the_window_leaves_the_warm_up_out_and_stops_the_run() -> None:
    window = ours.Window(2.0)
    # Nothing until 4.0, then slow for a second, then 100 samples a second.
    for at, samples in ((3.5, 0), (4.0, 10), (4.5, 12), (5.0, 20), (5.5, 70), (6.5, 170)):
        window.on_step_end(samples, {"time_s": at})
        assert not window.stop_training
    with pytest.raises(RuntimeError, match="ended before 3 s"):
        window.speed()
    window.on_step_end(220, {"time_s": 7.0})
    assert window.stop_training
    assert window.speed() == 100.0


def test_memory_is_read_in_mib_and_workers_are_found_below_the_root() -> None:
    text = "00400000-7fff [rollup]\nRss:  2048 kB\nPss:  1024 kB\nPss_Anon:  512 kB\n"
    assert memory.parse(text) == {"rss_mib": 2.0, "pss_mib": 1.0}
    parents = {2: 1, 3: 2, 4: 3, 5: 1, 6: 5}
    assert memory.descendants(2, parents) == {3, 4}
    if sys.platform == "linux":
        assert memory.of_process(os.getpid())["rss_mib"] > 1
        assert memory.largest_worker(os.getpid()) is None


def test_the_last_stretch_of_a_run_says_when_its_first_update_was() -> None:
    ends = [{"event": "run_end", "first_update_s": s} for s in (9.0, 4.5)]
    lines = [json.dumps(e) for e in ({"event": "run_start"}, *ends)]
    assert startup.first_update_s("\n".join(lines)) == 4.5


def test_the_sum_of_speeds() -> None:
    assert uneven.sum_of_speeds(0) == pytest.approx(64 * (50 + 50 + 50 + 10))
