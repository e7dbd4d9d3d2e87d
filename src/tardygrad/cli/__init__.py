"""The command line: ``tardygrad COMMAND ...``.

Every command is a module of this package with its ``SUMMARY``, ``EXAMPLES``, ``add_arguments`` and
``run(arguments) -> exit status``.  Nothing heavy is imported before a command runs, so that help is
instant.

Exit status: 0 done, 1 failure, 2 usage or configuration, 75 preempted after a checkpoint, 130
interrupted.  What goes wrong is one line on standard error for each problem.  An exception that
nobody expected is a bug: its traceback goes to a file that the line names, or to the terminal if
``TARDYGRAD_DEBUG`` is set.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence

from tardygrad.cli import (
    chaos,
    clean,
    compare,
    doctor,
    export,
    ledger,
    recipes,
    replay,
    report,
    simulate,
    train,
    workers,
)
from tardygrad.cli.parser import Parser, check_leftovers, check_order, examples
from tardygrad.errors import TardygradError, UsageError, unknown

__all__ = ["main"]

_COMMANDS = {
    "train": train,
    "workers": workers,
    "simulate": simulate,
    "compare": compare,
    "chaos": chaos,
    "replay": replay,
    "ledger": ledger,
    "export": export,
    "report": report,
    "recipes": recipes,
    "clean": clean,
    "doctor": doctor,
}

_EXAMPLES = (
    ("tardygrad train mnist-async", "train, watch, and get a picture"),
    ("tardygrad recipes", "what can be trained out of the box"),
    ("tardygrad train --help", "the options of a command, with examples"),
    ("tardygrad doctor", "what this machine offers"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; ``argv`` are the words after ``tardygrad``.  Returns the exit status."""
    started = time.monotonic()
    try:
        status = _dispatch(list(sys.argv[1:] if argv is None else argv), started)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except BrokenPipeError:
        # The reader went away (``| head``).  Python would complain again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except TardygradError as error:
        if _is_debugging():
            traceback.print_exc()
        for line in str(error).splitlines() or [type(error).__name__]:
            _complain(f"error: {line}")
        return error.exit_code
    except Exception as error:
        _complain(f"error: {_describe_bug(error)}")
        return 1


def _dispatch(words: list[str], started: float) -> int:
    parser, commands = _parsers()
    check_order(words, parser, commands)
    command = next((word for word in words if not word.startswith("-")), None)
    if command is not None and command not in commands:
        raise UsageError(f"{unknown('command', command, commands)}; see 'tardygrad --help'")
    try:
        arguments, leftovers = parser.parse_known_args(words)
    except SystemExit as leaving:  # --help has been printed
        return int(leaving.code or 0)
    if arguments.version and command is None:
        from importlib.metadata import version

        print(f"tardygrad {version('tardygrad')}")
        return 0
    check_leftovers(leftovers, commands.get(command or "", parser))
    if command is None:
        parser.print_help()
        return 0
    arguments.command_started = started
    return int(_COMMANDS[command].run(arguments))


def _parsers() -> tuple[Parser, dict[str, Parser]]:
    """The parser of the whole command line, and the one of each command."""
    parser = Parser(
        prog="tardygrad",
        description="Train models asynchronously, elastically and exactly once.",
        epilog=examples(_EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    choices = parser.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", parser_class=Parser
    )
    commands: dict[str, Parser] = {}
    for name, module in _COMMANDS.items():
        commands[name] = choices.add_parser(
            name,
            help=module.SUMMARY,
            description=(module.__doc__ or "").strip(),
            epilog=examples(module.EXAMPLES),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(commands[name])
    return parser, commands


def _describe_bug(error: Exception) -> str:
    story = " ".join(f"{type(error).__name__}: {error}".split())
    if _is_debugging():
        traceback.print_exc()
        return f"unexpected {story}"
    try:
        descriptor, path = tempfile.mkstemp(prefix="tardygrad-", suffix=".traceback.txt")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            traceback.print_exc(file=file)
    except OSError:
        return f"unexpected {story}; TARDYGRAD_DEBUG=1 shows the traceback"
    return f"unexpected {story}; this is a bug, please report it with the traceback in {path}"


def _is_debugging() -> bool:
    return os.environ.get("TARDYGRAD_DEBUG", "") not in ("", "0")


def _complain(message: str) -> None:
    print(f"tardygrad: {message}", file=sys.stderr)
