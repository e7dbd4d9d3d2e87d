"""The states of everything that has some, and what leads from one to another: the tables.

Theory of operation. A ``Life`` is a table of (state, cause) to state. The machines hold a state by
its name and ask the table for the next one: there is no other way from state to state, and a cause
that has no row in a state raises ``InvariantViolation``, naming both. The page
``docs/specification.md`` shows these tables and the diagrams that are drawn from them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tardygrad.errors import InvariantViolation


class Row(NamedTuple):
    """From a state, for a cause, to a state; ``why`` is for readers."""

    state: str
    cause: str
    next: str
    why: str


class Life:
    """One thing's states.

    Args:
        name: of what.
        start: the state that it begins in.
        rows: every transition that there is, as ``(states, cause, next, why)``; ``states`` are
            one or several, with spaces between.
    """

    def __init__(self, name: str, start: str, rows: tuple[tuple[str, str, str, str], ...]) -> None:
        self.name, self.start = name, start
        self.rows = tuple(
            Row(state, cause, after, why)
            for states, cause, after, why in rows
            for state in states.split()
        )
        self._next = {(row.state, row.cause): row.next for row in self.rows}
        assert len(self._next) == len(self.rows), f"{name}: a state and a cause have two rows"

    def after(self, state: str, cause: str) -> str:
        """The state that follows.

        Raises:
            InvariantViolation: the table has no such row.
        """
        found = self._next.get((state, cause))
        if found is None:
            causes = ", ".join(row.cause for row in self.rows if row.state == state)
            raise InvariantViolation(
                f"a {self.name} that is {state!r} met {cause!r}; there it can only meet "
                f"{causes or 'nothing any more'}"
            )
        return found

    def states(self) -> Iterator[str]:
        """Every state, in the order of the table."""
        yield from dict.fromkeys([self.start, *(s for r in self.rows for s in (r.state, r.next))])


FRAGMENT = Life(
    "fragment",
    "fresh",
    (
        ("fresh pending", "leased", "leased", "a worker gets the right to train it"),
        ("leased", "ended", "fencing",
         "its worker is lost or gave up, or a shard was restored: all shards are asked"),
        ("fresh pending done", "lacking", "fencing",
         "a restored shard's ledger lacks it, or is the only one that tells of it"),
        ("fencing", "answered", "pending", "all shards refuse the old lease; some lack batches"),
        ("leased fencing pending fresh", "booked", "done", "every shard has booked it whole"),
    ),
)  # fmt: skip
"""A fragment of an epoch; ``WorkBook`` has one for each."""

SLOT = Life(
    "worker's slot",
    "starting",
    (
        ("starting", "ready", "ready", "its process is up, the model built"),
        ("starting ready", "dies", "dead", "its process is gone, or was ended for its silence"),
        ("starting ready", "leaves", "left",
         "it has nothing in flight, and the run stops or it was asked to go"),
        ("dead", "put_aside", "put_aside", "restarts are used up, or another would fail as well"),
        ("starting ready dead left", "born", "starting",
         "a new process: the first, a replacement, or one for work that came back"),
        ("dead left put_aside", "joins", "starting", "it is used again, for a worker that joins"),
    ),
)  # fmt: skip
"""A worker's slot, as the scheduler knows it."""

SHARD = Life(
    "server",
    "starting",
    (
        ("starting", "ready", "ready", "its ledger is known"),
        ("starting ready", "dies", "starting",
         "a backup takes its place, or a successor starts from the newest snapshot"),
    ),
)  # fmt: skip
"""A shard's server, as the scheduler knows it."""

BACKUP = Life(
    "backup's place",
    "empty",
    (
        ("empty", "started", "starting", "its shard is served: it is filled beside the work"),
        ("starting", "filled", "ready", "it has all that its server has"),
        ("starting ready", "empties", "empty",
         "it is gone, or silent, or has become the server; another is started"),
    ),
)  # fmt: skip
"""A place for a backup of a shard's server, as the scheduler knows it."""

RUN = Life(
    "run",
    "starting",
    (
        ("starting", "serves", "running", "every shard has a server"),
        ("starting running", "stops", "stopping",
         "all is booked, or it is interrupted, or it cannot go on: workers finish what they hold"),
        ("stopping", "left", "saving", "no worker is there any more: the last checkpoint"),
        ("stopping saving", "reopens", "running",
         "a server died after the last epoch, and its snapshot lacks samples"),
        ("saving", "saved", "over", "the last checkpoint is whole"),
        ("starting running stopping saving", "fails", "over",
         "a server cannot be replaced, or the last checkpoint not be written"),
    ),
)  # fmt: skip
"""The run, in the scheduler's hands."""

WORKER = Life(
    "worker",
    "idle",
    (
        ("idle", "joins", "joining", "its session has a group, which must be connected"),
        ("joining", "joined", "idle", "all ranks are connected"),
        ("idle", "pulls", "pulling", "it has a lease, and few enough pushes are unanswered"),
        ("idle pulling", "computes", "computing",
         "the parameters are there, or its replica is as far as they will be"),
        ("computing", "computed", "idle", "it pushes; or the lease is over, and nobody wants it"),
        ("computing", "overtaken", "idle", "the result would have come too late for a shard"),
        ("computing", "reduces", "reducing", "the ranks average before they push"),
        ("reducing", "reduced", "holding", "the mean is there"),
        ("holding", "pushes", "idle", "the push before is answered by all shards"),
        ("idle", "waits", "holding",
         "its next batches need a stripe that is away, and a push is unanswered"),
        ("holding", "pulls", "pulling", "every push is answered: what is away may come back"),
        ("pulling", "trains_on", "idle",
         "a stripe is away for long: it pushes the others and goes on without"),
        ("joining pulling reducing holding", "gives_up", "idle", "its session is over"),
        ("joining pulling holding", "stops", "idle",
         "the run stops, and what it waits for is of no use"),
        ("idle", "leaves", "gone", "the run stops, and every push is answered"),
    ),
)  # fmt: skip
"""A worker's own machine."""

LIVES = (RUN, FRAGMENT, SLOT, SHARD, BACKUP, WORKER)
"""All of them."""
