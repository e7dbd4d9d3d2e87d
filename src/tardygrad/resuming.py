"""Where a run goes on, and whether it can.

What a resumed run would contradict (another amount of data, fewer epochs than are trained already,
checkpoints that are all damaged) is refused before anything is written. Another method goes on with
the parameters, the versions and the ledgers; its own state begins anew. What codecs have left out
at the workers goes on with a run that was stopped in good order, if it still means the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Protocol

from tardygrad.data.fragments import FragmentPlan
from tardygrad.engines.base import Job, WorkerState
from tardygrad.engines.stores import DirectoryStore
from tardygrad.errors import CheckpointError, ConfigError, UsageError
from tardygrad.metrics.sink import read
from tardygrad.protocol.ledger import Ledger
from tardygrad.reshaping import mend, reshape
from tardygrad.storage.run_directory import RunDirectory
from tardygrad.storage.traces import cuts

__all__ = ["begins_anew", "check_resumable", "made_ready", "placed", "with_residuals"]


def check_resumable(directory: RunDirectory, job: Job, store: DirectoryStore) -> None:
    """See that a run can go on as ``job`` describes it.

    Raises:
        CheckpointError: there are checkpoints, and none of them is whole; or the newest holds an
            open round of another method.
        ConfigError: fewer epochs are asked for than the newest checkpoint has begun.
        UsageError: the data has another number of samples.
    """
    _check_samples(directory, job.plan)
    states = store.states()
    # A run that was killed before its first checkpoint has none, and begins again.
    lost = store.next_step() > 1 and _told(directory, "checkpoint", "step")
    if not states and (store.files.any_finished() or lost):
        raise CheckpointError(
            f"no checkpoint of {directory} can be used ({'; '.join(store.skipped())}); restore one "
            "from a copy, or delete the folder checkpoints to train from the beginning again"
        )
    for state in states:
        _check_round(state, job)
    ledgers = [Ledger.from_state(job.plan, state["ledger"]) for state in states]
    begun = max((ledger.epochs_begun for ledger in ledgers), default=0)
    if job.config.epochs < begun:
        raise ConfigError(
            f"epochs: the newest checkpoint has samples of epoch {begun}, "
            f"got {job.config.epochs}; resume with {begun} or more"
        )


def _check_samples(directory: RunDirectory, plan: FragmentPlan) -> None:
    for event in _events(directory):
        if event["event"] == "run_start":
            if event["samples_per_epoch"] != plan.samples:
                raise UsageError(
                    f"the run was started with {event['samples_per_epoch']} training samples, the "
                    f"data now has {plan.samples}; resume it with the same data"
                )
            return


def _check_round(state: dict[str, Any], job: Job) -> None:
    # What is booked in the round would be lost: its mean means nothing to another method.
    gathered = state.get("round", {}).get("gathered", 0)
    wanted = f"{job.method.name}, {job.method.admission.name}"
    if gathered and state["round"].get("of") != wanted:
        raise CheckpointError(
            f"the newest checkpoint holds an open round of {gathered} updates "
            f"({state['round'].get('of')}), which another method ({wanted}) cannot end; resume the "
            "run with its own method, and change that after an epoch, or, where rounds are short, "
            "after stopping it with Ctrl-C"
        )


def begins_anew(store: DirectoryStore, job: Job) -> str:
    """Why the servers cannot take up the method's state in the checkpoint, or an empty string."""
    # A rule without a name could not be carried over to other shards, which was told.
    kinds = {str(state.get("rule", job.method.kind)) for state in store.states()}
    others = sorted(kind for kind in kinds if kind not in (job.method.kind, ""))
    if not others:
        return ""
    return f"the checkpoint is of {' and '.join(others)}, the run goes on with {job.method.kind}"


def made_ready(directory: RunDirectory, job: Job, store: DirectoryStore) -> list[tuple[str, str]]:
    """See that newest checkpoint and traces have the job's shards; returns what is to be told.

    Raises:
        CheckpointError: old shards that must become one have not booked the same samples.
        LedgerError: a trace, or the description of an earlier change of shards, is damaged.
        StorageError: the disk is full or fails.
    """
    decisions = [("a checkpoint is passed over", reason) for reason in store.skipped()]
    mend(directory, store)
    told = reshape(directory, store, job.ranges, job.plan, _next_step(directory, store))
    if told:
        count = len(job.ranges)
        decisions.append((f"the run goes on with {count} shard{'s' if count > 1 else ''}", told))
    return decisions


def _next_step(directory: RunDirectory, store: DirectoryStore) -> int:
    # Above every one that there ever was: another place may still have those that are gone here.
    told = _told(directory, "checkpoint", "step")
    cut = [cut.into_step for cut, _ in cuts(directory.path)]
    return max(store.next_step(), *(step + 1 for step in (*told, *cut)), 1)


_NO_FEEDBACK = "the run goes on without error feedback"

_PUSHED = {
    "mean": "mean gradients",
    "sum": "sums of gradients",
    "way": "the way that local training went",
    "row": "rows of a table",
}


class WorkerStates(Protocol):
    """A store that knows what workers left."""

    def workers(self) -> tuple[int, dict[int, WorkerState], list[str]]:
        """The newest checkpoint's number, what it has of workers, and why not all that it had."""
        ...


def with_residuals(job: Job, store: WorkerStates) -> tuple[Job, list[str]]:
    """The job that goes on with what workers left, and why it does not with what it cannot."""
    step, found, lost = store.workers()
    codec = job.method.codec
    section, pushes = codec.model_dump(mode="json"), job.method.pushes
    workers = range(job.config.workers)
    if not codec.feeds_back and any(left.codec.get("error_feedback") for left in found.values()):
        why = f"the codec {codec.name} leaves nothing out" if codec.is_plain else _NO_FEEDBACK
        return replace(job, residuals=0), [f"{why}; what workers held is dropped"]
    if not codec.remembers:
        return replace(job, residuals=0), []
    others = sorted(
        {_PUSHED.get(left.pushes, left.pushes) for left in found.values()} - {_PUSHED[pushes]}
    )
    if others:
        why = f"it is of {' and '.join(others)}, the run goes on with {_PUSHED[pushes]}"
        return replace(job, residuals=0), [why]
    told = list(lost)
    if not found and not lost:
        told.append("the newest checkpoint has nothing of it: only that of a run that ends has")
    elif found and (missing := [w for w in workers if w not in found]):
        told.append(f"there is none of {_workers(missing)}, who begin with nothing")
    if gone := [w for w in found if w not in workers]:
        told.append(f"there are {len(workers)} workers now; that of {_workers(gone)} is dropped")
    if any(left.codec != section for left in found.values()):
        told.append(f"it was left by another codec or other settings than {section}, and is kept")
    return replace(job, residuals=step if found else 0), told


def _workers(numbers: list[int]) -> str:
    return f"worker{'s' * (len(numbers) > 1)} {', '.join(map(str, sorted(numbers)))}"


def placed(job: Job, directory: RunDirectory, store: DirectoryStore, generation: int) -> Job:
    """The job with its place on disk, and where it goes on if it was resumed."""
    reported = consumed = 0
    states = store.states() if generation else []
    if states:
        ledgers = [Ledger.from_state(job.plan, state["ledger"]) for state in states]
        consumed = min(ledger.consumed for ledger in ledgers)
        # What was told of epochs that the checkpoint does not have is told again.
        complete = min(ledger.epochs_complete for ledger in ledgers)
        reported = min(complete, max(_told(directory, "epoch", "epoch"), default=0))
    # One number that tells this stretch of the run from every other one.
    lineage = (int(directory.record.run[:12], 16) << 12) + generation
    return replace(
        job,
        run=directory.record.run,
        lineage=lineage,
        generation=generation,
        first_step=_next_step(directory, store) if generation else 1,
        epochs_reported=reported,
        consumed_before=consumed,
        run_directory=directory.path,
        trace_directory=directory.trace,
    )


def _told(directory: RunDirectory, event: str, field: str) -> list[int]:
    return [int(e[field]) for e in _events(directory) if e["event"] == event]


def _events(directory: RunDirectory) -> Iterable[dict[str, Any]]:
    """What the run has told; nothing if it ended before it could."""
    return read(directory.metrics_jsonl) if directory.metrics_jsonl.exists() else ()
