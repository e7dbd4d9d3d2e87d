"""What a study is: a question, its arms, and one grid of learning rates for all of them.

Theory of operation. An *arm* is one way of training: a method, its settings, a cluster. Every arm
is tried with every second rate of the study's grid on the tuning seed, measured on validation
samples, then with the two rates beside the best of them; with the best of all it is run on other
seeds, measured on the test set. So all arms have the same budget, the synchronous baseline among
them. An arm with an *anchor* is also run with the best rate
of that other arm, untuned: many claims of papers are about a rate that was found elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from studies import problem
from tardygrad.documents import merge

TUNING_SEED = 100
SEEDS = (1, 2, 3)

RATES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The usual grid: 1, 2, 5 and so on."""

RATE = ("method", "optimizer", "arguments", "lr")
OUTER_RATE = ("method", "outer", "arguments", "lr")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way of training.

    ``series`` and ``at`` place it in table and picture. The rate that is tuned lies ``rate_at`` in
    the configuration. Heavy-ball momentum multiplies a rate by 1 / (1 - momentum); where it is
    given, the grid's rates are those after that, so that one grid fits all. ``anchor`` names the
    arm whose best rate is tried too; ``tuned_as`` the one whose best rate is taken, without any
    tuning.
    """

    series: str
    at: str
    settings: Mapping[str, Any]
    rate_at: tuple[str, ...] = RATE
    momentum: float = 0.0
    anchor: str | None = None
    tuned_as: str | None = None

    @property
    def name(self) -> str:
        """What it is called, alone in its study."""
        return f"{self.series}, {self.at}" if self.at else self.series

    def document(self, rate: float, seed: int, *, validation: bool) -> dict[str, Any]:
        """The configuration of one run."""
        value: Any = float(f"{rate * (1 - self.momentum):.6g}")
        for key in reversed(self.rate_at):
            value = {key: value}
        document = merge(merge(problem.base(), self.settings), value)
        return merge(document, {"seed": seed, "data": {"arguments": {"validation": validation}}})


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question, and the arms that answer it.

    ``judged`` by the final ``accuracy``, or by the virtual ``seconds`` to ``target``. ``x`` names
    what the arms' ``at`` is. ``picture``: ``points`` of what it is judged by over ``at``, or
    ``curves`` of accuracy over seconds.
    """

    name: str
    question: str
    source: str
    x: str
    arms: tuple[Arm, ...]
    rates: tuple[float, ...]
    judged: Literal["accuracy", "seconds"] = "accuracy"
    target: float = 0.88
    picture: Literal["points", "curves"] = "points"

    def arm(self, name: str) -> Arm:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)
