"""Sections of settings: what all configuration classes have in common.

A section is a frozen pydantic model that takes nothing for something else: types are strict,
unknown keys, infinities and NaN are refused.  Pydantic's own errors speak to programmers and take
several lines each; here they become one line for each problem, ``path.to.key: what is wrong``, with
the nearest valid key for an unknown one.

A ``Section`` that stands inside another leaves that to the outermost.  A class that is parsed on
its own, such as the whole configuration or a method, derives from ``Document`` and raises
``ConfigError`` whoever builds it and however.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from tardygrad.errors import ConfigError, nearest, unknown

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails


_ARGUMENTS = ("lr", "momentum", "nesterov", "dampening", "betas", "eps", "amsgrad")
_OF_THE_METHOD = (
    *("optimizer", "schedule", "staleness", "consistency", "exchange_period", "in_flight", "codec"),
    *("mixing", "weight_decay", "clip_norm", "clip_value", "balance", "exchange_schedule"),
)
FAMILIAR = {
    **{name: f"method.optimizer.arguments.{name}" for name in _ARGUMENTS},
    "learning_rate": "method.optimizer.arguments.lr",
    **{name: f"method.{name}" for name in _OF_THE_METHOD},
}
"""Names that people look for elsewhere, and where they stand in the whole configuration."""

UNION_TAGS = ("list", "one")
"""Tags of unions without a discriminating key; error messages leave them out."""

_PLAIN_WORDS = (
    (r"^Input should be", "expected"),
    (r"a valid integer", "a whole number"),
    (r"a valid boolean", "true or false"),
    (r"a valid string", "a text"),
    (r"a valid (tuple|list)", "a list"),
    (r"a valid ", "a "),
    (r"a dictionary( or object to extract fields from)?", "a section (key: value pairs)"),
    (r"expected (greater|less)", r"expected a number \1"),
    (r"^(Tuple|List) should have at least (\d+) item.*", r"expected at least \2 in the list"),
)
"""Pydantic's words, in this order, and what people read instead."""


class Section(BaseModel):
    """A group of settings: frozen, strict, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def named(section: Any) -> Any:
    """A section with a name; a bare text is that name."""
    return {"name": section} if isinstance(section, str) else section


class Document(Section):
    """A section that is parsed on its own and raises ``ConfigError`` for whatever is wrong."""

    where: ClassVar[str] = ""
    """Where the section stands in the whole configuration; the beginning of every message."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError("\n".join(_problems(type(self), error))) from None

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """An instance made of a dict.

        Raises:
            ConfigError: something is wrong; one line for each problem.
        """
        if isinstance(obj, Mapping):
            for key in obj:
                if not isinstance(key, str):
                    where = f"{cls.where}: " if cls.where else ""
                    raise ConfigError(f"{where}expected a text as the key, got {_shorten(key)}")
        try:
            return super().model_validate(obj, **options)
        except ValidationError as error:
            raise ConfigError("\n".join(_problems(cls, error))) from None


def _problems(cls: type[Document], error: ValidationError) -> Iterator[str]:
    """One line for each problem, ``path.to.key: what is wrong``.

    Unknown keys come first: a misspelt key is often the cause of a missing one.
    """
    found = error.errors(include_url=False, include_context=True)
    for details in sorted(found, key=lambda details: details["type"] != "extra_forbidden"):
        path, section = _locate(cls, details)
        where = ".".join(part for part in (cls.where, *path) if part)
        if details["type"] == "extra_forbidden":
            message = f"unknown key ({_hint(cls, section, path[-1])})"
        elif details["type"] == "missing":
            message = f"missing; {_describe(section, path[-1])}"
        else:
            message = _message(details)
        yield " ".join((f"{where}: {message}" if where else message).split())


def _hint(cls: type[Document], section: type[BaseModel] | None, key: str) -> str:
    """What the key should perhaps be: the same key elsewhere, or the most similar one here."""
    keys = list(_keys(section)) if section is not None else []
    match = find(cls, key) or nearest(key, keys)
    return f"did you mean {match!r}?" if match else f"valid: {', '.join(sorted(keys))}"


def find(cls: type[Document], key: str) -> str | None:
    """Where ``key`` stands in the whole configuration, if there is one such place."""
    elsewhere = list(_paths_to(cls, key))
    outermost = min((path.count(".") for path in elsewhere), default=0)
    candidates = [path for path in elsewhere if path.count(".") == outermost]
    if len(candidates) == 1:
        return ".".join(part for part in (cls.where, candidates[0]) if part)
    return FAMILIAR.get(key)


def _paths_to(section: type[BaseModel], key: str) -> Iterator[str]:
    """Paths that end in ``key``, through sections that are not one of several alternatives."""
    for name, field in _keys(section).items():
        if name == key:
            yield name
        inside = list(_sections_in(field.annotation))
        if len(inside) == 1 and get_origin(field.annotation) is None:
            yield from (f"{name}.{path}" for path in _paths_to(inside[0], key))


def _locate(
    cls: type[BaseModel], details: ErrorDetails
) -> tuple[list[str], type[BaseModel] | None]:
    """Where a problem is: the path of keys, and the section in which the last of them stands.

    Pydantic names the chosen member of a union in between; people never wrote that.
    """
    path: list[str] = []
    section: type[BaseModel] | None = cls
    inside: list[type[BaseModel]] = [cls]
    field: FieldInfo | None = None
    loc = details["loc"]
    for depth, part in enumerate(loc):
        is_key = any(part in _keys(candidate) for candidate in inside)
        is_typo = details["type"] == "extra_forbidden" and depth == len(loc) - 1
        if isinstance(part, str) and not is_key and not is_typo:
            chosen = [candidate for candidate in inside if _is_tagged(candidate, part)]
            if chosen:
                inside = chosen
                continue
            # The members of a union of numbers and lists have no class; a dict's keys are its own.
            if (
                part in UNION_TAGS
                and field is not None
                and get_origin(field.annotation) is not dict
            ):
                continue
        path.append(str(part))
        if isinstance(part, int):
            continue
        section = inside[0] if inside else None
        field = _keys(section).get(part) if section is not None else None
        inside = list(_sections_in(field.annotation)) if field is not None else []
    return path, section


def _keys(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """The keys of a section as people write them."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def _is_tagged(section: type[BaseModel], tag: str) -> bool:
    """Whether a union knows the section by ``tag``: the default of a Literal, or a fixed word."""
    return tag in UNION_TAGS or any(
        field.default == tag and get_origin(field.annotation) is Literal
        for field in section.model_fields.values()
    )


def _sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The section classes in an annotation such as ``tuple[Fault, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for argument in get_args(annotation):
            yield from _sections_in(argument)


def _describe(section: type[BaseModel] | None, key: str) -> str:
    field = _keys(section).get(key) if section is not None else None
    for kind in _sections_in(field.annotation) if field is not None else ():
        return f"it is a section with {', '.join(_keys(kind))}"
    return "it has no default, so it must be given"


def _message(details: ErrorDetails) -> str:
    """Pydantic's sentence as "expected X, got Y"."""
    value = details["input"]
    context = details.get("ctx", {})
    if details["type"] == "value_error":
        message = str(context["error"])
        if "got" in message or isinstance(value, Mapping | Section):
            return message
        return f"{message}, got {_shorten(value)}"
    if details["type"] == "union_tag_invalid":
        tags = [tag.strip("'") for tag in context["expected_tags"].split(", ")]
        return unknown(context["discriminator"].strip("'"), context["tag"], tags)
    if details["type"] == "union_tag_not_found":
        key = context["discriminator"].strip("'")
        return f"expected a section with a {key}, got {_shorten(value)}"
    if details["type"] == "model_type":
        return f"expected a section (key: value pairs), got {_shorten(value)}"
    message = details["msg"]
    for pattern, plain in _PLAIN_WORDS:
        message = re.sub(pattern, plain, message)
    return f"{message}, got {_shorten(value)}"


def _shorten(value: Any, width: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."
