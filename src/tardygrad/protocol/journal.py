"""The scheduler's journal: what it was told, so that a new process goes on where the last one was.

Theory of operation. The scheduler is deterministic: the same events, each with its time, lead to
the same state and ask for the same effects. So its journal is a *base* (a state, or nothing: the
beginning) and the *entries* since then: numbered events, each written before the machine handles
it. Whoever reads base and entries is the scheduler again.

The other side is the *supervisor*, who numbers the events, carries out the effects and outlives the
scheduler. It keeps every entry that is not in a base yet. When the scheduler has died, the
journal's end may be torn or damaged; that is cut off, the supervisor tells again what is missing
there, and skips the effects that it has carried out already, by their number. So each event is
handled once and each effect carried out once, wherever the scheduler died.

Records are ``length | crc32 | payload``; the checksum covers the length too, so that a run of zeros
is no record.
"""

from __future__ import annotations

import dataclasses
import io
import pickle
import struct
import zlib
from collections import defaultdict, deque
from collections.abc import Iterator
from typing import Any

from tardygrad.protocol.scheduler import Scheduler
from tardygrad.protocol.scheduler_settings import SchedulerSettings

_HEADER = struct.Struct("<II")
_LENGTH = struct.Struct("<I")
_OURS = "tardygrad."
# What is made anew from the settings, and holds the machine's own methods.
_NO_STATE = ("_handlers",)


# --- records ----------------------------------------------------------------------------------


def record(payload: bytes) -> bytes:
    """The bytes of one record."""
    length = _LENGTH.pack(len(payload))
    return length + _LENGTH.pack(zlib.crc32(payload, zlib.crc32(length))) + payload


def scan(data: bytes | bytearray) -> Iterator[tuple[bytes, int]]:
    """The whole records at the beginning of ``data``: each one's payload, and where it ends.

    Stops at the first that is torn or whose checksum is wrong.
    """
    view, at = memoryview(data), 0
    while at + _HEADER.size <= len(view):
        length, checksum = _HEADER.unpack_from(view, at)
        end = at + _HEADER.size + length
        if end > len(view):
            return
        payload = view[end - length : end]
        if zlib.crc32(payload, zlib.crc32(view[at : at + _LENGTH.size])) != checksum:
            return
        yield bytes(payload), end
        at = end


# --- states -----------------------------------------------------------------------------------


def freeze(machine: Scheduler) -> bytes:
    """The machine's state as bytes."""
    return pickle.dumps({k: v for k, v in vars(machine).items() if k not in _NO_STATE}, 5)


def thaw(settings: SchedulerSettings, state: bytes) -> Scheduler:
    """The machine of a frozen state; an empty one is that of the beginning.

    Only objects of this package are made: the file is a run's own, but files get about.

    Raises:
        ValueError: these bytes are no state.
    """
    machine = Scheduler(settings)
    if state:
        try:
            vars(machine).update(_Unpickler(io.BytesIO(state)).load())
        except Exception as error:
            raise ValueError(f"not a state of the scheduler ({error})") from error
    return machine


_PLAIN: dict[tuple[str, str], type] = {
    ("builtins", "range"): range,
    ("collections", "deque"): deque,
    ("collections", "defaultdict"): defaultdict,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name) if module.startswith(_OURS) else None
        if (module, name) in _PLAIN:
            return _PLAIN[module, name]
        if not isinstance(found, type) or not found.__module__.startswith(_OURS):
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a state")
        return found


def state_of(machine: Scheduler) -> Any:
    """All of the machine's state as plain values: equal ones mean equal machines.

    What one object is in two places is so here too; the order within dicts counts, that of sets
    does not.
    """
    state = {k: v for k, v in vars(machine).items() if k not in _NO_STATE}
    return _plain(state, {})


def _plain(value: Any, seen: dict[int, int]) -> Any:
    if isinstance(value, dict):
        return ("dict", [(_plain(k, seen), _plain(v, seen)) for k, v in value.items()])
    if isinstance(value, set | frozenset):
        return ("set", sorted(repr(_plain(v, seen)) for v in value))
    if isinstance(value, list | tuple | deque):
        return (type(value).__name__, [_plain(v, seen) for v in value])
    fields = _fields(value)
    if not fields:
        return value
    if id(value) in seen:
        return ("again", seen[id(value)])
    seen[id(value)] = len(seen)
    return (type(value).__name__, [(name, _plain(v, seen)) for name, v in fields.items()])


def _fields(value: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(value):
        # Without what is only remembered of a computation.
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    names = [n for kind in type(value).__mro__ for n in getattr(kind, "__slots__", ())]
    fields = {n: getattr(value, n) for n in names if hasattr(value, n)}
    return fields | getattr(value, "__dict__", {})


# --- the supervisor's side --------------------------------------------------------------------


class Entries:
    """The events that the scheduler is told: their numbers, and which effects are carried out.

    ``number`` is the newest entry's, ``done`` the newest one's whose effects are carried out.
    """

    def __init__(self) -> None:
        self.number = 0
        self.done = 0
        self._kept: deque[bytes] = deque()
        self._before = 0

    @property
    def behind(self) -> bool:
        """Whether the scheduler owes an answer."""
        return self.done < self.number

    def keep(self, data: bytes) -> None:
        """The next entry's record."""
        self.number += 1
        self._kept.append(data)

    def since(self, number: int) -> list[bytes] | None:
        """The records after entry ``number``; None if some of them are not kept any more."""
        if not self._before <= number <= self.number:
            return None
        return list(self._kept)[number - self._before :]

    def forget(self, number: int) -> None:
        """A base holds everything up to entry ``number``."""
        while self._before < number:
            self._before += 1
            self._kept.popleft()

    def takes(self, number: int) -> bool:
        """Whether the effects of entry ``number`` are to be carried out, which is now done."""
        if number <= self.done:
            return False
        self.done = number
        return True
