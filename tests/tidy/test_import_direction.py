"""A module imports only from layers to its left, and the pure ones import nothing impure.

Imports are read from the source, those inside functions included.  What stands under ``if
TYPE_CHECKING`` names a type and makes no dependency at run time, so it may point anywhere within
the package; a module that is forbidden by name stays forbidden there.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src"

# From left to right; those in one row are siblings and do not import each other.
LAYERS = (
    ("errors",),
    ("documents", "families", "sections"),
    ("simulation_settings",),
    ("config",),
    ("layout", "admission", "balancing", "consistency", "staleness", "turns", "data"),
    ("codecs",),
    ("methods",),
    ("protocol",),
    ("models", "storage", "metrics"),
    ("engines",),
    ("callbacks", "auditing", "copies", "crewing", "exporting", "fitting", "reshaping"),
    ("observer", "preflight", "resuming"),
    ("training",),
    ("replaying", "comparing", "chaos"),
    ("recipes", "testing"),
    ("api", "cli"),
    ("__main__",),
)
RANK = {name: rank for rank, row in enumerate(LAYERS) for name in row}

# Narrower than their place in the row.
ONLY = {"metrics": {"errors", "documents", "sections", "config"}}

IMPURE = {
    "asyncio",
    "concurrent",
    "multiprocessing",
    "random",
    "secrets",
    "select",
    "selectors",
    "signal",
    "socket",
    "subprocess",
    "threading",
    "time",
    "zmq",
    "ray",
    "keras",
}
FORBIDDEN = {"codecs": IMPURE, "methods": IMPURE, "protocol": IMPURE | {"torch"}}

# `tardygrad --help` must not wait for these, nor a command that only reads a run, and the pure core
# must not reach them by any way.
SLOW = {"torch", "torchvision", "matplotlib", "scipy", "tensorboard", "keras", "ray"}
QUICK = (
    *("__init__", "__main__", "cli", "recipes.__init__"),
    *("errors", "config", "layout", "consistency", "staleness", "protocol"),
    *("storage", "metrics"),
)
OPTIONAL = {"matplotlib", "scipy", "tensorboard", "torch.utils.tensorboard"}

ENGINES = {"inline", "processes", "ray"}


@dataclass(frozen=True)
class Import:
    """One imported module: ``target`` by its full name, ``runs`` when the importer is imported."""

    target: str
    line: int
    runs: bool
    only_types: bool


Modules = Mapping[str, ast.Module]
"""Parsed sources by name: ``tardygrad.data.__init__``, ``tardygrad.data.mnist``, ..."""


@functools.cache
def read_tree(source: Path) -> dict[str, ast.Module]:
    paths = sorted((source / "tardygrad").rglob("*.py"))
    return {
        ".".join(path.relative_to(source).with_suffix("").parts): ast.parse(
            path.read_text(encoding="utf-8"), str(path)
        )
        for path in paths
    }


def imports(name: str, modules: Modules) -> list[Import]:
    """All imports of module ``name``; of a submodule, if that is what a ``from`` names."""
    return [
        Import(target, node.lineno, runs, only_types)
        for node, runs, only_types in _import_nodes(modules[name], runs=True, only_types=False)
        for target in _targets(node, name, modules)
    ]


def _import_nodes(
    node: ast.AST, *, runs: bool, only_types: bool
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool, bool]]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node, runs and not only_types, only_types
    elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        for guarded in node.body:
            yield from _import_nodes(guarded, runs=runs, only_types=True)
        for other in node.orelse:
            yield from _import_nodes(other, runs=runs, only_types=only_types)
    else:
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from _import_nodes(child, runs=runs and not inside, only_types=only_types)


def _targets(node: ast.Import | ast.ImportFrom, name: str, modules: Modules) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        # A package's own name ends in __init__, so one level up is the same for both.
        above = name.split(".")[: -node.level]
        base = ".".join([*above, base] if base else above)
    for alias in node.names:
        below = f"{base}.{alias.name}"
        known = below in modules or f"{below}.__init__" in modules
        # Outside the package nobody knows, and the longer name tells more.
        yield below if known or not base.startswith("tardygrad") else base


def layer(module: str) -> str:
    """``tardygrad.data.mnist`` -> ``data``; the package itself -> ``__init__``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def is_below(module: str, name: str) -> bool:
    return module == name or module.startswith(f"{name}.")


def wrong_direction(modules: Modules) -> Iterator[str]:
    """Imports from the right, from a sibling, or by a module that has no place."""
    for name in modules:
        own = layer(name)
        if own == "__init__":
            continue
        if own not in RANK:
            yield f"{name}: {own!r} has no place in LAYERS of {Path(__file__).name}: give it one"
            continue
        for found in imports(name, modules):
            other = layer(found.target)
            if not is_below(found.target, "tardygrad") or found.only_types or other == own:
                continue
            where = f"{name}:{found.line} imports {found.target}"
            if other == "__init__":
                # The package imports its parts when asked, so for its version alone this is safe.
                if RANK[own] < RANK["training"]:
                    yield f"{where}: the public package stands right of all its parts"
            elif other not in RANK:
                yield f"{where}: {other!r} has no place in LAYERS"
            elif RANK[other] >= RANK[own]:
                yield f"{where}: {other!r} is not left of {own!r} in LAYERS"
            elif other not in ONLY.get(own, {other}):
                yield f"{where}: {own!r} may import only {', '.join(sorted(ONLY[own]))}"


def impure(modules: Modules) -> Iterator[str]:
    """What has I/O, a clock or randomness, where nothing of the kind belongs."""
    for name in modules:
        for found in imports(name, modules):
            for forbidden in sorted(FORBIDDEN.get(layer(name), set())):
                if is_below(found.target, forbidden):
                    yield f"{name}:{found.line} imports {found.target}: {layer(name)!r} never does"


def sibling_imports(modules: Modules) -> Iterator[str]:
    """Methods, codecs and engines are found by name: none of them knows another of its kind."""
    for name in modules:
        for found in imports(name, modules):
            if found.target == name or found.only_types:
                continue
            if layer(name) == "methods" and _is_method(found.target, modules):
                yield f"{name}:{found.line} imports the method {found.target}: share through rules"
            if layer(name) == "codecs" and _is_codec(found.target, modules):
                yield f"{name}:{found.line} imports the codec {found.target}: share through base"
            own, other = _engine(name), _engine(found.target)
            if own and other and own != other:
                yield f"{name}:{found.line} imports {found.target}: engines share through base"


def _is_method(module: str, modules: Modules) -> bool:
    """A file in methods/ that defines a subclass of Method."""
    shared = module.endswith(".base") or ".rules." in module
    return layer(module) == "methods" and not shared and _defines(module, "Method", modules)


def _is_codec(module: str, modules: Modules) -> bool:
    """A file in codecs/ that defines a subclass of Codec."""
    shared = module.endswith(".base")
    return layer(module) == "codecs" and not shared and _defines(module, "Codec", modules)


def _defines(module: str, kind: str, modules: Modules) -> bool:
    return module in modules and any(
        isinstance(node, ast.ClassDef)
        and any(ast.unparse(base).endswith(kind) for base in node.bases)
        for node in modules[module].body
    )


def _engine(module: str) -> str | None:
    """``tardygrad.engines.processes_main`` -> ``processes``; None for what all engines share."""
    parts = module.split(".")
    if len(parts) < 3 or parts[1] != "engines":
        return None
    family = parts[2].split("_")[0]
    return family if family in ENGINES else None


def slow_at_import(modules: Modules, start: Iterable[str]) -> Iterator[str]:
    """Ways by which importing ``start`` imports something slow, each as a chain of modules."""
    chains: dict[str, tuple[str, ...]] = {name: (name,) for name in modules if _starts(name, start)}
    queue = list(chains)
    while queue:
        name = queue.pop(0)
        for found in imports(name, modules):
            if not found.runs:
                continue
            if found.target.split(".")[0] in SLOW:
                yield f"{' -> '.join(chains[name])}:{found.line} imports {found.target}"
            for reached in _executed(found.target, modules):
                if reached not in chains:
                    chains[reached] = (*chains[name], reached)
                    queue.append(reached)


def _starts(name: str, start: Iterable[str]) -> bool:
    return any(is_below(name, f"tardygrad.{module}") for module in start)


def _executed(target: str, modules: Modules) -> Iterator[str]:
    """Importing a.b.c runs a, a.b and a.b.c."""
    parts = target.split(".")
    for end in range(1, len(parts) + 1):
        prefix = ".".join(parts[:end])
        yield from (name for name in (f"{prefix}.__init__", prefix) if name in modules)


def optional_at_import(modules: Modules) -> Iterator[str]:
    """Packages of extras, imported where a user without that extra would trip over it."""
    for name in modules:
        for found in imports(name, modules):
            if found.runs and any(is_below(found.target, package) for package in OPTIONAL):
                yield f"{name}:{found.line} imports {found.target}: do it inside the function"


def complain(problems: Iterable[str]) -> None:
    found = list(problems)
    assert not found, "\n" + "\n".join(found)


def test_imports_go_left() -> None:
    complain(wrong_direction(read_tree(SOURCE)))


def test_pure_modules_import_nothing_impure() -> None:
    complain(impure(read_tree(SOURCE)))


def test_siblings_do_not_know_each_other() -> None:
    complain(sibling_imports(read_tree(SOURCE)))


def test_help_does_not_wait_for_torch() -> None:
    complain(slow_at_import(read_tree(SOURCE), QUICK))


def test_extras_are_imported_when_used() -> None:
    complain(optional_at_import(read_tree(SOURCE)))


def tree(sources: Mapping[str, str]) -> dict[str, ast.Module]:
    return {f"tardygrad.{name}": ast.parse(text) for name, text in sources.items()}


def test_direction_on_samples() -> None:
    base = {"__init__": "", "errors": "", "engines.__init__": "", "engines.inline": ""}
    good = {
        **base,
        "engines.base": "from tardygrad.errors import A\nfrom tardygrad.engines import inline",
        "config": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n  import tardygrad.cli",
        "cli.__init__": "from tardygrad import engines, something\nimport json",
    }
    assert list(wrong_direction(tree(good))) == []
    for text, reason in {
        "from tardygrad.engines import X": "'engines' is not left of 'models'",
        "def f():\n  from tardygrad import engines": "'engines' is not left of 'models'",
        "from ..engines.inline import Y": "imports tardygrad.engines.inline: 'engines' is not",
        "import tardygrad.storage.atomic": "'storage' is not left of 'models'",
        "from tardygrad import train": "the public package stands right",
        "import tardygrad.novelty": "'novelty' has no place in LAYERS",
    }.items():
        [problem] = wrong_direction(tree({**base, "models.torch": text}))
        assert reason in problem, problem
    [problem] = wrong_direction(tree({**base, "surprise": ""}))
    assert "'surprise' has no place" in problem
    [problem] = wrong_direction(tree({**base, "metrics.x": "import tardygrad.layout"}))
    assert "'metrics' may import only config, " in problem


def test_purity_on_samples() -> None:
    good = {"protocol.a": "import struct, timeit", "methods.a": "import torch"}
    assert list(impure(tree({**good, "engines.a": "import time"}))) == []
    for text in (
        "import time",
        "import torch.nn",
        "def f():\n  from threading import Lock",
        "if TYPE_CHECKING:\n  import torch",
    ):
        assert len(list(impure(tree({"protocol.a": text})))) == 1, text


def test_siblings_on_samples() -> None:
    methods = {
        "methods.base": "class Method: ...",
        "methods.one": "from tardygrad.methods.base import Method\nclass One(Method): ...",
        "methods.two": "import tardygrad.methods.schedules\nclass Two(base.Method): ...",
        "methods.schedules": "class Constant: ...",
    }
    assert list(sibling_imports(tree(methods))) == []
    methods["methods.schedules"] = "from .one import One"
    [problem] = sibling_imports(tree(methods))
    assert problem.startswith("tardygrad.methods.schedules:1 imports the method tardygrad.methods.")
    codecs = {"codecs.a": "class A(LossyCodec): ...", "codecs.b": "from tardygrad.codecs import a"}
    assert len(list(sibling_imports(tree(codecs)))) == 1
    engines = {"engines.inline": "", "engines.base": "", "engines.processes_main": ""}
    engines["engines.processes"] = "from tardygrad.engines import base, processes_main"
    assert list(sibling_imports(tree(engines))) == []
    engines["engines.processes_main"] = "from tardygrad.engines import inline"
    assert len(list(sibling_imports(tree(engines)))) == 1


def test_slowness_on_samples() -> None:
    texts = {
        "__init__": "",
        "cli.__init__": "from tardygrad.cli import parser\nfrom tardygrad.data import fragments",
        "cli.parser": "def f():\n  import torch",
        "data.__init__": "if TYPE_CHECKING:\n  import torch",
        "data.fragments": "import numpy",
        "models.__init__": "import torch",
    }
    assert list(slow_at_import(tree(texts), QUICK)) == []
    texts["data.__init__"] = "try:\n  import torch.nn\nexcept ImportError: pass"
    [problem] = slow_at_import(tree(texts), QUICK)
    assert problem == "tardygrad.cli.__init__ -> tardygrad.data.__init__:2 imports torch.nn"


def test_extras_on_samples() -> None:
    good = "import torch\ndef f():\n  import scipy.io"
    assert list(optional_at_import(tree({"metrics.a": good}))) == []
    for text in ("from matplotlib import pyplot", "from torch.utils.tensorboard import Writer"):
        assert len(list(optional_at_import(tree({"metrics.a": text})))) == 1, text
