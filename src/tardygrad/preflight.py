"""What is looked at before a run begins, so that a mistake costs seconds and one line.

A model that does not fit its data, or a loss that is called in the wrong way, would otherwise show
in every worker at once, after a run directory was made and processes were started. The first batch
tells it here.
"""

from __future__ import annotations

import torch

from tardygrad.data.fragments import Permutations
from tardygrad.engines.base import Job
from tardygrad.engines.child import explain
from tardygrad.errors import ConfigError, DataError, ModelError, TardygradError

__all__ = ["check_first_batch"]


def check_first_batch(job: Job) -> None:
    """Compute the gradient of the run's first batch, on a model of its own.

    The caller's random state is left as it was.

    Raises:
        ConfigError: the learning rate cannot follow the number of workers with this method.
        DataError: the data raises, or gives no batch.
        ModelError: the model or the loss raises, or the loss is no number.
    """
    _check_rate(job)
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


def _check_rate(job: Job) -> None:
    if job.linear_rate and (job.method.follows or job.method.pushes == "way"):
        raise ConfigError(
            "elastic.learning_rate: linear scales what servers do with gradients; the workers of "
            f"{job.method.name} take steps of their own, which it would not reach; leave it fixed"
        )
