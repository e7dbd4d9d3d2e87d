"""tardygrad: train models on whatever machines people have.

The public API: ``train`` and ``resume`` for a whole run, ``export`` for its model, ``methods`` for
the ways of training, ``workers`` for those of a running run, ``Callback`` to listen in, ``errors``
for what can go wrong. Everything is imported when it is first used, so that ``import tardygrad``
costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tardygrad import errors, methods
    from tardygrad.api import resume, train
    from tardygrad.auditing import audit
    from tardygrad.callbacks import Callback
    from tardygrad.crewing import workers
    from tardygrad.exporting import export
    from tardygrad.replaying import replay
    from tardygrad.training import Result

_HOMES = {
    "train": "tardygrad.api",
    "resume": "tardygrad.api",
    "Callback": "tardygrad.callbacks",
    "Result": "tardygrad.training",
    "audit": "tardygrad.auditing",
    "export": "tardygrad.exporting",
    "replay": "tardygrad.replaying",
    "workers": "tardygrad.crewing",
}
_MODULES = ("methods", "errors")

__all__ = [
    "Callback",
    "Result",
    "audit",
    "errors",
    "export",
    "methods",
    "replay",
    "resume",
    "train",
    "workers",
]


def __getattr__(name: str) -> Any:
    import importlib

    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
