"""What the commands' parsers share: errors in one line, hints, common options.

``argparse`` prints its usage and leaves the program on an error; here it raises ``UsageError`` like
everything else, and a misspelt option is answered with the nearest one.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tardygrad.errors import UsageError, nearest

Examples = Sequence[tuple[str, str]]


class Parser(argparse.ArgumentParser):
    """An argument parser that raises ``UsageError`` and does not guess at abbreviations."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise the message, with where to read more."""
        raise UsageError(f"{message}; see '{self.prog} --help'")

    def option_names(self) -> list[str]:
        """All long options, such as ``--set``."""
        return sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", self.format_usage())))

    def takes_arguments(self) -> bool:
        """Whether there are any beside the options."""
        return bool(self._get_positional_actions())


def examples(lines: Examples) -> str:
    """The examples at the end of a help page: side by side, or one above the other if long."""
    width = max(len(command) for command, _ in lines)
    if width + max(len(meaning) for _, meaning in lines) < 92:
        shown = [f"  {command:<{width}}  {meaning}" for command, meaning in lines]
    else:
        shown = [f"  # {meaning}\n  {command}" for command, meaning in lines]
    return "\n".join(["examples:", *shown])


def check_order(words: Sequence[str], parser: Parser, commands: Mapping[str, Parser]) -> None:
    """Refuse a command's option that stands before the command.

    Raises:
        UsageError: there is one.
    """
    command = next((word for word in words if word in commands), None)
    if command is None:
        return
    for word in words[: words.index(command)]:
        name = word.partition("=")[0]
        if name in commands[command].option_names() and name not in parser.option_names():
            parser.error(f"options of a command go after it: tardygrad {command} {name}")


def check_leftovers(leftovers: Iterable[str], parser: Parser) -> None:
    """Refuse what the parser did not understand, with the best hint.

    Raises:
        UsageError: there is anything left over.
    """
    for word in leftovers:
        options = parser.option_names()
        name, equals, value = word.partition("=")
        if not word.startswith("-"):
            if equals and "--set" in options:
                hint = f"settings go behind --set: --set {word}"
            else:
                hint = "one is enough" if parser.takes_arguments() else "the command takes none"
            parser.error(f"unexpected argument {word!r} ({hint})")
        # Without the dashes, which all options have in common.
        match = nearest(name.lstrip("-"), [option.lstrip("-") for option in options])
        path = _setting(name.lstrip("-").replace("-", "_")) if "--set" in options else None
        if path is not None:
            hint = f"settings go behind --set: --set {path}={value or 'VALUE'}"
        elif match is not None:
            hint = f"did you mean --{match}?"
        else:
            hint = f"valid: {', '.join(options)}"
        parser.error(f"unknown option {name} ({hint})")


def _setting(key: str) -> str | None:
    """Where ``key`` stands in a configuration."""
    from tardygrad.config import RunConfig
    from tardygrad.sections import find

    return find(RunConfig, key)


def add_configuration(parser: argparse.ArgumentParser) -> None:
    """The options that say what to run: recipe or file, settings, where to, how loud."""
    parser.add_argument(
        "recipe", nargs="?", metavar="RECIPE", help="name of a recipe, or a YAML file"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting, such as workers=2 or method.clip_norm=1.0; may be repeated",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="run directory to make (default: runs/NAME-DATE-TIME)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the complete configuration and stop"
    )
    parser.add_argument(
        "--quiet", action="store_true", help="print nothing but the run directory, at the end"
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    """The run directory that a command looks at."""
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's directory")


def read_document(recipe: str | None, command: str) -> dict[str, Any]:
    """The document of a recipe or of a YAML file.

    Raises:
        UsageError: nothing is named, or what is named is a directory or cannot be read.
        ConfigError: there is no such recipe, or the file is not YAML.
    """
    from tardygrad import recipes
    from tardygrad.documents import load_config

    if recipe is None:
        raise UsageError(
            f"nothing to run: name a recipe or a YAML file, such as 'tardygrad {command} "
            f"mnist-async'; there are {', '.join(recipes.names())}"
        )
    path = Path(recipe)
    if path.is_dir():
        raise UsageError(
            f"{recipe!r} is a directory; expected a recipe or a YAML file (to go on with a run: "
            f"tardygrad train --resume {recipe})"
        )
    if path.suffix in (".yaml", ".yml") or os.sep in recipe or path.is_file():
        return load_config(path)
    return recipes.load(recipe)


def make_current_directory_importable() -> None:
    """Let ``my_model:build`` mean ``my_model.py`` here, as it does for ``python my_script.py``.

    Behind everything else: a file here must not replace a module of a package.
    """
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
