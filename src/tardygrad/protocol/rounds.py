"""A shard's open round: the updates that are booked and wait for their commit.

The round changes together with the ledger and is part of every snapshot: what is booked in it is
neither lost nor gathered twice when the shard goes back to one.
"""

from __future__ import annotations

from typing import Any

from tardygrad.admission import AtOnce, Collect, Quorum, RoundState, WholeEpoch

Rule = AtOnce | Quorum | Collect | WholeEpoch


class Round:
    """The open round of one shard; empty between a commit and the next update."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.gathered = 0
        self.weight = 0.0
        """Samples, each scaled by the staleness policy."""
        self.consumed = 0
        """Samples booked on the shard before the round began, for learning-rate schedules."""
        self._contributors: dict[tuple[int, int], None] = {}
        self._enough_since: float | None = None

    def take(self, worker: int, session: int, weight: float, consumed: int, now: float) -> None:
        """An update is gathered; ``consumed`` samples were booked before it."""
        if not self.gathered:
            self.consumed = consumed
        self.gathered += 1
        self.weight += weight
        self._contributors[(worker, session)] = None
        enough = self.rule.enough
        if enough is not None and self.gathered >= enough and self._enough_since is None:
            self._enough_since = now

    def passes(self, worker: int, session: int) -> None:
        """A worker has pushed what cannot be gathered; the round does not wait for it.

        Its other shards may have gathered the same update: if they and this one waited for
        different workers, those would wait for each other.
        """
        self._contributors[(worker, session)] = None

    def over(self, members: list[tuple[int, int]], now: float, *, epoch_over: bool) -> bool:
        """Whether the round ends now; ``members`` as ``(worker, session)``."""
        if not self.gathered:
            return False
        since = self._enough_since
        return self.rule.closes(
            RoundState(
                self.gathered,
                len(members),
                sum(member in self._contributors for member in members),
                0.0 if since is None else now - since,
                epoch_over,
            )
        )

    def commit(self) -> int:
        """Begin the next round; returns how many updates were in this one."""
        gathered = self.gathered
        self.gathered, self.weight = 0, 0.0
        self._contributors.clear()
        self._enough_since = None
        return gathered

    def state(self) -> dict[str, Any]:
        """Plain data for a snapshot."""
        return {"gathered": self.gathered, "weight": self.weight, "consumed": self.consumed}

    @classmethod
    def from_state(cls, rule: Rule, state: dict[str, Any]) -> Round:
        """The round that :meth:`state` described.

        Who contributed is not kept: after a restoration every worker begins a new session.
        """
        found = cls(rule)
        found.gathered = int(state["gathered"])
        found.weight = float(state["weight"])
        found.consumed = int(state["consumed"])
        return found
