"""Write docs/specification.md from the tables that the code runs; --check: see that it is so."""

# ruff: noqa: E501  # prose and tables

from __future__ import annotations

import sys
from pathlib import Path

from tardygrad.protocol.states import LIVES, Life

PAGE = Path(__file__).with_name("specification.md")

HEAD = """# Specification

Written by `python docs/specification_page.py` from `tardygrad.protocol.states`, the tables by which the
machines go from state to state; do not edit it by hand. A cause that has no row in a state cannot come to
pass there: it ends the run with an `InvariantViolation` that names both.

[Exactly once](exactly-once.md) says in prose what follows from this, and
[architecture](architecture.md#words) what the words mean.
"""

WHOSE = {
    "run": "Kept by the scheduler. Fragments are leased only in *running*, and only while every shard has a "
    "ready server.",
    "fragment": "Kept by the scheduler, for each fragment of each epoch. Between *leased* and *pending* lies "
    "the fence: two leases of a fragment can never both change a shard.",
    "worker's slot": "Kept by the scheduler, for each of `workers` slots. A process that is *starting* for "
    "another time has a higher incarnation, and what an earlier one says is not heard.",
    "server": "Kept by the scheduler, for each shard. A server that is *starting* again takes no push below "
    "its floor, which is above every lease that was given out before.",
    "backup's place": "Kept by the scheduler, `replicas` for each shard. Only a place that is *ready* can give "
    "the shard a new server without a loss.",
    "worker": "The worker's own machine. *joining*, *reducing* and *holding* exist only where workers "
    "average among themselves.",
}

TAIL = """## What a server does with a push

A server has one state, and a list of questions; the first that is answered by yes decides.
[The table](exactly-once.md#the-ledger) has them in order.

## What holds in every state

Each of these is checked where it stands, and the first that fails ends the run, the simulation or the search:

| what | where |
|---|---|
| only the transitions above | `tardygrad.protocol.states.Life.after` |
| a fragment's state agrees with the leases, fences and queues | `tardygrad.protocol.workbook.WorkBook.check` |
| a batch is booked in its turn, once, under a fence that only grows | `tardygrad.protocol.invariants.Auditor` |
| a version grows by one, and staleness is what it says | the same |
| a shard goes back only to a snapshot that was taken | the same |
| no shard takes in an update while its fragment is leased under another fence | `tardygrad.testing.small_world` |
| nothing is taken in after the end, and at the end nothing is missing | the same |
| from every state some way without further misfortune leads to the end | `tardygrad.testing.explore` |

## How it is checked

**Searched.** `python -m tardygrad.testing.explore` visits every history of a small cluster: the production
machines, and a network, a disk and processes in which anything may go wrong, so many times in one history.

```
python -m tardygrad.testing.explore --workers 2 --shards 2 --batches 3 --faults 1
```

says: 44603 states, 101658 steps, nothing is broken, and every state leads to an end. `--faults 2`,
`--checkpoints 1`, `--bound 0` (workers that wait for each other), `--in-flight 1` and `--unhurried` (every
message takes its time) search other or larger ones. What is broken is shown as the shortest history that leads there. The tests break machines on purpose (a fence
that is forgotten, an update applied twice, a snapshot without its ledger, an answer that is not repeated), and
each is found.

**Drawn.** `python -m tardygrad.testing.fuzz` simulates whole runs of all methods with random misfortunes in
virtual time; `make nightly` takes 20000 of them and searches larger clusters.
The 20000 of seeds 0 to 19999 break nothing (41.5 million events).

**What that does not say.** The search holds for its sizes and its number of misfortunes. Its messages other
than pushes arrive at once unless a fault is spent on them, and patience runs out only when nothing is on its
way. Deadlines (leases that expire, restarts that are used up) are drawn, not searched.
"""


def _diagram(life: Life) -> str:
    arrows: dict[tuple[str, str], list[str]] = {}
    for row in life.rows:
        arrows.setdefault((row.state, row.next), []).append(row.cause)
    lines = [f"    [*] --> {life.start}"]
    lines += [f"    {a} --> {b}: {', '.join(causes)}" for (a, b), causes in arrows.items()]
    last = [s for s in life.states() if all(row.state != s for row in life.rows)]
    lines += [f"    {state} --> [*]" for state in last]
    return "\n".join(["```mermaid", "stateDiagram-v2", *lines, "```"])


def _section(life: Life) -> str:
    rows = [f"| {r.state} | {r.cause} | {r.next} | {r.why} |" for r in life.rows]
    table = "\n".join(["| in | meets | becomes | when |", "|---|---|---|---|", *rows])
    title = f"## The states of a {life.name}"
    return "\n\n".join([title, WHOSE[life.name], _diagram(life), table])


def page() -> str:
    """The whole page."""
    return "\n\n".join([HEAD.strip(), *map(_section, LIVES), TAIL.strip()]) + "\n"


def main(argv: list[str]) -> int:
    """Write the page, or compare it; returns the exit status."""
    if "--check" not in argv:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.read_text(encoding="utf-8") == page():
        return 0
    print("docs/specification.md is not what the tables say: run python docs/specification_page.py")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
