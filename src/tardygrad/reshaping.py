"""A checkpoint of some shards as one of others: how a run goes on with another number of servers.

Theory of operation. A new shard is made of parts of old ones. Its tensors of the shard's size
(parameters, momenta, a worker's row in a table) are the parts joined; its ledger is theirs, which
works only if they have booked the same batches. So do all shards after a clean stop, and those of
one old shard that is cut further do at any time; otherwise the change is refused. Numbers that are
not one an element (a step counter) are those of the old shard with the newest version. Where the
old shards keep tensors that do not join, the method's state begins anew, which is told.

The result is written as a checkpoint of its own, from which servers start as from any other. The
traces of the old shards are set aside before it becomes visible (``storage.traces``). That is also
done where the checkpoint has the wanted shards and the traces do not: all checkpoints made since
an earlier change are lost. A run without any checkpoint begins again, with new traces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tardygrad.data.fragments import FragmentPlan
from tardygrad.engines.base import Snapshot, Tensors
from tardygrad.engines.stores import DirectoryStore
from tardygrad.errors import CheckpointError
from tardygrad.layout import KeyRange
from tardygrad.protocol.ledger import Ledger
from tardygrad.storage.checkpoints import Checkpoint
from tardygrad.storage.run_directory import RunDirectory
from tardygrad.storage.traces import Cut, cuts, set_aside, shards_of, take_back

__all__ = ["Reshaped", "joined", "mend", "reshape"]

_PARAMETERS, _RULE, _ROUND = "parameters", "rule.", "round."


@dataclass(frozen=True)
class Reshaped:
    """Snapshots of the new shards, and why the method's state is not in them, if it is not."""

    snapshots: list[tuple[Tensors, dict[str, Any]]]
    anew: str


def mend(directory: RunDirectory, store: DirectoryStore) -> None:
    """Take a cut back of which nothing came: its maker died, or its checkpoint was lost since.

    Raises:
        StorageError: the traces cannot be moved.
    """
    made = cuts(directory.path)
    if not made or any(directory.trace.glob("shard-*.trace")):
        return
    newest = store.whole()
    if newest is None or newest.step < made[-1][0].into_step:
        take_back(directory.path)


def reshape(
    directory: RunDirectory,
    store: DirectoryStore,
    ranges: Sequence[KeyRange],
    plan: FragmentPlan,
    step: int,
) -> str:
    """Make newest checkpoint and traces those of ``ranges``; returns what is to be told, if any.

    Args:
        directory: the run's, locked by us.
        store: for the new ranges.
        ranges: the key ranges with which the run goes on.
        plan: how the data are cut.
        step: the number of the checkpoint to be made.

    Raises:
        CheckpointError: old shards that must become one have not booked the same samples.
        LedgerError: a trace, or the description of an earlier change, is damaged.
        StorageError: the disk is full or fails.
    """
    checkpoint, made_before = store.whole(), cuts(directory.path)
    traced = made_before[-1][0].after if made_before else ()
    if checkpoint is None:
        return _begin_again(directory, traced, tuple(ranges), step)
    if store.has_shape(checkpoint) and traced in ((), tuple(ranges)):
        return ""
    before = _ranges_of(checkpoint)
    old = [_snapshot(store, checkpoint, shard) for shard in range(len(before))]
    made = joined(old, before, ranges, plan)
    files = [store.write(step, n, *snapshot) for n, snapshot in enumerate(made.snapshots)]
    manifest = {
        **{k: v for k, v in checkpoint.manifest.items() if k not in ("versions", "samples")},
        "versions": [state["version"] for _, state in made.snapshots],
        "samples": [state["ledger"]["consumed"] for _, state in made.snapshots],
    }
    # Before the checkpoint is visible: a trace of the old shards must never meet the new ones.
    set_aside(directory.path, Cut(checkpoint.step, step, tuple(before), tuple(ranges)))
    store.commit(step, tuple(files), manifest)
    told = f"checkpoint {checkpoint.step} of {len(before)} became checkpoint {step}"
    return f"{told}; the method's state begins anew: {made.anew}" if made.anew else told


def _begin_again(
    directory: RunDirectory, traced: tuple[KeyRange, ...], ranges: tuple[KeyRange, ...], step: int
) -> str:
    """Without a checkpoint nothing that was trained counts, but its traces are of other shards."""
    shards = len(traced) or shards_of(directory.trace)
    if traced == ranges or (not traced and shards in (0, len(ranges))):
        return ""
    set_aside(directory.path, Cut(0, step, (), ranges))
    return f"there is no checkpoint yet of the {shards} there were: it begins again"


def _ranges_of(checkpoint: Checkpoint) -> list[KeyRange]:
    return [KeyRange(start, stop) for start, stop in checkpoint.manifest["ranges"]]


def _snapshot(store: DirectoryStore, checkpoint: Checkpoint, shard: int) -> Snapshot:
    tensors, metadata = store.files.load_shard(checkpoint, shard)
    return Snapshot(checkpoint.step, tensors, metadata["state"])


def joined(
    old: Sequence[Snapshot],
    before: Sequence[KeyRange],
    after: Sequence[KeyRange],
    plan: FragmentPlan,
) -> Reshaped:
    """The snapshots of new shards, made of those of old ones; nothing is written.

    Args:
        old: one for each old shard; tensors of the shard's size have it as their last extent.
        before: their key ranges.
        after: those of the new shards.
        plan: how the data are cut.

    Raises:
        CheckpointError: old shards that must become one have not booked the same samples.
    """
    for key_range in after:
        _check_same_books(_homes(before, key_range), old, plan)
    problem = next(filter(None, (_misfit(_homes(before, r), before, old) for r in after)), "")
    if problem and any(map(_gathered, old)):
        raise CheckpointError(
            f"the shards cannot change here: {problem}, and a round is open; resume the run with "
            f"servers={len(old)}, stop it after an epoch, and change them then"
        )
    made = []
    for number, key_range in enumerate(after):
        homes = _homes(before, key_range)
        tensors = _tensors(key_range, homes, before, old, with_rule=not problem)
        if number == 0:
            tensors |= {k: v for k, v in old[0].tensors.items() if not _is_of_range(k)}
        made.append((tensors, _state(homes, old, plan, with_rule=not problem)))
    return Reshaped(made, problem)


def _homes(before: Sequence[KeyRange], key_range: KeyRange) -> list[int]:
    """The old shards that have elements of a range."""
    return [
        n for n, r in enumerate(before) if r.start < key_range.stop and key_range.start < r.stop
    ]


def _books(snapshot: Snapshot, plan: FragmentPlan) -> tuple[object, ...]:
    """What must be the same for shards that become one."""
    ledger = Ledger.from_state(plan, snapshot.state["ledger"])
    open_round = snapshot.state.get("round") if _gathered(snapshot) else None
    return ledger.booked(), open_round


def _gathered(snapshot: Snapshot) -> int:
    return int(snapshot.state.get("round", {}).get("gathered", 0))


def _check_same_books(homes: list[int], old: Sequence[Snapshot], plan: FragmentPlan) -> None:
    first, *others = homes
    books = _books(old[first], plan)
    for other in others:
        if _books(old[other], plan) != books:
            raise CheckpointError(
                f"the shards cannot change here: in checkpoint {old[other].step} shards {first} "
                f"and {other} have not booked the same samples, as in a run that was killed; "
                f"resume it with servers={len(old)}, stop it with Ctrl-C, and change them then"
            )


def _is_of_range(name: str) -> bool:
    return name == _PARAMETERS or name.startswith((_RULE, _ROUND))


def _is_by_element(tensor: torch.Tensor, size: int) -> bool:
    return tensor.dim() > 0 and tensor.shape[-1] == size


def _misfit(homes: list[int], before: Sequence[KeyRange], old: Sequence[Snapshot]) -> str:
    """Why old shards' tensors do not join, or an empty string."""
    first, *others = homes
    mine = {k: v for k, v in old[first].tensors.items() if _is_of_range(k)}
    for other in others:
        theirs = {k: v for k, v in old[other].tensors.items() if _is_of_range(k)}
        if mine.keys() != theirs.keys():
            names = ", ".join(sorted(mine.keys() ^ theirs.keys()))
            return f"of shards {first} and {other} only one has {names}"
        for name, tensor in mine.items():
            if _is_by_element(tensor, before[first].size):
                if _is_by_element(theirs[name], before[other].size):
                    continue
            elif tensor.dim() == 0 or torch.equal(tensor, theirs[name]):
                continue
            return f"{name} is not the same on shards {first} and {other}"
    return ""


def _leader(homes: list[int], old: Sequence[Snapshot]) -> int:
    return max(homes, key=lambda home: (int(old[home].state["version"]), -home))


def _tensors(
    key_range: KeyRange, homes: list[int], before: Sequence[KeyRange], old: Sequence[Snapshot],
    *, with_rule: bool,
) -> Tensors:  # fmt: skip
    leader = _leader(homes, old)
    made: Tensors = {}
    for name, tensor in old[leader].tensors.items():
        if not _is_of_range(name) or (name != _PARAMETERS and not with_rule):
            continue
        if not _is_by_element(tensor, before[leader].size):
            made[name] = tensor.clone()
            continue
        parts = []
        for home in homes:
            where, of = before[home], old[home].tensors[name]
            start = max(key_range.start, where.start) - where.start
            stop = min(key_range.stop, where.stop) - where.start
            parts.append(of[..., start:stop])
        # Of past versions, the newest that all have.
        rows = min(part.shape[0] for part in parts)
        parts = [part[-rows:] for part in parts] if tensor.dim() > 1 else parts
        made[name] = torch.cat(parts, dim=-1)
    return made


def _state(
    homes: list[int], old: Sequence[Snapshot], plan: FragmentPlan, *, with_rule: bool
) -> dict[str, Any]:
    leader = old[_leader(homes, old)].state
    ledgers = [Ledger.from_state(plan, old[home].state["ledger"]) for home in homes]
    state = {**leader, "ledger": ledgers[0].merged(ledgers[1:]).state()}
    return state if with_rule else {**state, "rule": ""}
