"""The benchmarks' harness: pairs, ratios, selection, what is written, what happens on failure."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tardygrad.codecs import names
from tardygrad.data.fragments import FragmentPlan, Permutations

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks are no part of the package

from benchmarks import __main__ as command  # noqa: E402
from benchmarks import (  # noqa: E402
    fidelity,
    figures,
    harness,
    memory,
    ours,
    plain,
    startup,
    tables,
    uneven,
)
from benchmarks.crossing import EVERY, crossing, to_measure  # noqa: E402
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
    assert found["rounds_ours"] == [200.0, 20.0, 20.0]
    assert found["rounds_peer"] == [100.0, 10.0, 20.0]


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
    assert (found["rounds_ours"], found["rounds_peer"]) == ([3.0, 1.0, 2.0], None)


def test_a_difference_is_judged_in_the_unit_itself() -> None:
    made = figure([98.5, 99.0, 98.9], [98.9, 99.1, 98.8], judged="difference", at_least=-0.3)
    found = document(dataclasses.replace(made, aim=0.0))
    assert found["value"] == pytest.approx(-0.1)
    assert found["spread"] == pytest.approx([-0.4, 0.1])
    assert found["ratio"] == pytest.approx(99.0 / 99.1)
    assert verdict(found) == "ok"


def test_the_worst_round_is_judged_and_shown_whole() -> None:
    made = figure([98.5, 99.0, 98.9], [98.9, 99.1, 98.8], judged="difference", worst=True)
    found = document(dataclasses.replace(made, at_least=-0.3, aim=0.0))
    assert (found["ours"], found["peer"]) == (98.5, 98.9)
    assert found["value"] == pytest.approx(-0.4)
    assert verdict(found) == "below"
    assert document(figure([2.0, 1.0, 3.0], worst=True))["ours"] == 1.0
    found = document(figure([2.0, 1.0, 3.0], worst=True, smaller_is_better=True))
    assert found["ours"] == 3.0


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
        ({"at_least": 98.5, "aim": None, "worst": True}, 98.49, "below"),
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
    path = tmp_path / "new" / "latest.jsonl"
    names = ["name", "other"]
    harness.save(document(figure([1.0], note=lambda: "late", name="other")), names, path)
    harness.save(document(figure([1.0], [2.0])), names, path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["figure"] for line in lines] == names
    assert all(line.keys() >= KEYS and "torch" in line["machine"] for line in lines)
    assert all(re.fullmatch(r"20\d\d-\d\d-\d\d", line["date"]) for line in lines)
    assert lines[1]["note"] == "late"
    with pytest.raises(ValueError, match="JSON"):
        harness.save(document(figure([math.inf])), names, path)
    assert harness.load(path) == lines


def test_a_figure_takes_the_place_of_its_last_measurement_only(tmp_path: Path) -> None:
    path = tmp_path / "latest.jsonl"
    path.write_text('{"figure": "b", "ours": 0}\n')  # as older versions wrote it
    for name, value in (("a", 1.0), ("b", 2.0), ("gone", 3.0)):
        harness.save(document(figure([value], name=name)), ["a", "b", "gone"], path)
    kept = harness.load(path)[1]
    kept |= {"machine": "another", "date": "2020-01-01"}
    path.write_text("".join(json.dumps(d) + "\n" for d in [*harness.load(path), kept]))
    harness.save(document(figure([4.0], name="a")), ["b", "a"], path)
    first, second = harness.load(path)
    assert first == kept
    assert (second["figure"], second["ours"]) == ("a", 4.0)


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
    assert "2x to 2x" in shown.out
    assert command.main(["good"]) == 0
    assert command.main(["--markdown"]) == 0
    assert "| good | samples/s | 4 | 2 | 2x | 2x to 2x | 1x | 2x |" in capsys.readouterr().out
    assert command.main(["bad", "--markdown"]) == 1
    assert "make bench" in capsys.readouterr().err


def test_an_unknown_figure_is_a_mistake_of_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["no-such-figure"]) == 2
    assert "mlp, 1 worker" in capsys.readouterr().err


def test_numbers_are_short() -> None:
    shown = [tables.number(n) for n in (None, 0.987654, 98.46, 12.0, 1234.5)]
    assert shown == ["", "0.9877", "98.46", "12", "1,234"]


def test_a_line_says_what_kind_of_number_is_judged() -> None:
    more = figure([12.0, 8.0], [10.0, 10.0], judged="difference", smaller_is_better=True)
    assert tables.cells(document(dataclasses.replace(more, aim=None)))[2:] == [
        "10", "10", "0", "-2 to +2", "≤ +1", "",
    ]  # fmt: skip
    alone = figure([3.0, 4.0], at_least=10.0, aim=5.0, smaller_is_better=True)
    assert tables.cells(document(alone))[2:] == ["3.5", "", "", "3 to 4", "≤ 10", "≤ 5"]


def test_markdown_says_where_and_when() -> None:
    lines = [
        {**document(figure([2.0], [1.0], name=name)), "machine": "a toaster", "date": date}
        for name, date in (("a", "2026-01-01"), ("b", "2026-01-02"), ("c", "2026-01-02"))
    ]
    heading, rule, *rows, empty, first, second = tables.markdown(lines).splitlines()
    assert heading.startswith("| figure |")
    assert {line.count("|") for line in (heading, rule, *rows)} == {len(tables.HEADINGS) + 1}
    assert (len(rows), empty) == (3, "")
    assert first == "Measured on 2026-01-01: a toaster."
    assert second == "Measured on 2026-01-02: a toaster."


def test_every_figure_is_called_once_and_asks_for_something_possible() -> None:
    listed = figures.figures()
    assert len({f.name for f in listed}) == len(listed)
    for made in listed:
        if made.at_least is not None and made.aim is not None:
            judged = "ours" if made.peer is None else made.judged
            upper = judged != "ratio" and made.smaller_is_better
            assert (made.aim <= made.at_least) if upper else (made.aim >= made.at_least)


def test_every_codec_has_a_figure_beside_no_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    def side(module: str, name: str) -> dict[str, float]:
        assert module == "codecs"
        return {"value": 100.0 if name == "fp32" else 25.0, "accuracy": 97.0}

    monkeypatch.setattr(figures, "run_side", side)
    monkeypatch.setattr(figures, "_codec", functools.cache(figures._codec.__wrapped__))
    found = [document(f) for f in select(["codec "], figures.figures())]
    assert [d["figure"].split()[1].rstrip(",") for d in found] == sorted({*names()} - {"fp32"})
    assert {(d["ours"], d["peer"], d["value"]) for d in found} == {(25.0, 100.0, 4.0)}
    assert "97.00 % test accuracy after 2 epochs" in found[0]["note"]


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


def test_no_model_is_trained_twice_for_two_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def side(module: str, *arguments: object) -> dict[str, Any]:
        asked.append((module, *arguments))
        return {"value": 99.0 if module == "ours" else 98.0, "rss_mib": 2.0, "pss_mib": 1.0}

    monkeypatch.setattr(figures, "run_side", side)
    monkeypatch.setattr(figures, "_accuracy", functools.cache(figures._accuracy.__wrapped__))
    monkeypatch.setattr(figures, "_sizes", functools.cache(figures._sizes.__wrapped__))
    accuracy = select(["mnist-async"], figures.figures())
    least, difference = [document(f) for f in accuracy]
    assert (least["value"], difference["value"]) == (99.0, 1.0)
    assert sorted(asked) == sorted((s, "accuracy", n) for s in ("ours", "plain") for n in range(3))
    asked.clear()
    assert [document(f)["ours"] for f in select(["memory"], figures.figures())] == [2.0, 1.0]
    assert len(asked) == 2 * 5


def test_the_crossing_lies_between_two_measurements_and_ends_the_training() -> None:
    measured = iter([(1.0, 0.6), (2.0, 0.5), (4.0, 0.9), (5.0, 1.0)])
    assert crossing(measured, 0.7) == 3.0
    assert next(measured) == (5.0, 1.0)
    assert crossing([(2.0, 0.5)], 0.25) == 1.0
    assert crossing([(2.0, 0.5)], 0.5) == 2.0
    assert crossing([(1.0, 0.6), (2.0, 0.5)], 0.7) == math.inf


def test_no_side_is_measured_more_often_than_the_other() -> None:
    counts = (0, EVERY - 1, EVERY, EVERY + 1, 2 * EVERY - 1, 3 * EVERY + 5, 4 * EVERY - 1)
    events = [{"event": "checkpoint", "samples": n} for n in counts]
    taken = to_measure([{"event": "epoch", "samples": EVERY}, *events])
    assert [e["samples"] for e in taken] == [EVERY, 3 * EVERY + 5]


def test_the_serial_loop_trains_the_batches_that_workers_lease() -> None:
    plan = FragmentPlan(samples=300, batch_size=64, fragment_batches=2, seed=7)
    order = Permutations(plan)
    leased = [
        order.indices(epoch, fragment, batch).tolist()
        for epoch in range(2)
        for fragment in range(plan.fragments_per_epoch)
        for batch in range(plan.batches(fragment))
    ]
    assert [batch.tolist() for batch in plain._batches(300, 7, 2)] == leased


def test_the_first_update_counts_from_the_command() -> None:
    start = {"event": "run_start", "time_s": 0.5}
    end = {"event": "run_end", "time_s": 9.0, "first_update_s": 4.5}
    # Its last word came 9.25 s after the command: the run's clock started 0.25 s late.
    assert startup.first_update_s([start, end], written_s=9.25) == 4.75
    with pytest.raises(RuntimeError, match="run_start, expected run_end"):
        startup.first_update_s([start], written_s=1.0)


def test_the_sum_of_speeds() -> None:
    assert uneven.sum_of_speeds(0) == pytest.approx(64 * (50 + 50 + 50 + 10))


def test_fidelity_leaves_the_beginning_and_the_end_out(tmp_path: Path) -> None:
    told = [(0.5, 0), (1.0, 300), (1.5, 800), (2.0, 1300), (5.0, 1400), (5.5, 1400)]
    events: list[dict[str, Any]] = [
        {"event": "progress", "time_s": time_s, "samples": samples} for time_s, samples in told
    ]
    events.append({"event": "run_end", "staleness_histogram": {"0": {"1": 3, "3": 1}}})
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    assert fidelity.told(tmp_path) == (1000.0, 1.5)
    log.write_text(json.dumps(events[1]) + "\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="too short"):
        fidelity.told(tmp_path)


def test_fidelity_shows_medians_and_how_far_they_are_apart() -> None:
    pairs = [(fidelity.Told(r, 1.0), fidelity.Told(s, 2.0)) for r, s in ((10, 11), (10, 9), (5, 6))]
    assert fidelity.row("ssp", pairs) == "| `ssp` | 10 | 9 | +10 % (-10 to +20) | 1.00 | 2.00 |"
