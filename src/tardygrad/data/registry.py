"""From the `data` section of a configuration to the sources of a run.

A data set with a name of its own is one line in `SOURCES`; any other is "package.module:function".
Either is a function that returns `(train, test)`, each of them whatever `as_source` takes, and
`test` may be None.
"""

from __future__ import annotations

from typing import Any

from tardygrad.config import BY_VALUE, DataConfig
from tardygrad.data.references import call, resolve
from tardygrad.data.sources import Source, as_source
from tardygrad.errors import ConfigError, DataError, unknown

__all__ = ["SOURCES", "load"]

SOURCES = {"mnist": "tardygrad.data.mnist:load"}
"""Names that `data.source` may have, and the function behind each."""


def load(config: DataConfig, by_value: Any = None) -> tuple[Source, Source | None]:
    """The training data and, if there are any, the test data.

    Args:
        config: The configuration's `data` section.
        by_value: Data handed over from Python instead: `(train, test)`, or a function that
            returns that for `config.arguments`.

    Raises:
        ConfigError: If the name is unknown or the arguments do not fit.
        DataError: If the data cannot be found, read or used.
    """
    if by_value is not None:
        name = "data handed over from Python"
        loaded = (
            call(by_value, config.arguments, name, DataError)
            if _is_function(by_value)
            else by_value
        )
    else:
        name = f"data source {config.source!r}"
        loaded = _run(config, name)
    if not isinstance(loaded, tuple | list) or len(loaded) != 2:
        found = (
            f"{len(loaded)} values" if isinstance(loaded, tuple | list) else type(loaded).__name__
        )
        raise DataError(f"{name}: expected (train, test), where test may be None, got {found}")
    train, test = loaded
    return _source(train, name, "train"), None if test is None else _source(test, name, "test")


def _run(config: DataConfig, name: str) -> Any:
    if config.source == BY_VALUE:
        raise DataError(
            "this run was given its data from Python, which no file can hold; start or resume it "
            "from Python and hand the data over again"
        )
    if config.source not in SOURCES and ":" not in config.source:
        raise ConfigError(
            f"data.source: {unknown('data set', config.source, SOURCES)}; "
            "data of your own are named 'package.module:function'"
        )
    function = resolve(SOURCES.get(config.source, config.source), "data source", ConfigError)
    if not callable(function):
        raise ConfigError(f"{name} is {function!r}, expected a function that returns (train, test)")
    return call(function, config.arguments, name, ConfigError)


def _is_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, tuple | list)


def _source(data: Any, name: str, part: str) -> Source:
    try:
        return as_source(data)
    except DataError as error:
        raise DataError(f"{name}, {part}: {error}") from None
