"""A checkpoint as a plain state dict, for use without tardygrad.

Theory of operation. A run's shards hold the trained parameters and the averaged buffers; what else
a state dict has never changes, and is kept in the run directory from its beginning
(``models.fixed``). The manifest says where in the vector every tensor lies. So a run can be
exported by whoever has its directory; the code of its model need not be there.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from tardygrad import documents
from tardygrad.engines.shard_host import BufferTable
from tardygrad.engines.stores import check_manifest
from tardygrad.errors import CheckpointError
from tardygrad.layout import Layout
from tardygrad.models.fixed import FixedState, fixed_state
from tardygrad.storage.atomic import PathLike, replace, storage_error
from tardygrad.storage.checkpoints import Check, Checkpoint, CheckpointStore
from tardygrad.storage.remote import RemoteCheckpoints, fetch_newer
from tardygrad.storage.run_directory import RunDirectory
from tardygrad.storage.safetensors_file import write_tensors

if TYPE_CHECKING:
    from tardygrad.models.torch import TorchAdapter

__all__ = ["Exported", "export", "keep_fixed_state"]


class Exported(NamedTuple):
    """What was exported: where to, of which checkpoint, and what was passed over for it.

    ``left_out`` are entries of the model's state dict that are no tensors; ``url`` is where the
    checkpoint was fetched from, empty if it was in the run's directory.
    """

    path: Path
    step: int
    samples: int
    passed_over: tuple[str, ...]
    left_out: tuple[str, ...]
    url: str = ""


def keep_fixed_state(directory: RunDirectory, adapter: TorchAdapter) -> None:
    """Keep in a run's directory what of the model's state dict no server holds, once.

    Raises:
        StorageError: it cannot be written.
    """
    if directory.fixed_state.exists():
        return
    fixed = fixed_state(adapter.module, adapter.layout)
    texts = {"names": json.dumps(fixed.names), "left_out": json.dumps(fixed.left_out)}
    with replace(directory.fixed_state) as file:
        write_tensors(file, fixed.tensors, texts)


def export(
    run: str | os.PathLike[str], path: PathLike | None = None, *, checkpoint: int | None = None
) -> Exported:
    """Write a checkpoint's model as safetensors with the names, shapes and dtypes of its module.

    ``model.load_state_dict(safetensors.torch.load_file(path))`` takes it.

    Args:
        run: The run's directory; the run may be going on.
        path: The file to write; None takes ``model.safetensors`` in the run directory.
        checkpoint: The step of a checkpoint; None takes the newest that is whole, from
            ``checkpoint.url`` if none here is.

    Raises:
        RunDirectoryError: There is no run.
        CheckpointError: There is no such checkpoint, it is damaged, or of another run.
        StorageError: The file cannot be written.
    """
    directory = RunDirectory.open(run)
    fixed = _read_fixed(directory)
    with tempfile.TemporaryDirectory() as elsewhere:
        store = here = CheckpointStore(directory.path)
        found = _find(directory, here, checkpoint)
        url = ""
        if found is None:
            store = CheckpointStore(elsewhere)
            found, url = _fetch(directory, here, store)
        state = _state_dict(store, found, fixed)
    target = directory.path / "model.safetensors" if path is None else Path(path)
    samples = min(found.manifest["samples"])
    texts = {
        "format": "pt",  # of torch; other libraries ask for it
        "run": directory.record.run,
        "checkpoint": str(found.step),
        "samples": str(samples),
    }
    with replace(target) as file:
        write_tensors(file, state, texts)
    reasons = tuple(reason for _, reason in here.skipped)
    return Exported(target, found.step, samples, reasons, tuple(fixed.left_out), url)


def _check(directory: RunDirectory) -> Check:
    def check(checkpoint: Checkpoint) -> None:
        check_manifest(checkpoint, directory.record.run)

    return check


def _find(directory: RunDirectory, store: CheckpointStore, step: int | None) -> Checkpoint | None:
    check = _check(directory)
    if step is None:
        return store.newest_valid(check)
    if step < 0 or not store.directory(step).is_dir():
        steps = ", ".join(map(str, store.steps())) or "none"
        raise CheckpointError(f"{directory} has no checkpoint {step}; there are: {steps}")
    found = store.read(step)
    check(found)
    store.verify(found)
    return found


def _fetch(
    directory: RunDirectory, here: CheckpointStore, store: CheckpointStore
) -> tuple[Checkpoint, str]:
    """The newest copy and where it is, where none of the run's own directory can be used."""
    reasons = [reason for _, reason in here.skipped]
    config = documents.parse(directory.read_config(), str(directory.config_yaml))
    url = config.get("checkpoint", {}).get("url")
    if url is not None:
        remote = RemoteCheckpoints(url, directory.record.run)
        fetch_newer(remote, store, _check(directory), lambda _, reason: reasons.append(reason))
        fetched = store.newest_valid()
        if fetched is not None:
            return fetched, url
    if reasons:
        raise CheckpointError(f"no checkpoint of {directory} can be used: {'; '.join(reasons)}")
    if directory.record.outcome == "done":
        raise CheckpointError(
            f"{directory} is done, and its checkpoints are gone: restore the folder checkpoints "
            "from a copy"
        )
    raise CheckpointError(
        f"{directory} has no checkpoint yet: stop it with Ctrl-C, or wait for one"
    )


def _read_fixed(directory: RunDirectory) -> FixedState:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    path = directory.fixed_state
    try:
        with safe_open(path, "pt") as file:
            texts = file.metadata() or {}
        return FixedState(
            load_file(path), json.loads(texts["names"]), json.loads(texts["left_out"])
        )
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is missing: the run was begun by an earlier version; resume it for a moment"
        ) from error
    except OSError as error:
        raise storage_error(error, path, "read") from error
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); restore it from a copy") from error


def _state_dict(
    store: CheckpointStore, checkpoint: Checkpoint, fixed: FixedState
) -> dict[str, torch.Tensor]:
    layout = Layout.from_json(checkpoint.manifest["layout"])
    flat = torch.zeros(layout.size)
    for shard, (start, stop) in enumerate(checkpoint.manifest["ranges"]):
        tensors, _ = store.load_shard(checkpoint, shard)
        values = tensors.get("parameters", torch.empty(0))
        if values.shape != (stop - start,):
            raise CheckpointError(
                f"the manifest of {checkpoint.path} is damaged: shard {shard} has "
                f"{values.numel()} parameters and not those of range {start} to {stop}"
            )
        flat[start:stop] = values
        if shard == 0 and layout.buffers_size:
            table = BufferTable(flat[layout.parameters_size :])
            table.load_state(tensors)
            flat[layout.parameters_size :] = table.mean()
    fields: dict[str, Any] = {f.name: f for f in layout.fields}
    lost = sorted(set(fields) - set(fixed.names.values()))
    if lost:
        raise CheckpointError(
            f"the model's state_dict() has no entry that is its {lost[0]!r}, so a file of its "
            "state cannot be made of a checkpoint; save result.model in Python instead"
        )
    state = dict(fixed.tensors)
    for name, field in fixed.names.items():
        f = fields[field]
        values = flat[f.offset : f.stop].view(f.shape)
        state[name] = values.to(getattr(torch, f.dtype))
    return state
