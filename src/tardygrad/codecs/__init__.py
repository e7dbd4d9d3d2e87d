"""The codecs: what travels of an update, one file each, found by its module name.

A codec file defines exactly one public subclass of ``Codec``; its configuration name is the file's
name. Nothing is registered anywhere: a new file is a new codec, and the shared battery
(``tardygrad.testing.codecs.check_codec``) tests it without being told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tardygrad.codecs.base import Codec
from tardygrad.errors import ConfigError
from tardygrad.families import Family

_FAMILY = Family(
    __name__, __path__, Codec, but={"base", "halves", "pushes"}, key="method.codec", kind="codec"
)
names, find = _FAMILY.names, _FAMILY.find


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
