"""What is looked at before a run begins or goes on, so that a mistake costs seconds and one line.

A model that does not fit its data, or a loss that is called in the wrong way, would otherwise show
in every worker at once, after a run directory was made and processes were started. The first batch
tells it here. What a resumed run would contradict (another amount of data, fewer epochs than are
trained already, checkpoints that are all damaged) is refused before anything is written.
"""

from __future__ import annotations

import torch

from tardygrad.data.fragments import FragmentPlan, Permutations
from tardygrad.engines.base import Job
from tardygrad.engines.child import explain
from tardygrad.engines.stores import DirectoryStore
from tardygrad.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    ModelError,
    TardygradError,
    UsageError,
)
from tardygrad.metrics.sink import read
from tardygrad.protocol.ledger import Ledger
from tardygrad.storage.run_directory import RunDirectory

__all__ = ["check_first_batch", "check_resumable"]


def check_first_batch(job: Job) -> None:
    """Compute the gradient of the run's first batch, on a model of its own.

    The caller's random state is left as it was.

    Raises:
        DataError: the data raises, or gives no batch.
        ModelError: the model or the loss raises, or the loss is no number.
    """
    indices = Permutations(job.plan).indices(0, 0, 0)
    with torch.random.fork_rng(devices=[]):
        try:
            batch = job.train.batch(indices)
        except Exception as error:
            raise DataError(f"the data cannot give the first batch: {explain(error)}") from error
        try:
            job.build_adapter().gradient(batch, job.config.seed)
        except TardygradError:
            raise
        except Exception as error:
            shapes = ", ".join(f"{part.dtype} {list(part.shape)}" for part in batch)
            raise ModelError(
                f"the first batch ({shapes}; the target is last) cannot be trained: "
                f"{explain(error)}"
            ) from error


def check_resumable(directory: RunDirectory, job: Job) -> None:
    """See that a run can go on as ``job`` describes it.

    Raises:
        CheckpointError: there are checkpoints, and none of them is whole.
        ConfigError: fewer epochs are asked for than the newest checkpoint has begun.
        UsageError: the data has another number of samples.
    """
    _check_samples(directory, job.plan)
    store = DirectoryStore(directory.path, job.layout.fingerprint())
    states = store.states()
    if not states and store.any_committed():
        raise CheckpointError(
            f"no checkpoint of {directory} can be used ({store.skipped()[0]}); restore one from a "
            "copy, or delete the folder checkpoints to train from the beginning again"
        )
    ledgers = [Ledger.from_state(job.plan, state["ledger"]) for state in states]
    begun = max((ledger.epochs_begun for ledger in ledgers), default=0)
    if job.config.epochs < begun:
        raise ConfigError(
            f"epochs: the newest checkpoint has samples of epoch {begun}, "
            f"got {job.config.epochs}; resume with {begun} or more"
        )


def _check_samples(directory: RunDirectory, plan: FragmentPlan) -> None:
    for event in read(directory.metrics_jsonl):
        if event["event"] == "run_start":
            if event["samples_per_epoch"] != plan.samples:
                raise UsageError(
                    f"the run was started with {event['samples_per_epoch']} training samples, the "
                    f"data now has {plan.samples}; resume it with the same data"
                )
            return
