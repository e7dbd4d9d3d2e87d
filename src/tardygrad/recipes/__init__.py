"""Recipes: whole configurations under a name, ``tardygrad train mnist-async``.

A recipe is a module of this package with a function ``recipe()`` that returns a configuration
document, and is called by the module's name with dashes; the first line of its docstring describes
it.  Nothing is registered anywhere: a new file is a new recipe.  Documents are plain dicts that
name models and data as ``module:function``, so listing recipes imports neither torch nor data.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import Any

from tardygrad.errors import ConfigError, unknown

__all__ = ["describe", "load", "names"]


def names() -> list[str]:
    """The names of all recipes, in alphabetical order."""
    return sorted(_modules())


def describe(name: str) -> str:
    """What the recipe trains, in one line.

    Raises:
        ConfigError: there is no such recipe.
    """
    return (_find(name).__doc__ or "").strip().partition("\n")[0]


def load(name: str) -> dict[str, Any]:
    """The recipe's configuration document, new for each call.

    Raises:
        ConfigError: there is no such recipe.
    """
    document: dict[str, Any] = _find(name).recipe()
    return document


def _find(name: str) -> ModuleType:
    modules = _modules()
    module = modules.get(name.replace("_", "-"))
    if module is None:
        raise ConfigError(
            f"{unknown('recipe', name, modules)}; 'tardygrad recipes' lists them, and a file needs "
            "the ending .yaml"
        )
    return module


def _modules() -> dict[str, ModuleType]:
    """Recipe name to module; helpers of recipes have no ``recipe`` function."""
    found = (
        importlib.import_module(f"{__name__}.{info.name}")
        for info in pkgutil.iter_modules(__path__)
        if not info.ispkg
    )
    return {
        module.__name__.rpartition(".")[2].replace("_", "-"): module
        for module in found
        if hasattr(module, "recipe")
    }
