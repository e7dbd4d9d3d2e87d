"""Draws a run again from its metrics: ``metrics.mat`` and ``curves.png`` from ``metrics.jsonl``.

Nothing else is read, so a report can be made of a run that is going on, that was cut off, or that
was copied from another machine.  The libraries for it come with the extra ``report``; both are
looked for before anything is written, so that a report is never half made.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path

from tardygrad.errors import RunDirectoryError, UsageError
from tardygrad.metrics import mat, plots, sink
from tardygrad.metrics.history import History

_LIBRARIES = ("scipy.io", "matplotlib.figure", "matplotlib.backends.backend_agg")


def report(run: str | os.PathLike[str]) -> list[Path]:
    """Write ``metrics.mat`` and ``curves.png`` into a run directory.

    Args:
        run: The run directory.

    Returns:
        The files written.

    Raises:
        RunDirectoryError: there is no run, or it has recorded nothing.
        UsageError: the extra ``report`` is not installed.
        StorageError: a file cannot be read or written.
    """
    run = Path(run)
    log = run / sink.FILE_NAME
    if not log.is_file():
        what = "no such directory" if not run.is_dir() else f"it holds no {sink.FILE_NAME}"
        raise RunDirectoryError(
            f"{run} is not a run directory: {what}; expected the directory of a run, as "
            "given to `tardygrad train --out`"
        )
    _require_libraries()
    history = History.read(log)
    if not len(history):
        raise RunDirectoryError(f"{log} holds no event: the run stopped before it began")
    return [
        mat.write_mat(history, run / mat.FILE_NAME),
        plots.write_curves(history, run / plots.FILE_NAME),
    ]


def _require_libraries() -> None:
    for library in _LIBRARIES:
        try:
            importlib.import_module(library)
        except ImportError as error:
            name = library.partition(".")[0]
            raise UsageError(
                f"a report needs {name}, which cannot be imported ({error}); install it with: "
                "pip install 'tardygrad[report]'"
            ) from error
