"""A shard's open round: the updates that are booked and wait for their commit.

The round changes together with the ledger and is part of every snapshot: what is booked in it is
neither lost nor gathered twice when the shard goes back to one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tardygrad.admission import AtOnce, Collect, Quorum, RoundState, WholeEpoch

Rule = AtOnce | Quorum | Collect | WholeEpoch
Member = tuple[int, int]
"""``(worker, session)``."""


class Closed(NamedTuple):
    """A round that has ended: its updates, the samples before it, and the factor on its step."""

    gathered: int
    consumed: int
    scale: float


class Round:
    """The open round of one shard; empty between a commit and the next update."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.gathered = 0
        self.whole = 0.0
        """The weights of the updates (their samples, usually) as they came."""
        self.weight = 0.0
        """The same, each scaled by the staleness policy."""
        self.consumed = 0
        """Samples booked on the shard before the round began, for learning-rate schedules."""
        self._gatherers: dict[Member, None] = {}
        self._contributors: dict[Member, None] = {}
        self._restored_gatherers = 0
        self._enough_since: float | None = None
        # Each worker's newest push, over rounds: its session and number, and whether it was taken.
        self._newest: dict[int, tuple[int, int, bool]] = {}

    def take(self, member: Member, seq: int, weight: float, scale: float, consumed: int) -> None:
        """A member's push ``seq`` is gathered; ``consumed`` samples were booked before it."""
        if not self.gathered:
            self.consumed = consumed
        self.gathered += 1
        self.whole += weight
        self.weight += scale * weight
        self._gatherers[member] = None
        self._contributors[member] = None
        self._newest[member[0]] = (member[1], seq, True)

    def passes(self, member: Member, seq: int) -> None:
        """A member has pushed what cannot be gathered; the round does not wait for it.

        Its other shards may have gathered the same update: if they and this one waited for
        different workers, those would wait for each other.
        """
        self._contributors[member] = None
        self._newest[member[0]] = (member[1], seq, False)

    def knows(self, member: Member, seq: int) -> bool | None:
        """Whether a push that comes again was gathered when it first came; None if it is new."""
        session, newest, taken = self._newest.get(member[0], (-1, -1, False))
        return taken if session == member[1] and seq <= newest else None

    def over(self, members: list[Member], now: float, *, epoch_over: bool) -> bool:
        """Whether the round ends now."""
        if not self.gathered:
            return False
        gatherers = self._restored_gatherers + len(self._gatherers)
        if self._enough_since is None and self.rule.enough(self.gathered, gatherers):
            self._enough_since = now
        since = self._enough_since
        return self.rule.closes(
            RoundState(
                self.gathered,
                gatherers,
                len(members),
                sum(member in self._contributors for member in members),
                0.0 if since is None else now - since,
                epoch_over,
            )
        )

    def close(self) -> Closed:
        """Begin the next round.

        The mean is weighted by what the staleness policy left of the weights; the factor makes of
        it the sum of the scaled updates over the weights as they were.
        """
        closed = Closed(self.gathered, self.consumed, self.weight / self.whole)
        self.gathered, self.whole, self.weight = 0, 0.0, 0.0
        self._gatherers.clear()
        self._contributors.clear()
        self._restored_gatherers = 0
        self._enough_since = None
        return closed

    def state(self) -> dict[str, Any]:
        """Plain data for a snapshot."""
        return {
            "gathered": self.gathered,
            "gatherers": self._restored_gatherers + len(self._gatherers),
            "samples": self.whole,
            "weight": self.weight,
            "consumed": self.consumed,
        }

    @classmethod
    def from_state(cls, rule: Rule, state: dict[str, Any]) -> Round:
        """The round that :meth:`state` described.

        Who contributed is not kept: after a restoration every worker begins a new session.
        """
        found = cls(rule)
        found.gathered = int(state["gathered"])
        found._restored_gatherers = int(state["gatherers"])
        found.whole = float(state["samples"])
        found.weight = float(state["weight"])
        found.consumed = int(state["consumed"])
        return found
