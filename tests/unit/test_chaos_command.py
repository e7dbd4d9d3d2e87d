"""What ``tardygrad chaos`` refuses, in one line, before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tardygrad.cli import main


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "nothing to run: name a recipe or a YAML file, such as 'tardygrad chaos mnist-async'"),
        (["blobs", "--kinds", "kil"], "--kinds: unknown kind 'kil' (did you mean 'kill'?)"),
        (["blobs", "--every", "x"], "--every x: expected a time such as 500ms, 2s or 15m"),
        (["blobs", "--for", "1s"], "--for 1s: expected at least one --every"),
        (["blobs", "--limit", "goodputt=1"], "--limit: unknown limit 'goodputt' (did you mean"),
        (["blobs", "--limit", "others=x"], "--limit: expected others=NUMBER, got 'others=x'"),
        (["blobs", "--set", "engine=inline"], "engine 'inline' has no processes to kill; expected"),
        (["blobs", "--set", "workers=0"], "workers: expected a number greater than or equal to 1"),
        ([".", "--out", "x"], "a run is resumed in its own directory: leave out --out"),
        ([".", "--set", "workers=2"], "a run that goes on has its configuration already"),
        (["."], ". holds no run: it has no run.json"),
    ],
)
def test_mistakes(
    words: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["chaos", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"tardygrad: error: {expected}")
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())
