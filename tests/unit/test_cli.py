"""The command line: options frozen, errors in one line, exit statuses as promised.

Training itself is a fake here that records what it was asked for; the real one is run end to end.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import tardygrad
from tardygrad.auditing import Audit, Row
from tardygrad.cli import _COMMANDS, _parsers, main
from tardygrad.config import RunConfig, to_yaml
from tardygrad.errors import (
    CheckpointError,
    DataError,
    ModelError,
    RunDirectoryError,
    TardygradError,
)
from tardygrad.recipes import load
from tardygrad.storage.run_directory import RunDirectory
from tardygrad.training import resolve

OPTIONS = {
    "": ["--help", "--version"],
    "train": ["--dry-run", "--help", "--out", "--quiet", "--resume", "--set", "[RECIPE]"],
    "simulate": ["--dry-run", "--help", "--like", "--out", "--quiet", "--set", "[RECIPE]"],
    "compare": [
        "--engine",
        "--help",
        "--methods",
        "--out",
        "--own",
        "--seeds",
        "--set",
        "--target",
        "[RECIPE]",
    ],
    "workers": ["--add", "--help", "--remove", "RUN"],
    "replay": ["--help", "--quiet", "RUN"],
    "ledger": ["--help", "--json", "RUN"],
    "export": ["--checkpoint", "--help", "--out", "RUN"],
    "report": ["--help", "RUN"],
    "recipes": ["--help", "[NAME]"],
    "clean": ["--dry-run", "--help"],
    "doctor": ["--help", "--json"],
}
"""The promise to scripts.  Adding is fine; taking away or renaming breaks somebody's."""


Install = Callable[..., None]


# Fakes of what stands above or beside the command line


@dataclass
class Result:
    run_directory: Path
    outcome: str = "done"
    exit_code: int = 0
    summary: dict[str, Any] = field(default_factory=dict)
    curves: Path | None = None
    start: dict[str, Any] = field(default_factory=dict)


BOOKS = Audit(
    True, [Row(epoch, shard, 60_000, 0, 0, 0, True) for epoch in (1, 2) for shard in (0, 1)]
)


@dataclass
class Training:
    """A fake of ``tardygrad.training`` that remembers what it was asked for."""

    result: Result
    error: BaseException | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)

    def resolve(self, document: dict[str, Any]) -> RunConfig:
        return RunConfig.model_validate(document)

    def run(self, config: RunConfig, **options: Any) -> Result:
        return self._answer({"config": config, **options})

    def resume(self, run: Path, **options: Any) -> Result:
        return self._answer({"run": run, **options})

    def _answer(self, asked: dict[str, Any]) -> Result:
        self.asked.append(asked)
        if self.error is not None:
            raise self.error
        return self.result


@pytest.fixture
def training(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Training:
    summary = {
        "seconds": 61.0,
        "samples_per_s": 4321.0,
        "staleness": {"mean": 2.987, "p50": 3, "p99": 5, "max": 9},
        "final": {"loss": 0.0512, "accuracy": 0.9861},
        "first_update_s": 4.24,
    }
    fake = Training(Result(tmp_path / "run", summary=summary, curves=tmp_path / "run/curves.png"))
    install("training", run=fake.run, resume=fake.resume, resolve=fake.resolve)
    install("auditing", audit=lambda run: BOOKS)
    monkeypatch.setattr("tardygrad.cli.summary._is_repeatable", lambda run: True)
    return fake


def refusal(capsys: pytest.CaptureFixture[str], *words: str, status: int = 2) -> str:
    """What the command says when it refuses: nothing but one line on standard error."""
    assert main(words) == status
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.endswith("\n")
    assert shown.err.count("\n") == 1
    assert shown.err.startswith("tardygrad: error: ")
    return shown.err.removeprefix("tardygrad: error: ").rstrip("\n")


# Options and help


@pytest.mark.parametrize("command", OPTIONS)
def test_the_options_are_frozen(command: str) -> None:
    parser, commands = _parsers()
    assert set(commands) | {""} == set(OPTIONS)
    chosen = commands[command] if command else parser
    help_page = chosen.format_help()
    usage = " ".join(help_page.partition("\n\n")[0].split())
    words = usage.replace("[-h]", "").partition(f"tardygrad {command}".strip())[2].split()
    positional = [word for word in words if word.strip("[]") in ("RECIPE", "RUN", "NAME")]
    positional = [word for word in positional if f"--resume {word}" not in usage]
    assert sorted(["--help", *chosen.option_names(), *positional]) == OPTIONS[command]


@pytest.mark.parametrize("command", _COMMANDS)
def test_help_shows_examples_that_parse(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    page = capsys.readouterr().out
    assert f"usage: tardygrad {command}" in page
    assert "examples:\n" in page
    assert max(map(len, page.splitlines())) <= 100
    for example, _ in _COMMANDS[command].EXAMPLES:
        assert example in page
        words = example.partition(" > ")[0].replace("'", "").split()
        assert words[:2] == ["tardygrad", command]
        assert _parsers()[0].parse_known_args(words[1:])[0].command == command


def test_help_of_the_whole(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"]):
        assert main(words) == 0
        page = capsys.readouterr().out
        assert all(f"\n    {command} " in page for command in _COMMANDS)


def test_help_is_instant_because_nothing_heavy_is_imported() -> None:
    program = (
        "import sys; from tardygrad.cli import main; main(['--help']); main(['train', '--help']); "
        "heavy = ('torch', 'numpy', 'pydantic', 'yaml', 'rich', 'zmq', 'multiprocessing'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_version_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tardygrad", "--version"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    name, version = done.stdout.split()
    assert name == "tardygrad"
    assert version[0].isdigit()


BEHIND_SET = "unknown option --lr (settings go behind --set: --set"


# Mistakes, each answered in one line with exit status 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian"], "unknown command 'trian' (did you mean 'train'?); see 'tardygrad --help'"),
        (["xyzzy"], "unknown command 'xyzzy' (valid: clean, compare, doctor,"),
        (["--verson"], "unknown option --verson (did you mean --version?)"),
        (["train"], "nothing to run: name a recipe or a YAML file, such as 'tardygrad train "),
        (["simulate"], "nothing to run: name a recipe or a YAML file, such as 'tardygrad simul"),
        (["train", "mnist-asinc"], "unknown recipe 'mnist-asinc' (did you mean 'mnist-async'?)"),
        (["train", "none.yaml"], "cannot read the configuration 'none.yaml': No such file"),
        (["train", "."], "'.' is a directory; expected a recipe or a YAML file (to go on"),
        (["train", "blobs", "--se", "a=1"], "unknown option --se (did you mean --set?)"),
        (["train", "blobs", "--epochs", "3"], "unknown option --epochs (settings go behind --set:"),
        (["train", "blobs", "--epochs=3"], "unknown option --epochs (settings go behind --set: -"),
        (["train", "blobs", "epochs=3"], "unexpected argument 'epochs=3' (settings go behind --s"),
        (["train", "blobs", "mnist-mlp"], "unexpected argument 'mnist-mlp' (one is enough)"),
        (["train", "blobs", "--set"], "argument --set: expected one argument; see 'tardygrad tra"),
        (["train", "blobs", "--set", "workers"], "--set workers: expected path.to.key=value"),
        (["train", "blobs", "--set", "workers=0"], "workers: expected a number greater than or "),
        (["train", "blobs", "--set", "workers=x"], "workers: expected a whole number, got 'x'"),
        (["train", "blobs", "--set", "worker=2"], "worker: unknown key (did you mean 'workers'?)"),
        (["train", "blobs", "--set", "a.b=[1"], "--set a.b=[1: line 1: "),
        (["train", "blobs", "--resume", "runs/a"], "a run that is resumed has its configuration "),
        (["train", "--resume", "a", "--out", "b"], "a run is resumed in its own directory: leave"),
        (["train", "--resume"], "there is no unfinished run in 'runs' to resume: name"),
        (["ledger"], "the following arguments are required: RUN; see 'tardygrad ledger --help'"),
        (["recipes", "mlp"], "unknown recipe 'mlp' (did you mean 'mnist-mlp'?)"),
        (
            ["doctor", "now"],
            "unexpected argument 'now' (the command takes none); see 'tardygrad do",
        ),
        (["clean", "a=1"], "unexpected argument 'a=1' (the command takes none); see 'tardygrad cl"),
        (["train", "blobs", "--lr", "0.1"], "unknown option --lr (settings go behind --set: --set"),
        (["train", "--lr=0.1"], f"{BEHIND_SET} method.optimizer.arguments.lr=0.1); see"),
        (["train", "blobs", "--quite"], "unknown option --quite (did you mean --quiet?)"),
        (["ledger", "a", "--lr", "1"], "unknown option --lr (valid: --json)"),
        (["--dry-run", "train", "blobs"], "options of a command go after it: tardygrad train --dr"),
        (["--set", "a=1", "train"], "options of a command go after it: tardygrad train --set; see"),
        (["--out=x", "train"], "options of a command go after it: tardygrad train --out; see"),
        (["train", "blobs", "--set", "1=2"], "1: unknown key (valid: batch_size,"),
        (["train", "blobs", "--set", "a={1: 2}"], "--set a={1: 2}: line 1: the key 1 is not a tex"),
    ],
)
def test_mistakes(
    words: list[str],
    expected: str,
    training: Training,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(capsys, *words).startswith(expected)
    assert training.asked == []


def test_each_problem_of_a_configuration_has_its_line(
    training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "blobs", "--set", "workers=0", "--set", "engine=ray"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[:3] for line in lines] == [
        ["tardygrad", " error", " workers"],
        ["tardygrad", " error", " engine"],
    ]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DataError("train-images-idx3-ubyte.gz: md5 is aa, expected bb"), 2),
        (ModelError("cannot import 'shop.models'"), 2),
        (RunDirectoryError("runs/a holds another run"), 2),
        (CheckpointError("shard 1 is missing"), 1),
    ],
)
def test_errors_of_training_keep_their_status(
    error: TardygradError, status: int, training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    training.error = error
    assert refusal(capsys, "train", "blobs", status=status) == str(error)


def test_interrupted(training: Training, capsys: pytest.CaptureFixture[str]) -> None:
    training.error = KeyboardInterrupt()
    assert main(["train", "blobs"]) == 130
    assert capsys.readouterr().err == "tardygrad: interrupted\n"


def test_a_bug_leaves_its_traceback_in_a_file(
    training: Training,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("TARDYGRAD_DEBUG", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    training.error = ZeroDivisionError("by\nzero")
    line = refusal(capsys, "train", "blobs", status=1)
    assert line.startswith("unexpected ZeroDivisionError: by zero; this is a bug")
    traceback = Path(line.rpartition(" ")[2]).read_text()
    assert traceback.startswith("Traceback (most recent call last)")
    assert "raise self.error" in traceback


@pytest.mark.parametrize("error", [ZeroDivisionError("by zero"), DataError("bad sum")])
def test_tracebacks_on_demand(
    error: Exception,
    training: Training,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TARDYGRAD_DEBUG", "1")
    training.error = error
    main(["train", "blobs"])
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback (most recent call last)")
    assert f"tardygrad: error: {'unexpected ' * isinstance(error, ZeroDivisionError)}" in shown


def test_a_reader_that_goes_away_is_no_error() -> None:
    program = f"{sys.executable} -m tardygrad recipes mnist-async | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode in (0, 141)
    assert done.stderr == ""


# train, simulate


def test_train_passes_on_what_it_is_told(
    training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "blobs", "--set", "workers=2", "--set", "method.clip_norm=5e-1"]
    assert main([*words, "--out", "runs/mine"]) == 0
    (asked,) = training.asked
    assert asked["config"].workers == 2
    assert asked["config"].method == {**load("blobs")["method"], "clip_norm": 0.5}
    assert asked["out"] == Path("runs/mine")
    assert asked["quiet"] is False
    assert asked["command_started"] > 0
    lines = capsys.readouterr().out.splitlines()
    for expected in (
        "done, after 1:01 of training",
        "  test accuracy  98.61 %",
        "  test loss      0.0512",
        "  speed          4,321 samples/s",
        "  staleness      mean 2.99 (p50 3, p99 5, max 9)",
        "  first update   4.2 s after the command",
        f"  ledger         {BOOKS.verdict()}",
        f"  curves         {training.result.curves}",
        f"  run directory  {training.result.run_directory}",
    ):
        assert expected in lines
    assert any("tardygrad replay " in line for line in lines)


def test_a_run_that_was_stopped_says_how_to_go_on(
    training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    run = training.result.run_directory
    training.result = Result(run, "preempted", 75, {"reason": "SIGTERM"})
    assert main(["train", "blobs"]) == 75
    shown = capsys.readouterr().out
    assert "preempted: SIGTERM, after - of training\n" in shown
    assert f"tardygrad train --resume {run} " in shown
    assert "replay" not in shown


def test_books_that_cannot_be_read_do_not_hide_the_rest(
    training: Training, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    def audit(run: Path) -> Audit:
        raise CheckpointError("no ledger here")

    install("auditing", audit=audit)
    assert main(["train", "blobs"]) == 0
    assert "  ledger         not readable: no ledger here\n" in capsys.readouterr().out


def test_quiet_prints_the_run_directory_only(
    training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "blobs", "--quiet"]) == 0
    assert capsys.readouterr().out == f"{training.result.run_directory}\n"
    assert training.asked[0]["quiet"] is True


def test_dry_run_prints_a_configuration_that_runs(
    training: Training, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "blobs", "--dry-run", "--set", "seed=3"]) == 0
    path = tmp_path / "again.yaml"
    path.write_text(capsys.readouterr().out)
    assert training.asked == []
    assert main(["train", str(path)]) == 0
    assert training.asked[0]["config"] == RunConfig.model_validate({**load("blobs"), "seed": 3})


def test_simulate_is_train_in_virtual_time(training: Training) -> None:
    assert main(["simulate", "blobs", "--set", "engine=processes"]) == 0
    assert training.asked[0]["config"].engine == "inline"


def test_models_beside_the_file_can_be_imported(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    main(["train", "blobs"])
    assert sys.path[-1] == str(tmp_path)


def test_resume(training: Training, tmp_path: Path) -> None:
    words = ["train", "--resume", str(tmp_path), "--set", "workers=2", "--set", "failure.lease_s=9"]
    assert main(words) == 0
    (asked,) = training.asked
    assert asked["run"] == tmp_path
    assert asked["overrides"] == {"workers": 2, "failure": {"lease_s": 9}}


def test_resume_the_newest_that_is_not_done(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(["finished", "b", "a"]):
        with RunDirectory.create(Path("runs", name), "seed: 0\n", name=name) as directory:
            directory.metrics_jsonl.touch()
            if name == "finished":
                directory.finish("done")
        os.utime(directory.metrics_jsonl, (1_000_000 - age, 1_000_000 - age))
    Path("runs/not-a-run").mkdir()
    Path("runs/not-a-run/metrics.jsonl").touch()
    assert main(["train", "--resume"]) == 0
    assert training.asked[0]["run"] == Path("runs/b")


def test_resume_dry_run_shows_the_changed_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = resolve(load("blobs"))
    RunDirectory.create(tmp_path / "run", to_yaml(config)).close()
    words = ["train", "--resume", str(tmp_path / "run"), "--dry-run"]
    assert main([*words, "--set", "workers=7"]) == 0
    assert capsys.readouterr().out == to_yaml(config.model_copy(update={"workers": 7}))


@pytest.mark.parametrize(
    ("name", "assignment", "expected"),
    [
        ("run", "seed=5", "seed cannot change when a run is resumed"),
        ("run", "method.mixing=0.5", "run is done; to train on, resume it with more epochs"),
        ("run", "workers=7", "run is done; to train on, resume it with more epochs"),
        ("rum", "workers=7", "rum does not exist: expected the directory of a run (did you mean"),
    ],
)
def test_resume_dry_run_has_the_rules_of_resume(
    name: str,
    assignment: str,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with RunDirectory.create("run", to_yaml(resolve(load("blobs")))) as run:
        run.finish("done")
    words = ["train", "--resume", name, "--set", assignment]
    for dry in ([], ["--dry-run"]):
        assert refusal(capsys, *words, *dry).startswith(expected)


def test_recipes(tmp_path: Path, capsys: pytest.CaptureFixture[str], training: Training) -> None:
    assert main(["recipes"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == tardygrad.recipes.names()
    assert main(["recipes", "mnist-async"]) == 0
    path = tmp_path / "mine.yaml"
    path.write_text(capsys.readouterr().out)
    assert path.read_text().startswith("# MNIST")
    assert main(["train", str(path)]) == 0
    assert training.asked[0]["config"] == RunConfig.model_validate(load("mnist-async"))
