"""Messages as bytes: msgpack of the type's name and its fields, and nothing that runs code.

What cannot be decoded (random bytes, a wrong number or type of fields) gives None; the receiver
counts it and goes on. Whatever is decoded has been unsealed before (``seals``). Types are checked
all the way down, against the annotations of the message, because a machine may rely on what it is
given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args, get_origin, get_type_hints

import msgpack

from tardygrad.engines.seals import MESSAGE_BYTES_MAX
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


def _check(annotation: Any) -> _Check:
    """What takes a decoded value and gives it back as the annotation says, or raises."""
    if get_origin(annotation) is tuple:
        inner = get_args(annotation)
        if inner[-1] is Ellipsis:
            return _each(_check(inner[0]))
        return _fields(tuple(_check(a) for a in inner), tuple)
    if hasattr(annotation, "_fields"):
        hints = get_type_hints(annotation)
        return _fields(tuple(_check(hints[name]) for name in annotation._fields), annotation._make)
    return _plain(annotation)


_TYPES: dict[str, _Check] = {kind.__name__: _check(kind) for kind in ev.MESSAGES}


def encode(message: ev.Event) -> bytes:
    """A message's bytes."""
    packed: bytes = msgpack.packb([type(message).__name__, *message])
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
