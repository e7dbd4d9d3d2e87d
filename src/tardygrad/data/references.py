"""Python objects named in a configuration as "package.module:name".

Theory of operation. A configuration is text that several processes and, later, several hosts read,
so it names functions instead of holding them. Whatever goes wrong when such a name is resolved or
called is the mistake of the person who wrote it, or an error in that person's own module; it is
told in one line, with the cause, as the kind of error that the caller passes in.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from tardygrad.errors import UsageError, nearest

__all__ = ["call", "resolve"]


def resolve(reference: str, what: str, error: type[UsageError]) -> Any:
    """Import the object that `reference` names.

    Args:
        reference: "package.module:name" or "package.module:Class.name".
        what: What it is for, as the message begins: "model factory".
        error: Raised if that fails, with the reason.

    >>> resolve("math:sqrt", "loss", UsageError)(9)
    3.0
    """
    path, colon, names = reference.partition(":")
    if not (colon and path and names):
        raise error(
            f"{what} {reference!r}: expected 'package.module:name', such as 'my_code:build'"
        )
    target = _import(path, what, reference, error)
    for name in names.split("."):
        if not hasattr(target, name):
            owner = f"module {path!r}" if inspect.ismodule(target) else f"{target!r}"
            match = nearest(name, [choice for choice in dir(target) if not choice.startswith("_")])
            hint = f" (did you mean {match!r}?)" if match else ""
            raise error(f"{what} {reference!r}: {owner} has no {name!r}{hint}")
        target = getattr(target, name)
    return target


def call(
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    what: str,
    error: type[UsageError],
) -> Any:
    """Call a user's function by keyword and return what it returns.

    Errors of tardygrad pass through as they are. Anything else that the function raises is told in
    one line; the original is its `__cause__`.

    Args:
        function: What to call.
        arguments: Its keyword arguments.
        what: How the message begins: "model factory 'my_code:build'".
        error: Raised if the arguments do not fit or the function raises.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in functions have none to look at
        signature = None
    if signature is not None:
        try:
            signature.bind(**arguments)
        except TypeError as cause:
            valid = [name for name in signature.parameters if name != "self"]
            raise error(
                f"{what} was given arguments {sorted(arguments)}: {cause}; it takes "
                f"{', '.join(valid) if valid else 'none'}"
            ) from None
    try:
        return function(**arguments)
    except UsageError:
        raise
    except (Exception, SystemExit) as cause:
        raise error(f"{what} failed with {_told(cause)}") from cause


def _import(path: str, what: str, reference: str, error: type[UsageError]) -> Any:
    try:
        return import_module(path)
    except ModuleNotFoundError as cause:
        missing = cause.name or path
        if path == missing or path.startswith(f"{missing}."):
            raise error(
                f"{what} {reference!r}: there is no module {missing!r} on the import path; install "
                f"it, or add its directory to PYTHONPATH (searched first: {sys.path[0] or '.'})"
            ) from None
        raise error(
            f"{what} {reference!r}: module {path!r} needs module {missing!r}, which is not "
            "installed"
        ) from cause
    except SystemExit as cause:
        raise error(
            f"{what} {reference!r}: importing {path!r} ended with {_told(cause)}; put what only a "
            "script should do under: if __name__ == '__main__'"
        ) from cause
    except Exception as cause:
        raise error(
            f"{what} {reference!r}: importing {path!r} failed with {_told(cause)}"
        ) from cause


def _told(cause: BaseException) -> str:
    """Kind and text of an error, in one line."""
    return " ".join(f"{type(cause).__name__}: {cause}".split()).removesuffix(":")
