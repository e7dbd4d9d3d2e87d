"""What a person sees, rendered to text."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from tardygrad.metrics import PlainView, QuietView, choose, wording
from tardygrad.metrics.live import LiveView

START: dict[str, Any] = {
    "event": "run_start",
    "time_s": 0.0,
    "run": "r1",
    "name": "mnist-async",
    "incarnation": 0,
    "workers": 3,
    "servers": 2,
    "epochs": 5,
    "samples_per_epoch": 60000,
    "batch_size": 64,
    "method": "async_sgd",
    "engine": "processes",
    "seed": 7,
}
END: dict[str, Any] = {
    "event": "run_end",
    "time_s": 60.0,
    "outcome": "done",
    "reason": "",
    "samples": 300000,
    "seconds": 58.0,
    "samples_per_s": 5172.4,
    "staleness": {"mean": 2.01, "p50": 2, "p99": 5, "max": 9},
    "ledger": {"exact": True, "applied": 300000, "dropped": 0, "missing": 0, "twice": 0},
    "final": {"loss": 0.0312, "accuracy": 0.9871},
}
DIED: dict[str, Any] = {
    "event": "member",
    "time_s": 12.0,
    "kind": "worker",
    "id": 1,
    "incarnation": 0,
    "state": "died",
    "reason": "killed by SIGKILL",
}
EVALUATED: dict[str, Any] = {
    "event": "evaluate",
    "time_s": 13.0,
    "epoch": 1,
    "samples": 60000,
    "loss": 0.0831,
    "accuracy": 0.9741,
    "at_s": 12.5,
    "final": False,
}


def progress(time_s: float, samples: int = 84000) -> dict[str, Any]:
    staleness = {"mean": 2.02, "p50": 2, "p99": 5, "max": 9}
    rows = [
        {
            "worker": worker,
            "state": "training",
            "samples": samples // 3,
            "samples_per_s": 1724.0 + worker,
            "staleness": staleness,
            "computing_s": 8.0,
            "waiting_s": 1.5,
            "communicating_s": 0.5,
            "restarts": 0,
        }
        for worker in range(3)
    ]
    return {
        "event": "progress",
        "time_s": time_s,
        "epoch": samples / 60000,
        "samples": samples,
        "samples_per_s": 5172.0,
        "loss": 0.1234,
        "staleness": staleness,
        "workers": rows,
    }


class FakeClock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def live(width: int = 120, height: int = 40) -> tuple[LiveView, FakeClock]:
    clock = FakeClock()
    console = Console(
        file=io.StringIO(), force_terminal=True, width=width, height=height, _environ={}
    )
    return LiveView(console, clock, auto_refresh=False), clock


def drawn(view: LiveView, width: int = 120) -> str:
    console = Console(file=io.StringIO(), record=True, width=width, _environ={})
    console.print(view.render())
    return console.export_text()


def lines(*events: dict[str, Any]) -> list[str]:
    stream = io.StringIO()
    view = PlainView(stream)
    for event in events:
        view.update(event)
    view.close()
    return stream.getvalue().splitlines()


# --- the choice -------------------------------------------------------------------------------


def test_the_view_fits_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(choose(True, Terminal()), QuietView)
    assert isinstance(choose(False, io.StringIO()), PlainView)
    assert isinstance(choose(False, Terminal()), LiveView)
    ascii_terminal = Terminal()
    ascii_terminal.encoding = "ANSI_X3.4-1968"
    assert isinstance(choose(False, ascii_terminal), PlainView)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(choose(False, Terminal()), PlainView)


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    view = QuietView()
    view.update(START)
    view.close()
    assert capsys.readouterr() == ("", "")


# --- plain lines ------------------------------------------------------------------------------


def test_plain_lines_tell_the_run_from_start_to_end() -> None:
    start, died, evaluated, end = lines(START, DIED, EVALUATED, END)
    assert start == (
        "[     0.0 s] mnist-async: async_sgd on engine processes, 3 workers, 2 servers, "
        "5 epochs of 60,000 samples, batch 64, seed 7"
    )
    assert died == "[    12.0 s] worker 1 died: killed by SIGKILL"
    assert evaluated == "[    13.0 s] test after epoch 1: accuracy 97.41 %, loss 0.0831"
    assert end == (
        "[    60.0 s] done; loss 0.0312; accuracy 98.71 %; 300,000 samples; "
        "0:58 of training at 5,172 samples/s; mean staleness 2.01; ledger exact"
    )


def test_plain_progress_comes_every_five_seconds_of_the_run() -> None:
    told = lines(START, *(progress(time_s / 2) for time_s in range(1, 41)))
    assert [line[:12] for line in told[1:]] == [f"[{t:8.1f} s]" for t in (5.0, 10.0, 15.0, 20.0)]
    assert told[1].endswith(
        "epoch 1.40/5  loss 0.1234  5,172 samples/s  staleness 2.0 (p99 5, max 9)  "
        "3 of 3 workers at work"
    )


def test_plain_lines_are_ascii_and_survive_missing_fields() -> None:
    bare = [{"event": name} for name in ("run_start", "progress", "evaluate", "run_end", "epoch")]
    told = lines(*bare, {**DIED, "reason": "Müll – kaputt"}, {**progress(9.0), "loss": None})
    assert all(line.isascii() for line in told)
    assert "M\\xfcll" in told[-2]
    assert "loss -" in told[-1]


def test_a_closed_pipe_silences_the_view() -> None:
    class Pipe(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    view = PlainView(Pipe())
    view.update(START)
    view.update(END)
    view.close()


# --- the live view ----------------------------------------------------------------------------


def test_the_panel_shows_run_figures_workers_and_events() -> None:
    view, _ = live()
    for event in (START, progress(10.0, 24000), DIED, EVALUATED):
        view.update(event)
    text = drawn(view)
    view.close()
    for part in (
        "mnist-async · async_sgd · processes · 3 workers · 2 servers",
        "epoch 1/5",
        "40 %",
        "loss 0.1234",
        "accuracy 97.41 %",
        "samples/s 5,172",
        "staleness 2.02 (p99 5, max 9)",
        "0:12  worker 1 died: killed by SIGKILL",
        "0:13  test after epoch 1: accuracy 97.41 %, loss 0.0831",
    ):
        assert part in text
    rows = {line.split()[1]: line.split() for line in text.splitlines() if " 15 %" in line}
    assert rows["0"][2:4] == ["training", "1,724"]
    assert rows["0"][4:7] == ["2", "5", "9"]
    assert rows["0"][7:13] == ["80", "%", "15", "%", "5", "%"]
    assert rows["1"][2:4] == ["dead", "-"]


@pytest.mark.parametrize("width", [80, 100, 109, 110, 120, 200])
def test_everything_fits_usual_terminals(width: int) -> None:
    view, _ = live(width=width, height=24)
    row = {**progress(10.0)["workers"][0], "state": "restarting", "samples_per_s": 123456.0}
    for event in (START, {**progress(10.0), "workers": [row]}, EVALUATED):
        view.update(event)
    text = drawn(view, width=width)
    assert "…" not in text
    assert {len(line) for line in text.splitlines()} == {width}
    assert "123,456" in text
    assert "restarting" in text
    assert len(text.splitlines()) <= 24


def test_a_worker_that_comes_back_restarts_and_one_of_a_resumed_run_starts() -> None:
    view, _ = live()
    view.update({**START, "incarnation": 1})
    for worker, incarnation in ((0, 1024), (1, 1025)):
        view.update({**DIED, "id": worker, "incarnation": incarnation, "state": "started"})
    rows = {line.split()[1]: line.split()[2] for line in drawn(view).splitlines() if "ing " in line}
    assert (rows["0"], rows["1"]) == ("starting", "restarting")


def test_only_so_many_workers_as_fit_are_shown_and_the_rest_are_counted() -> None:
    view, _ = live(height=24)
    view.update({**START, "workers": 100})
    view.update(progress(1.0))
    text = drawn(view)
    assert "and 95 workers more, 0 of them at work" in text
    assert len(text.splitlines()) <= 24


def test_elapsed_time_goes_on_between_events_and_the_rest_is_judged_by_speed() -> None:
    view, clock = live()
    for event in (START, progress(10.0, 60000), progress(20.0, 120000)):
        view.update(event)
    clock.now = 3.0
    text = drawn(view)
    assert "elapsed 0:23" in text
    assert "left 0:30" in text  # 180,000 samples at 6,000 a second


def test_a_simulated_run_tells_its_own_time() -> None:
    view, clock = live()
    view.update({**START, "engine": "inline", "time_s": 3600.0})
    clock.now = 50.0
    assert "elapsed 1:00:00" in drawn(view)


def test_the_end_stays_on_the_terminal() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120, height=40, record=True)
    view = LiveView(console, FakeClock(), auto_refresh=False)
    for event in (START, progress(59.0, 300000), END):
        view.update(event)
    view.close()
    view.close()
    view.update(DIED)
    text = console.export_text()
    assert "ledger exact" in text
    assert "100 %" in text
    assert "SIGKILL" not in text


def test_names_and_reasons_are_text_and_never_markup() -> None:
    view, _ = live()
    view.update({**START, "name": "[bold]run[/nonsense]"})
    view.update({**DIED, "reason": "exit [/red] 1"})
    text = drawn(view)
    assert "[bold]run[/nonsense]" in text
    assert "exit [/red] 1" in text


def test_the_refresh_thread_draws_and_ends() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=30, record=True)
    view = LiveView(console)
    view.update(START)
    view.update(END)
    view.close()
    assert "ledger exact" in console.export_text()


# --- wording ----------------------------------------------------------------------------------


def test_numbers_in_words() -> None:
    assert [wording.loss(v) for v in (0.5, 0, 0.00012, float("nan"), None)] == [
        "0.5000",
        "0.0000",
        "1.200e-04",
        "nan",
        "-",
    ]
    assert [wording.duration(v) for v in (5, 65.9, 3661, None)] == ["0:05", "1:05", "1:01:01", "-"]
    assert [wording.size(v) for v in (999, 4.8e6, 2e15)] == ["999 B", "4.8 MB", "2000.0 TB"]
    assert [wording.rate(v) for v in (0, 2.25, 5172.4)] == ["0", "2.2", "5,172"]
    assert wording.metric("top_accuracy", 0.5) == "50.00 %"
    assert wording.metric("perplexity", 12.3456) == "12.35"
    assert wording.plural(1, "worker") == "1 worker"


def test_the_final_evaluation_names_its_samples_and_a_checkpoint_its_size() -> None:
    final = {**EVALUATED, "epoch": 3, "samples": 219040, "final": True}
    told = wording.notice(final)
    assert told is not None
    assert told.text == "final test after 219,040 samples: accuracy 97.41 %, loss 0.0831"
    told = wording.notice({"event": "checkpoint", "step": 1, "bytes": 4.8e6, "seconds": 0.004})
    assert told is not None
    assert told.text == "checkpoint 1: 4.8 MB"


def test_a_ledger_that_is_not_exact_is_shouted() -> None:
    notice = wording.notice(
        {**END, "ledger": {"exact": False, "missing": 64, "twice": 0}, "outcome": "failed"}
    )
    assert notice is not None
    assert notice.tone == "bad"
    assert notice.text.endswith("ledger NOT exact: 64 missing, 0 twice")
    assert wording.ledger({"exact": True, "dropped": 128}) == "ledger exact (128 dropped by policy)"


@pytest.mark.parametrize(
    ("state", "incarnation", "text"),
    [
        ("started", 0, None),
        ("ready", 0, None),
        ("ready", 2, "server 1 is back (restart 2)"),
        ("ready", 1024, None),  # the run was resumed: nothing was restarted
        ("ready", 2049, "server 1 is back (restart 1)"),
        ("suspected", 0, "server 1 does not answer: no heartbeat"),
        ("put_aside", 0, "server 1 is put aside"),
        ("left", 0, None),
    ],
)
def test_members_in_words(state: str, incarnation: int, text: str | None) -> None:
    reason = "no heartbeat" if state == "suspected" else None
    event = {**DIED, "kind": "server", "state": state, "incarnation": incarnation, "reason": reason}
    notice = wording.notice(event)
    assert (notice.text if notice else None) == text
