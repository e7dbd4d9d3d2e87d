"""A group of worker processes that average by gloo: one rank's connections to the others.

Theory of operation. Each rank says that it is there by a file in the group's folder, and goes
on with what it does until all have; connecting takes milliseconds then. In a collective everybody
waits for everybody. A rank that dies, or closes its connections, makes all others' collectives fail
at once, so nobody needs a timeout; one that is frozen does so when it is killed. Only who dies
between its file and its connections is waited for, as long as connecting may take.

gloo's all-reduce sends each part of the vector around a ring, so each part is summed in an order
of its own; it is the same in each run and on each rank. A replay asks gloo again (``Rehearsal``).
"""

from __future__ import annotations

import datetime
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from tardygrad.engines.sums import weighted
from tardygrad.errors import TrainingFailed, UsageError
from tardygrad.protocol.events import Group

# torch does not declare most of what is used of it here.
_c10d: Any = torch.distributed
_FOREVER = datetime.timedelta(days=365)
_LOOPBACK = "lo"
_REHEARSAL_S = 30.0

CONNECTING_S = 2.0
"""Seconds that connecting may take: it takes milliseconds, on a crowded machine more."""


def require(method: str) -> None:
    """See that there is a gloo.

    Raises:
        UsageError: this torch was built without it.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        raise UsageError(
            f"method {method} averages by gloo, and torch {torch.__version__} was built without; "
            "install one with torch.distributed, or take sync_sgd, which makes the same steps"
        )


class Ring:
    """One rank of a group.

    Args:
        directory: the run's runtime directory.
        group: the rank's place.
        size: floats that are averaged.
        patience_s: seconds that connecting may take once all are there.
    """

    def __init__(self, directory: Path, group: Group, size: int, patience_s: float) -> None:
        self.group = group
        self._folder = directory / f"group-{group.generation}"
        self._folder.mkdir(exist_ok=True)
        (self._folder / f"rank-{group.rank}").touch()
        self._patience = datetime.timedelta(seconds=patience_s)
        self._options = _c10d.AllreduceOptions()
        self._options.timeout = _FOREVER
        # The terms of the sum, and behind them the samples that each counts for.
        self._sum = torch.empty(size + 1)
        self._gloo: Any = None

    def complete(self) -> bool:
        """Whether all ranks are there."""
        return all((self._folder / f"rank-{r}").exists() for r in range(self.group.size))

    def connect(self) -> str:
        """Connect to all ranks, which are there; returns why that failed, or an empty string."""
        try:
            store = _c10d.FileStore(str(self._folder / "store"), self.group.size)
            options = _c10d.ProcessGroupGloo._Options()
            options._devices = [_c10d.ProcessGroupGloo.create_device(interface=_LOOPBACK)]
            options._timeout = self._patience
            options._threads = 1
            self._gloo = _c10d.ProcessGroupGloo(store, self.group.rank, self.group.size, options)
        except RuntimeError as error:
            return _brief(error)
        if self.group.rank == 0:
            self._remove_older()
        return ""

    def _remove_older(self) -> None:
        # All ranks have left their groups before; this one's folder may still be read by some.
        for folder in self._folder.parent.glob("group-*"):
            if int(folder.name.removeprefix("group-")) < self.group.generation:
                shutil.rmtree(folder, ignore_errors=True)

    def average(self, update: torch.Tensor, samples: int) -> str:
        """Replace ``update`` (float32 ``[size]``) by its mean over the ranks, weighted by samples.

        Returns why that failed, or an empty string; ``update`` is then as it was.
        """
        try:
            self.begin(update, samples).wait()
        except RuntimeError as error:
            return _brief(error)
        self.result(update)
        return ""

    def begin(self, update: torch.Tensor, samples: int) -> torch.distributed.Work:
        """Begin to sum; the caller waits for the work's end."""
        weighted(update, samples, out=self._sum[:-1])
        self._sum[-1] = samples
        work: torch.distributed.Work = self._gloo.allreduce([self._sum], self._options)
        return work

    def result(self, out: torch.Tensor) -> torch.Tensor:
        """The mean of what was summed, left in ``out``."""
        return torch.div(self._sum[:-1], int(self._sum[-1].item()), out=out)


class Rehearsal:
    """All ranks of a group in one process: the means that a run came to, to the bit.

    Args:
        ranks: how many.
        size: floats that are averaged.

    Raises:
        TrainingFailed: this process cannot connect to itself.
    """

    def __init__(self, ranks: int, size: int) -> None:
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(ranks) as threads:
            places = [Group(1, rank, ranks) for rank in range(ranks)]
            self._rings = [Ring(Path(folder), place, size, _REHEARSAL_S) for place in places]
            errors = [error for error in threads.map(Ring.connect, self._rings) if error]
        if errors:
            raise TrainingFailed(
                f"gloo cannot connect {ranks} ranks on this machine: {errors[0]}; a replay needs "
                "it, because it sums in an order of its own"
            )

    def mean(self, updates: Sequence[torch.Tensor], samples: Sequence[int]) -> torch.Tensor:
        """The mean of the ranks' updates (float32 ``[size]``), weighted by samples."""
        terms = zip(self._rings, updates, samples, strict=True)
        for work in [ring.begin(update, count) for ring, update, count in terms]:
            work.wait()
        return self._rings[0].result(torch.empty_like(updates[0]))


def _brief(error: RuntimeError) -> str:
    # gloo's first words are the place in its source, its last ones advice about other machines.
    return str(error).partition("] ")[2].partition(". ")[0] or str(error)
