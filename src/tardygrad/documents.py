"""Configuration documents: plain dicts, read from YAML, merged, overridden, written again.

The YAML is that of version 1.2's core schema and not the older one that PyYAML follows: ``1e-4`` is
a number, ``no`` and ``on`` are texts, ``2024-01-31`` and ``12:30`` are texts.  A key that stands
twice in a mapping is an error, since one of the two would be ignored; so is a key that is not a
text, since it would come back as one.  What is written here reads back equal.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from tardygrad.errors import ConfigError, UsageError

_DEEPEST = 50
"""Levels of sections and lists: far more than anybody needs, far fewer than Python can recurse."""

_TEXT = "tag:yaml.org,2002:str"
_KINDS = {list: "a list", str: "a text", int: "a number", float: "a number"}

_RESOLVERS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._depth += 1
        if self._depth > _DEEPEST and parent is not None:
            problem = f"nested more than {_DEEPEST} levels deep"
            raise yaml.composer.ComposerError(None, None, problem, parent.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # the safe loader refuses it, with a better message
            key = key_node.value
            if key_node.tag != _TEXT:
                problem = (
                    f"the key {key or 'null'} is not a text; if it is meant, quote it: '{key}'"
                )
            elif key in seen:
                problem = f"the key {key!r} stands here twice"
            else:
                seen.add(key)
                continue
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """Quoted with escapes where anything invisible is in it: PyYAML loses some of that else."""
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar(_TEXT, text, style=style)


_Dumper.add_representer(str, _represent_text)
for _tag, (_pattern, _first) in _RESOLVERS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first
        )


def load_config(path: Path) -> dict[str, Any]:
    """The document that the YAML file ``path`` holds.

    Raises:
        UsageError: the file cannot be read.
        ConfigError: it is not YAML, or not a mapping of settings.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise UsageError(f"cannot read the configuration {str(path)!r}: {reason}") from None
    document = parse(text, str(path))
    if not isinstance(document, dict):
        found = "nothing" if document is None else _KINDS.get(type(document), repr(document))
        raise ConfigError(f"{path}: expected settings (key: value lines), found {found}")
    return document


def parse(text: str, where: str) -> Any:
    """The value that a piece of YAML denotes; ``where`` is named in errors.

    Raises:
        ConfigError: it is not YAML, or an unknown tag stands in it.
    """
    try:
        return yaml.load(text, _Loader)  # a safe loader: it builds nothing but plain data
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark is not None else ""
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise ConfigError(f"{where}:{line} {' '.join(problem.split())}") from None


def dump(document: Mapping[str, Any], comment: str = "") -> str:
    """The document as YAML in its own order, under ``comment`` behind ``#`` signs."""
    head = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
    body = yaml.dump(dict(document), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return head + str(body)


def merge(document: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``document`` in which ``changes`` prevail; mappings merge key by key.

    Everything that is not a mapping in both is replaced as a whole. So are sections that ``name``
    different choices: the settings of one mean nothing to another.
    """
    merged = copy.deepcopy(dict(document))
    for key, value in changes.items():
        before = merged.get(key)
        if not isinstance(before, Mapping) or not isinstance(value, Mapping):
            merged[key] = copy.deepcopy(value)
        elif "name" in before and value.get("name", before["name"]) != before["name"]:
            merged[key] = copy.deepcopy(dict(value))
        else:
            merged[key] = merge(before, value)
    return merged


def override(document: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """A copy of ``document`` with ``path.to.key=value`` assignments made in their order.

    The value is read as YAML and replaces what was there.  Sections that are not there yet are
    made; a text is the name of the section that a longer path asks for; a number in the path is an
    index where the document has a list.

    Raises:
        ConfigError: an assignment has no ``=``, its value is not YAML, or its path leads through
            something that is not a section.
    """
    changed = copy.deepcopy(dict(document))
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise ConfigError(f"--set {assignment}: expected path.to.key=value, such as workers=2")
        if len(keys) > _DEEPEST:
            raise ConfigError(f"--set {keys[0]}. ...: nested more than {_DEEPEST} levels deep")
        _assign(changed, keys, parse(text, f"--set {assignment}"), assignment)
    return changed


def parse_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """``path.to.key=value`` assignments as a nested dict, to be merged into a document later.

    >>> parse_overrides(["workers=2", "method.learning_rate=1e-2"])
    {'workers': 2, 'method': {'learning_rate': 0.01}}
    """
    return override({}, assignments)


def _assign(document: dict[str, Any], keys: list[str], value: Any, assignment: str) -> None:
    here: Any = document
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(here, list):
            if not key.isdecimal() or int(key) >= len(here):
                raise ConfigError(
                    f"--set {assignment}: {'.'.join(keys[:depth])} is a list; expected an index "
                    f"from 0 to {len(here) - 1}, got {key!r}"
                )
            index = int(key)
            if last:
                here[index] = value
            here = here[index]
        elif isinstance(here, dict):
            if last:
                here[key] = value
            elif isinstance(here.get(key), str):
                here[key] = {"name": here[key]}
            here = here.setdefault(key, {})
        else:
            raise ConfigError(
                f"--set {assignment}: {'.'.join(keys[:depth])} is {here!r} and has no keys; "
                f"set it as a whole"
            )
