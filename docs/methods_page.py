"""Write docs/methods.md from the methods' own texts; with --check, see that it is up to date."""

# ruff: noqa: E501  # tables

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tardygrad import documents, methods

PAGE = Path(__file__).with_name("methods.md")

HEAD = """# Methods

Written by `python docs/methods_page.py` from the methods' own texts; do not edit it by hand.

`--set method=NAME`, or `method="NAME"` from Python, takes the same model, data and checkpoint to any
of these; `tardygrad train --resume RUN --set method=NAME` goes on with another. A method is a
configuration of orthogonal choices: what a worker pushes, what a server does with it, when updates
take effect (`admission`), who may go on (`consistency`), what a stale update is worth (`staleness`),
and what travels of an update ([`codec`](codecs.md)). The last four can be set for every method
unless it says no. What a
worker does between two exchanges can follow its speed, and change over the run:
[load balancing](balancing.md).

| method | workers push | takes effect | when |
|---|---|---|---|
| [`async_sgd`](#async_sgd) | gradients | at once | uneven or unreliable machines |
| [`dc_asgd`](#dc_asgd), [`gap_aware`](#gap_aware), [`dana`](#dana) | gradients | at once, corrected | the same, with many workers |
| [`ringleader`](#ringleader) | gradients | at once, averaged over workers | workers with data of their own |
| [`ssp`](#ssp) | gradients | at once, with a bound | hiccups, a guarantee wanted |
| [`softsync`](#softsync), [`rennala`](#rennala) | gradients | a given number at a time | many workers, uneven speeds |
| [`sync_sgd`](#sync_sgd) | gradients | all, or a quorum | equal machines; the baseline |
| [`all_reduce`](#all_reduce) | their mean, made among themselves | all | the same, on machines that hardly ever die |
| [`local_sgd`](#local_sgd) | deltas | all, or a quorum | slow networks |
| [`diloco`](#diloco) | deltas | all, or a quorum | islands with slow links |
| [`async_diloco`](#async_diloco) | deltas | at once | islands of uneven speed |
| [`easgd`](#easgd) | elastic differences | at once | long periods, exploration |
| [`gossip`](#gossip) | steps, which count 1 / n; replicas are averaged in pairs | at once | uneven workers, good links among them |
| [`incremental_sgd`](#incremental_sgd) | deltas | once an epoch | data handed out as tasks |
"""


def _leaves(document: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        if isinstance(value, dict) and key != "arguments":
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _defaults(name: str) -> dict[str, Any]:
    return dict(_leaves(methods.parse({"name": name}).model_dump(mode="json", by_alias=True)))


def _yaml(value: Any) -> str:
    return documents.dump({"v": value}).removeprefix("v:").strip().replace("\n  ", ", ")


def section(name: str) -> str:
    """A method's text and the settings by which it differs from ``async_sgd``."""
    module = importlib.import_module(f"tardygrad.methods.{name}")
    text = (module.__doc__ or "").partition(">>>")[0].strip()
    text = re.sub(r"::$", ":", text, flags=re.MULTILINE).replace("``", "`")
    usual = _defaults("async_sgd")
    rows = [
        f"| `method.{key}` | `{_yaml(value)}` |"
        for key, value in _defaults(name).items()
        if key != "name" and (name == "async_sgd" or usual.get(key, ...) != value)
    ]
    if name == "async_sgd":
        return f"## async_sgd\n\n{text}\n\nSettings: [configuration](configuration.md#method).\n"
    table = "\n".join(["| differs from `async_sgd` in | default |", "|---|---|", *rows])
    return f"## {name}\n\n{text}\n\n{table}\n" if rows else f"## {name}\n\n{text}\n"


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *map(section, methods.names())])


def main() -> int:
    """Write the page, or check it; returns the exit status."""
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.read_text(encoding="utf-8") == page():
        return 0
    print(f"{PAGE.name} is not what the methods say: run python docs/{Path(__file__).name}")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
