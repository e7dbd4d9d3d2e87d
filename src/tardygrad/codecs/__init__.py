"""The codecs: what travels of an update, one file each, found by its module name.

A codec file defines exactly one public subclass of ``Codec``; its configuration name is the file's
name. Nothing is registered anywhere: a new file is a new codec, and the shared battery
(``tardygrad.testing.codecs.check_codec``) tests it without being told.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from tardygrad.codecs.base import Codec
from tardygrad.errors import ConfigError, unknown

_NOT_CODECS = {"base", "halves", "pushes"}


def names() -> list[str]:
    """Every codec's name, sorted."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in found if name not in _NOT_CODECS)


def find(name: str) -> type[Codec]:
    """The class of the codec ``name``.

    Raises:
        ConfigError: there is no such codec; the message names the nearest one.
    """
    if name not in names():
        raise ConfigError(f"method.codec: {unknown('codec', name, names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    for value in vars(module).values():
        if (
            isinstance(value, type)
            and issubclass(value, Codec)
            and value.__module__ == module.__name__
        ):
            return value
    raise ConfigError(f"method.codec: {module.__name__} defines no Codec")


def parse(section: Any) -> Codec:
    """A codec from its section of the configuration; a bare text is its name.

    Raises:
        ConfigError: an unknown codec or key, or a value of the wrong kind.
    """
    if isinstance(section, Codec):
        return section
    if isinstance(section, str):
        section = {"name": section}
    if not isinstance(section, Mapping) or not isinstance(section.get("name"), str):
        raise ConfigError(
            f"method.codec: expected a codec's name or a section with a name, got {section!r}; "
            f"there are {', '.join(names())}"
        )
    return find(section["name"]).model_validate(dict(section))
