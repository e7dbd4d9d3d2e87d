"""How long a member may be silent, learned from how it was heard before.

Theory of operation. A fixed limit is either too short for a loaded machine or too long for an idle
one. Accrual detectors (Hayashibara et al., The phi accrual failure detector, SRDS 2004) look at the
gaps between a member's signs of life instead. They suppose that gaps are normally distributed; on a
machine whose cores are all taken they are not: most are as ever, and a few are many times as long.
So the limit here follows the longest gap of the last ones, times a margin, between two bounds.

A member of which little is known gets the first limit. One that was taken for dead teaches too: if
that was a mistake, its successor in the slot is given more time, and not killed for the same pause.

>>> silence = Silence()
>>> for now in range(20):
...     silence.heard(now / 4)
>>> limits = SilenceLimits(first_s=5.0, least_s=2.0, most_s=20.0)
>>> silence.limit_s(limits)
2.0
>>> silence.heard(6.0)
>>> silence.limit_s(limits)
3.75
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

_WINDOW = 200
"""So many gaps count: what happened once is forgotten in the end."""
_KNOWN = 8
"""So many must be known before anything follows from them."""
MARGIN = 3.0
"""How many times the longest gap is not a gap any more."""


class SilenceLimits(NamedTuple):
    """The limit before anything is learned, and the bounds of what is learned, in seconds."""

    first_s: float
    least_s: float
    most_s: float


class Silence:
    """What is known of the gaps between one member's signs of life."""

    __slots__ = ("_gaps", "_last")

    def __init__(self) -> None:
        self._gaps: deque[float] = deque(maxlen=_WINDOW)
        self._last: float | None = None

    def heard(self, now: float) -> None:
        """A sign of life, of the member's own rhythm."""
        if self._last is not None:
            self._gaps.append(now - self._last)
        self._last = now

    def breaks_off(self) -> None:
        """The next sign of life begins a new series: another process, or nobody listened."""
        self._last = None

    def took_for_dead(self, quiet_s: float) -> None:
        """After so many seconds it was given up; that may have been a mistake."""
        self._gaps.append(quiet_s)

    def limit_s(self, limits: SilenceLimits) -> float:
        """After so many seconds of silence the member must be taken for dead."""
        if len(self._gaps) < _KNOWN:
            return limits.first_s
        return min(max(MARGIN * max(self._gaps), limits.least_s), limits.most_s)
