"""The methods: one file each, found by its module name.

A method file defines exactly one public subclass of ``Method``; its configuration name is the
file's name. Nothing is registered anywhere: a new file is a new method, and the shared battery
(``tardygrad.testing.check_method``) tests it without being told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tardygrad.families import Family
from tardygrad.methods.base import Method

_FAMILY = Family(
    __name__, __path__, Method, but={"base", "rules", "schedules"}, key="method.name", kind="method"
)
names, find = _FAMILY.names, _FAMILY.find


def parse(document: Mapping[str, Any]) -> Method:
    """A method from its configuration section, ``name`` included.

    Raises:
        ConfigError: an unknown method or key, or a value of the wrong kind.
    """
    return find(str(document.get("name"))).model_validate(dict(document))


def switch(section: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The section of the method ``name`` for a job that had another ``section``.

    What means the same to both methods goes over (an optimizer's learning rate, say, and the codec
    always), all else begins with its default.

    Raises:
        ConfigError: there is no such method.
    """
    found = find(name)
    before = section.get("name")
    if before == name:
        return dict(section)
    shared = find(str(before)).carries if before in names() else ()
    kept = {key: section[key] for key in found.carries if key in shared and key in section}
    codec = {key: section[key] for key in ("codec",) if key in section}
    return {"name": name, **found.taking_over(kept), **codec}


def __getattr__(name: str) -> Any:
    """``tardygrad.methods.AsyncSGD``: every method's class by its own name."""
    if not name.startswith("_") and name[:1].isupper():
        for method in names():
            found = find(method)
            if found.__name__ == name:
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
