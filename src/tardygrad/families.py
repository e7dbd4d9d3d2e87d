"""Things that are one file each and are found by it: the methods, the codecs.

A family is a package whose modules define one public class each. The file's name is the member's
name in a configuration; nothing is registered anywhere, so a new file is a new member.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from typing import Generic, TypeVar

from tardygrad.errors import ConfigError, unknown

__all__ = ["Family"]

MemberT = TypeVar("MemberT")


class Family(Generic[MemberT]):
    """The members of a package.

    Args:
        package: the package's name.
        path: its ``__path__``.
        base: what each member's class is a subclass of.
        but: modules that are no members.
        key: the key of the configuration that names a member, for messages.
        kind: what a member is called in messages.
    """

    def __init__(
        self, package: str, path: Iterable[str], base: type[MemberT], *, but: set[str], key: str,
        kind: str,
    ) -> None:  # fmt: skip
        self._package, self._path, self._base = package, path, base
        self._but, self._key, self._kind = but, key, kind

    def names(self) -> list[str]:
        """Every member's name, sorted."""
        found = (module.name for module in pkgutil.iter_modules(self._path))
        return sorted(name for name in found if name not in self._but)

    def find(self, name: str) -> type[MemberT]:
        """The class of the member ``name``.

        Raises:
            ConfigError: there is no such member; the message names the nearest one.
        """
        if name not in self.names():
            raise ConfigError(f"{self._key}: {unknown(self._kind, name, self.names())}")
        module = importlib.import_module(f"{self._package}.{name}")
        for value in vars(module).values():
            if (
                isinstance(value, type)
                and issubclass(value, self._base)
                and value.__module__ == module.__name__
            ):
                return value
        raise ConfigError(f"{self._key}: {module.__name__} defines no {self._base.__name__}")
