"""Fixtures that several of these files need."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeAlias

import pytest

Install: TypeAlias = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a fake in the place of a module, such as ``install("training", run=...)``."""

    def place(name: str, **members: Any) -> None:
        module = ModuleType(f"tardygrad.{name}")
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, f"tardygrad.{name}", module)
        parent, _, last = f"tardygrad.{name}".rpartition(".")
        monkeypatch.setattr(importlib.import_module(parent), last, module, raising=False)

    return place
