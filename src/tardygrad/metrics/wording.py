"""Events in words: how numbers and notable events read in every view.

Pure functions of one event, shared by the live view and the plain lines, so that both say the same
thing the same way.  Missing and null fields read as a dash: an old or a cut-off log still shows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

Tone: TypeAlias = Literal["good", "bad", "info"]

MISSING = "-"

_EVALUATE_FIELDS = frozenset({"event", "time_s", "epoch", "samples", "loss", "at_s", "final"})
_BYTES = ("B", "kB", "MB", "GB", "TB")


class Notice(NamedTuple):
    """One notable event: a short line and how it is meant."""

    text: str
    tone: Tone


def number(value: Any, form: str) -> str:
    """``value`` by a format specification; a dash if it is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return MISSING
    return format(value, form)


def loss(value: Any) -> str:
    """A loss to four decimals, or in powers of ten where these would show nothing."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return number(value, "")
    return f"{value:.4f}" if value == 0 or 0.01 <= abs(value) < 10_000 else f"{value:.3e}"


def rate(value: Any) -> str:
    """Samples per second without decimals, with them if they are few."""
    few = isinstance(value, int | float) and 0 < abs(value) < 10
    return number(value, ",.1f" if few else ",.0f")


def metric(name: str, value: Any) -> str:
    """A metric's value: accuracies in per cent, anything else in four significant digits."""
    fraction = isinstance(value, int | float) and 0 <= value <= 1
    if fraction and name.endswith("accuracy"):
        return f"{100 * value:.2f} %"
    return number(value, ".4g")


def duration(seconds: Any) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return MISSING
    minutes, rest = divmod(int(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(count: Any) -> str:
    """A number of bytes in the unit that fits."""
    if not isinstance(count, int | float):
        return MISSING
    value = float(count)
    for unit in _BYTES[:-1]:
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} {_BYTES[-1]}"


def plural(count: Any, noun: str) -> str:
    """``1 worker``, ``4 workers``."""
    return f"{number(count, ',')} {noun}{'' if count == 1 else 's'}"


def method(value: Any) -> str:
    """The method's name, from its name or from its section of the configuration."""
    if isinstance(value, Mapping):
        value = value.get("name")
    return str(value) if value else MISSING


def metrics(event: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of an ``evaluate`` event other than the loss, in their order."""
    return {
        name: value
        for name, value in event.items()
        if name not in _EVALUATE_FIELDS
        and isinstance(value, int | float)
        and not isinstance(value, bool)
    }


def restarts(incarnation: Any) -> int:
    """How often a member's slot was filled again in this stretch of the run, from its incarnation.

    Each resume of a run begins its incarnations at the next multiple of 1,024
    (``protocol.scheduler``), so that none is ever used twice.
    """
    return incarnation % 1024 if isinstance(incarnation, int) else 0


def resumed(start: Mapping[str, Any]) -> str:
    """Where a resumed run goes on, as the beginning of a line; nothing for a new run."""
    if not start.get("incarnation"):
        return ""
    if start.get("samples"):
        return f"resumed at {number(start['samples'], ',')} samples: "
    return "begun again, since there was no checkpoint yet: "


def notice(event: Mapping[str, Any]) -> Notice | None:
    """What an event says if it is notable; None for those that are routine."""
    describe = {
        "member": _member,
        "epoch": _epoch,
        "evaluate": _evaluate,
        "checkpoint": _checkpoint,
        "run_end": _run_end,
    }.get(str(event.get("event")))
    return describe(event) if describe is not None else None


def _member(event: Mapping[str, Any]) -> Notice | None:
    who = f"{event.get('kind', 'member')} {event.get('id', '?')}"
    restart = restarts(event.get("incarnation"))
    said: dict[str, tuple[str, Tone]] = {
        "died": (f"{who} died", "bad"),
        "suspected": (f"{who} does not answer", "bad"),
        "put_aside": (f"{who} is put aside", "bad"),
        "leaving": (f"{who} is to leave", "info"),
    }
    state = event.get("state")
    if state == "ready" and restart:
        said["ready"] = (f"{who} is back (restart {restart})", "good")
    if state not in said:
        return None
    text, tone = said[state]
    reason = event.get("reason")
    return Notice(f"{text}: {reason}" if reason else text, tone)


def _epoch(event: Mapping[str, Any]) -> Notice:
    samples = number(event.get("samples"), ",")
    return Notice(
        f"epoch {event.get('epoch', '?')} done: train loss {loss(event.get('loss'))}, "
        f"{samples} samples so far",
        "info",
    )


def _evaluate(event: Mapping[str, Any]) -> Notice:
    values = [f"{name} {metric(name, value)}" for name, value in metrics(event).items()]
    values.append(f"loss {loss(event.get('loss'))}")
    what = f"test after epoch {event.get('epoch', '?')}"
    if event.get("final"):  # of a run that was stopped it lies within an epoch
        what = f"final test after {number(event.get('samples'), ',')} samples"
    return Notice(f"{what}: {', '.join(values)}", "good")


def _checkpoint(event: Mapping[str, Any]) -> Notice:
    return Notice(f"checkpoint {event.get('step', '?')}: {size(event.get('bytes'))}", "info")


def _run_end(event: Mapping[str, Any]) -> Notice:
    outcome = str(event.get("outcome", "ended"))
    reason = event.get("reason")
    parts = [f"{outcome} ({reason})" if reason else outcome]
    final = event.get("final")
    if isinstance(final, Mapping):
        parts += [
            f"{name} {loss(value) if name == 'loss' else metric(name, value)}"
            for name, value in final.items()
        ]
    if event.get("samples") is not None:
        parts.append(f"{number(event['samples'], ',')} samples")
        parts.append(
            f"{duration(event.get('seconds'))} of training "
            f"at {rate(event.get('samples_per_s'))} samples/s"
        )
    staleness = event.get("staleness")
    if isinstance(staleness, Mapping):
        parts.append(f"mean staleness {number(staleness.get('mean'), '.2f')}")
    books = ledger(event.get("ledger"))
    if books is not None:
        parts.append(books)
    tones: dict[str, Tone] = {"done": "good", "preempted": "info"}
    return Notice("; ".join(parts), tones.get(outcome, "bad"))


def ledger(books: Any) -> str | None:
    """The verdict of the ledger: ``ledger exact``, or what is wrong with it."""
    if not isinstance(books, Mapping):
        return None
    dropped = books.get("dropped") or 0
    if books.get("exact"):
        return "ledger exact" + (f" ({dropped:,} dropped by policy)" if dropped else "")
    missing, twice = books.get("missing") or 0, books.get("twice") or 0
    return f"ledger NOT exact: {missing:,} missing, {twice:,} twice"
