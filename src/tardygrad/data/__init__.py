"""Data: where samples come from, and how an epoch of them is cut into work.

`fragments` is integers and numpy; the rest needs torch, whose import takes seconds, and so is
imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tardygrad.data.fragments import FragmentPlan, Permutations

if TYPE_CHECKING:
    from tardygrad.data.registry import load
    from tardygrad.data.sources import ArraySource, DatasetSource, Source, as_source

__all__ = [
    "ArraySource",
    "DatasetSource",
    "FragmentPlan",
    "Permutations",
    "Source",
    "as_source",
    "load",
]

_HOME = {
    "ArraySource": "sources",
    "DatasetSource": "sources",
    "Source": "sources",
    "as_source": "sources",
    "load": "registry",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
