"""The studies there are: every module of this package that has a ``STUDY``."""

from __future__ import annotations

import importlib
import pkgutil

import studies as package
from studies.base import Study

ORDER = ("softsync", "delay", "outer", "stragglers", "elastic")


def studies() -> dict[str, Study]:
    """All studies by name, in the order of docs/studies.md; new ones come last."""
    modules = (
        importlib.import_module(f"{package.__name__}.{info.name}")
        for info in pkgutil.iter_modules(package.__path__)
        if not info.name.startswith("__")
    )
    found: dict[str, Study] = {m.STUDY.name: m.STUDY for m in modules if hasattr(m, "STUDY")}
    return {name: found[name] for name in sorted(found, key=_place)}


def _place(name: str) -> tuple[int, str]:
    return (ORDER.index(name) if name in ORDER else len(ORDER)), name
