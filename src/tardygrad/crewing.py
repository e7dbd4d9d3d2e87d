"""The workers of a run that is running: seen, joined by others, and asked to leave.

From any process of the run's owner, on its machine; what happens is the scheduler's business. A
callback, which the main process itself calls, asks with ``Callback.change_workers`` instead.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tardygrad.engines.operator import ask, check_change
from tardygrad.errors import RunDirectoryError, UsageError
from tardygrad.storage.run_directory import RunDirectory

__all__ = ["workers"]


def workers(run: str | os.PathLike[str], *, add: int = 0, remove: int = 0) -> list[dict[str, Any]]:
    """The workers of a running run, after so many were added or asked to leave.

    A worker that leaves finishes the batches at hand first. Who was asked to leave shows as
    ``leaving`` until then. Those with the highest numbers leave first.

    Args:
        run: the run directory.
        add: workers that join.
        remove: workers that leave; at least one must stay.

    Returns:
        A row for each slot, as in the ``progress`` event: ``worker``, ``state``, ``reason``,
        ``incarnation``, ``samples_per_s`` (in the last half second), ``restarts``, ...

    Raises:
        RunDirectoryError: there is no such run, or it is not running on this machine.
        UsageError: a number is wrong, or the wish was refused; nothing has changed then.
    """
    check_change(add, remove)
    with RunDirectory.open(Path(run)) as directory:
        path, name, outcome = directory.path, directory.record.run, directory.record.outcome
    if outcome == "done":
        raise RunDirectoryError(f"{path} is done: it has no workers any more")
    if add or remove:
        answer = ask(path, name, {"add": add, "remove": remove})
        if answer.get("refused"):
            raise UsageError(f"the workers of {path} stay as they are: {answer['refused']}")
    rows: list[dict[str, Any]] = ask(path, name, {"ask": "workers"})["workers"]
    return rows
