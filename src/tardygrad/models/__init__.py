"""Models: what the rest knows of them (`ModelAdapter`), and the libraries that compute them.

Importing torch takes seconds, so the names below are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tardygrad.models.base import ModelAdapter
    from tardygrad.models.factory import build
    from tardygrad.models.null import NullAdapter
    from tardygrad.models.torch import TorchAdapter

__all__ = ["ModelAdapter", "NullAdapter", "TorchAdapter", "build"]

_HOME = {
    "ModelAdapter": "base",
    "NullAdapter": "null",
    "TorchAdapter": "torch",
    "build": "factory",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
