"""One tree of exceptions, so that a caller can catch as much or as little as wanted.

::

    TardygradError                  exit status 1
    |-- UsageError                  exit status 2: the caller can put it right
    |   |-- ConfigError             a key, a type or a value of the configuration
    |   |-- DataError               missing, corrupt or unusable data
    |   |-- ModelError              a model that cannot be imported or trained
    |   `-- RunDirectoryError       no run there, or another run
    |-- CheckpointError             a checkpoint is incomplete or does not fit
    |-- StorageError                disk full, unwritable, unreadable
    |-- LedgerError                 the books of a shard contradict themselves
    |-- ReplayMismatch              a replayed trace gave another digest
    |-- InvariantViolation          a promise of the design was broken: a bug in tardygrad
    |-- TrainingFailed              the run cannot go on
    `-- Preempted                   exit status 75: it was stopped, and can go on

Every message says what was passed, what was expected and what to do.  Exceptions hold nothing but
their message, so they travel between processes by pickle.  ``exit_code`` is the exit status of the
command line.  ``unknown`` phrases the commonest mistake, a misspelt name, in one way everywhere.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class TardygradError(Exception):
    """Anything that tardygrad raises on purpose."""

    exit_code: ClassVar[int] = 1


class UsageError(TardygradError):
    """What was asked for cannot be done as asked; the caller can put it right."""

    exit_code: ClassVar[int] = 2


class ConfigError(UsageError):
    """The configuration is wrong; the message has one line for each problem."""

    @property
    def problems(self) -> tuple[str, ...]:
        """The problems one by one, each ``path.to.key: what is wrong``."""
        return tuple(str(self).splitlines())


class DataError(UsageError):
    """Data are missing, corrupt, empty or of a kind that cannot be used."""


class ModelError(UsageError):
    """A model, loss or metric cannot be imported, built or trained."""


class RunDirectoryError(UsageError):
    """The directory holds no run, another run, or something else."""


class CheckpointError(TardygradError):
    """A checkpoint is incomplete, damaged, or of another model."""


class StorageError(TardygradError):
    """A file cannot be written or read: disk full, no permission, a failing device."""


class LedgerError(TardygradError):
    """A ledger contradicts itself, or an update contradicts the ledger."""


class ReplayMismatch(TardygradError):
    """Re-executing a trace gave other parameters than the run that recorded it."""


class InvariantViolation(TardygradError):
    """A promise of the design does not hold.  Always a bug in tardygrad: please report it."""


class TrainingFailed(TardygradError):
    """The run cannot go on: no worker is left, or a shard cannot be restored."""


class Preempted(TardygradError):
    """Somebody wanted the run to stop; it wrote a checkpoint and can go on."""

    exit_code: ClassVar[int] = 75


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name most like ``name`` or abbreviated by it, or None if none is.

    >>> nearest("lr", ["learning_rate", "momentum"])
    'learning_rate'
    """
    by_folded = {_fold(choice): choice for choice in valid}
    matches = difflib.get_close_matches(_fold(name), list(by_folded), n=1, cutoff=0.5)
    if matches:
        return by_folded[matches[0]]
    initials = {"".join(word[:1] for word in key.split("_")): key for key in by_folded}
    return by_folded[initials[_fold(name)]] if _fold(name) in initials else None


def unknown(kind: str, name: str, valid: Iterable[str]) -> str:
    """One sentence for a name that does not exist, naming the nearest one that does.

    >>> unknown("recipe", "mnist-asinc", ["mnist-async", "mnist-mlp"])
    "unknown recipe 'mnist-asinc' (did you mean 'mnist-async'?)"
    >>> unknown("engine", "zzz", ["inline", "processes"])
    "unknown engine 'zzz' (valid: inline, processes)"
    """
    choices = sorted(valid)
    match = nearest(name, choices)
    if match is not None:
        hint = f"did you mean {match!r}?"
    elif choices:
        hint = f"valid: {', '.join(choices)}"
    else:
        hint = "there are none"
    return f"unknown {kind} {name!r} ({hint})"


def _fold(name: str) -> str:
    """Case, dashes and underscores are what people mix up most; they must not cost a match."""
    return name.lower().replace("-", "_")
