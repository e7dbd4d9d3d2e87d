"""List the recipes, or print one as YAML to start your own from."""

from __future__ import annotations

import argparse

SUMMARY = "list the recipes, or print one as YAML"

EXAMPLES = (
    ("tardygrad recipes", "all of them, one line each"),
    ("tardygrad recipes mnist-async > my.yaml", "a file to change and train"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``tardygrad recipes``."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="print this recipe")


def run(arguments: argparse.Namespace) -> int:
    """List or print; returns the exit status."""
    from tardygrad import recipes
    from tardygrad.documents import dump

    if arguments.name is not None:
        print(dump(recipes.load(arguments.name), recipes.describe(arguments.name)), end="")
        return 0
    names = recipes.names()
    width = max(len(name) for name in names)
    for name in names:
        print(f"{name:<{width}}  {recipes.describe(name)}")
    return 0
