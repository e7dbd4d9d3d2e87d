"""Messages as bytes: msgpack of the type's name and its fields, and nothing that runs code.

What cannot be decoded (random bytes, a wrong number or type of fields) gives None; the receiver
counts it and goes on. Whatever is decoded has been unsealed before (``seals``). Types are checked
all the way down, against the annotations of the message, because a machine may rely on what it is
given.

Between the main process and the scheduler's own, entries travel too (numbered events with their
times, also those that no peer may send), and the effects that answer them.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import msgpack

from tardygrad.engines.seals import MESSAGE_BYTES_MAX
from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev

_UNPACK_ERRORS = (ValueError, TypeError, KeyError, RecursionError, msgpack.UnpackException)

_Check = Callable[[Any], Any]


def _plain(kind: type) -> _Check:
    def check(value: Any) -> Any:
        if type(value) is not kind:
            raise TypeError(f"{value!r} is no {kind.__name__}")
        return value

    return check


def _each(check: _Check) -> _Check:
    def check_each(values: Any) -> Any:
        return tuple(check(value) for value in _plain(tuple)(values))

    return check_each


def _fields(checks: tuple[_Check, ...], make: Callable[[Any], Any]) -> _Check:
    def check_fields(values: Any) -> Any:
        pairs = zip(checks, _plain(tuple)(values), strict=True)
        return make(check(value) for check, value in pairs)

    return check_fields


def _value_of(values: tuple[Any, ...]) -> _Check:
    def check_value(value: Any) -> Any:
        if value not in values:
            raise ValueError(f"{value!r} is none of {values}")
        return value

    return check_value


def _one_of(kinds: tuple[Any, ...]) -> _Check:
    """Of several kinds of tuples each value names its own first; see ``_tagged``."""
    names = {kind.__name__: kind for kind in kinds}

    def check_one(value: Any) -> Any:
        name, *fields = value
        return _checked(names[name])(tuple(fields))

    return check_one


def _tagged(message: Any) -> tuple[Any, ...]:
    return (type(message).__name__, *message)


@functools.cache
def _checked(kind: Any) -> _Check:
    return _check(kind)


def _check(annotation: Any) -> _Check:
    """What takes a decoded value and gives it back as the annotation says, or raises."""
    if get_origin(annotation) is tuple:
        inner = get_args(annotation)
        if inner[-1] is Ellipsis:
            return _each(_check(inner[0]))
        return _fields(tuple(_check(a) for a in inner), tuple)
    if get_origin(annotation) in (Union, types.UnionType):
        return _one_of(get_args(annotation))
    if get_origin(annotation) is Literal:
        return _value_of(get_args(annotation))
    if get_origin(annotation) is dict:
        return _plain(dict)
    if hasattr(annotation, "_fields"):
        hints = get_type_hints(annotation)
        return _fields(tuple(_check(hints[name]) for name in annotation._fields), annotation._make)
    return _plain(annotation)


_TYPES: dict[str, _Check] = {kind.__name__: _check(kind) for kind in ev.MESSAGES}


def encode(message: ev.Event) -> bytes:
    """A message's bytes."""
    packed: bytes = msgpack.packb(_tagged(message))
    return packed


def decode(data: bytes) -> Any | None:
    """The message, or None if these bytes are none."""
    if len(data) > MESSAGE_BYTES_MAX:
        return None
    try:
        name, *fields = msgpack.unpackb(data, use_list=False, strict_map_key=False)
        return _TYPES[name](tuple(fields))
    except _UNPACK_ERRORS:
        return None


def decode_data(data: bytes) -> dict[str, Any] | None:
    """What is no message of the protocol but a table of counts; None if these bytes are none."""
    if len(data) > MESSAGE_BYTES_MAX:
        return None
    try:
        found = msgpack.unpackb(data, strict_map_key=False)
    except _UNPACK_ERRORS:
        return None
    return found if isinstance(found, dict) else None


# --- between the main process and the scheduler -----------------------------------------------


class Entry(NamedTuple):
    """An event for the scheduler: its number, and when it came (seconds of the engine's clock).

    ``done``: the newest entry whose effects were carried out by then.
    """

    number: int
    done: int
    now: float
    event: Any


_ENTRY = _fields(
    (_plain(int), _plain(int), _plain(float), _one_of(get_args(ev.Event))), Entry._make
)
_EFFECT = _one_of(get_args(ef.Effect))


def encode_entry(entry: Entry) -> bytes:
    """An entry's bytes."""
    packed: bytes = msgpack.packb((*entry[:-1], _tagged(entry.event)))
    return packed


def decode_entry(data: bytes) -> Entry | None:
    """The entry, or None if these bytes are none."""
    try:
        entry: Entry = _ENTRY(msgpack.unpackb(data, use_list=False))
    except _UNPACK_ERRORS:
        return None
    return entry


def plain_effects(effects: Sequence[ef.Effect]) -> list[tuple[Any, ...]]:
    """Effects of the scheduler as plain values for msgpack."""
    return [
        ("Send", effect.to, _tagged(effect.message)) if type(effect) is ef.Send else _tagged(effect)
        for effect in effects
    ]


def made_effects(values: Sequence[Any]) -> list[ef.Effect]:
    """The effects that ``plain_effects`` made plain, as ``msgpack.unpackb(..., use_list=False)``
    gives them.

    Raises:
        ValueError, TypeError, KeyError: they are none.
    """
    return [_EFFECT(value) for value in values]
