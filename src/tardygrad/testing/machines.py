"""Machines as values: each state that a machine can be in is kept once, under a number.

Theory of operation. A machine is pure: its state and an event decide its next state and its
effects. So each of its states is kept once (pickled, under a canonical form that says when two are
the same), and each answer to an event once: whoever searches all histories of several machines
together looks most answers up. A server is kept with the auditor of its shard, so that the state of
one is the state of both; a record that the auditor refuses is an answer that breaks an invariant.

Time stands still: every machine is always told 0.0. What waits for time is given patience of its
own by the searcher, and everything that is measured in seconds is the same in all states.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from tardygrad.data.fragments import FragmentPlan
from tardygrad.errors import InvariantViolation
from tardygrad.protocol import effects as ef
from tardygrad.protocol.invariants import Auditor
from tardygrad.protocol.ledger import Ledger
from tardygrad.protocol.scheduler import RUNNING, Scheduler
from tardygrad.protocol.silence import Silence

_PARTS_WITHOUT_ORDER = (Ledger, Auditor)
_TIMELESS = (FragmentPlan, Silence)
"""Nothing about them differs while time stands still."""
_LEFT_OUT = ("_handlers", "settings", "_plan", "plan", "_samples_in", "_balancer")


def canonical(value: Any) -> Hashable:
    """What is equal for two machines exactly if they will always do the same."""
    form: Hashable = _canonical(value, set())
    return form


def _canonical(value: Any, seen: set[int]) -> Any:
    kind = type(value)
    if kind in (int, str, float, bool, bytes) or value is None:
        return value
    if isinstance(value, tuple | list):
        return (kind.__name__, *(_canonical(v, seen) for v in value))
    if isinstance(value, set | frozenset):
        return ("set", *sorted(_canonical(v, seen) for v in value))
    if isinstance(value, dict):
        # In their order, which decides who is served first.
        return ("dict", *((_canonical(k, seen), _canonical(v, seen)) for k, v in value.items()))
    if isinstance(value, range) or callable(value) or kind in _TIMELESS or id(value) in seen:
        return None
    seen.add(id(value))
    slots = getattr(kind, "__slots__", ())
    fields = {name: getattr(value, name) for name in slots} if slots else vars(value)
    found = [(name, fields[name]) for name in sorted(fields) if name not in _LEFT_OUT]
    if isinstance(value, _PARTS_WITHOUT_ORDER):
        found = [(n, dict(sorted(v.items())) if type(v) is dict else v) for n, v in found]
    return (kind.__name__, *((name, _canonical(v, seen)) for name, v in found))


class Answer(NamedTuple):
    """What a machine made of an event: the number of its next state, and its effects.

    ``broken`` says which invariant that breaks, if one.
    """

    node: int
    effects: tuple[ef.Effect, ...]
    broken: str = ""


class Audited:
    """A server and the auditor that has read its shard's whole trace."""

    def __init__(self, machine: Any, auditor: Auditor) -> None:
        self.machine, self.auditor = machine, auditor

    def handle(self, event: Any, now: float) -> list[ef.Effect]:
        """The server's effects, each record among them audited."""
        effects: list[ef.Effect] = self.machine.handle(event, now)
        for effect in effects:
            record = getattr(effect, "record", None)
            if record is not None:
                self.auditor.feed(self.machine.shard, record)
        return effects


class Nodes:
    """All states of one kind of machine.

    Args:
        settings: of the machines, which all share them.
        plan: how the data is cut; it is left out of what is kept.
        look: what the searcher wants to know of a state without unpacking it; may raise
            ``InvariantViolation``.
    """

    def __init__(self, settings: Any, plan: FragmentPlan, look: Callable[[Any], Any]) -> None:
        self._settings, self._plan, self._look = settings, plan, look
        self._numbers: dict[Hashable, int] = {}
        self._packed: list[bytes] = []
        self._answers: dict[tuple[int, str, Any], Answer] = {}
        self.seen: list[Any] = []

    def __len__(self) -> int:
        return len(self._packed)

    def put(self, machine: Any) -> int:
        """The number of a machine's state."""
        form = canonical(machine)
        number = self._numbers.get(form)
        if number is None:
            number = self._numbers[form] = len(self._packed)
            self.seen.append(self._look(machine))
            self._packed.append(self._pack(machine))
        return number

    def take(self, node: int, settings: Any = None) -> Any:
        """A machine in that state, which the caller may change."""
        machine = pickle.loads(self._packed[node])
        inner = getattr(machine, "machine", machine)
        inner.settings = self._settings if settings is None else settings
        auditor = getattr(machine, "auditor", None)
        if auditor is not None:
            auditor._plan, auditor._samples_in = self._plan, self._plan.samples_in
        return machine

    def _pack(self, machine: Any) -> bytes:
        inner = getattr(machine, "machine", machine)
        auditor = getattr(machine, "auditor", None)
        inner.settings = None
        if auditor is not None:
            auditor._plan = auditor._samples_in = None
        return pickle.dumps(machine, pickle.HIGHEST_PROTOCOL)

    def answer(self, node: int, event: Any, settings: Any = None) -> Answer:
        """What a machine in that state makes of an event, under other ``settings`` if given."""
        key = (node, type(event).__name__ if settings is None else f"{settings}", event)
        found = self._answers.get(key)
        if found is None:
            found = self._answers[key] = self._compute(node, event, settings)
        return found

    def _compute(self, node: int, event: Any, settings: Any) -> Answer:
        machine = self.take(node, settings)
        try:
            effects = machine.handle(event, 0.0)
            return Answer(self.put(machine), tuple(effects))
        except InvariantViolation as error:
            return Answer(node, (), str(error))
        except Exception as error:  # a machine that raises anything else is broken too
            return Answer(node, (), f"{type(error).__name__}: {error}")


class Seen(NamedTuple):
    """What is to be known of a scheduler's state without unpacking it."""

    phase: str
    outcome: str
    reason: str
    may_save: bool
    fences: dict[tuple[int, int], int]
    """Of the fragments that are leased."""


def look_at_scheduler(machine: Scheduler) -> Seen:
    """What a search must know of a scheduler.

    Raises:
        InvariantViolation: its books contradict themselves.
    """
    machine.book.check()
    may_save = machine.phase == RUNNING and machine.serving and not machine.round.active
    fences = {(x.epoch, x.fragment): x.fence for x in machine.book.leases.values()}
    return Seen(machine.phase, machine.outcome, machine.reason, may_save, fences)


def look_at_server(unit: Audited) -> tuple[int, int, int]:
    """A server's incarnation, version and published clock."""
    machine = unit.machine
    return machine.incarnation, machine.version, machine._clocks.published
