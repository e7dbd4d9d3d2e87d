"""Whatever a user's module does when it is imported or called is told in one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tardygrad.data.references import call, resolve
from tardygrad.errors import ModelError


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "raise SystemExit(3)",
            "importing 'user' ended with SystemExit: 3; put what only a script",
        ),
        ("import sys; sys.exit()", "importing 'user' ended with SystemExit; put what only a scrip"),
        ("raise OSError('one\\ntwo')", "importing 'user' failed with OSError: one two"),
    ],
)
def test_a_module_that_cannot_be_imported(
    code: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "user.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "user", raising=False)
    with pytest.raises(ModelError) as caught:
        resolve("user:build", "model factory", ModelError)
    assert str(caught.value).startswith(f"model factory 'user:build': {message}")


def test_a_function_that_leaves_the_program() -> None:
    with pytest.raises(ModelError, match=r"^factory failed with SystemExit: 3$"):
        call(lambda: sys.exit(3), {}, "factory", ModelError)
