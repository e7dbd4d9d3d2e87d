"""Scalars for TensorBoard: a view that writes what the run tells into event files.

Theory of operation.  Every curve has the samples applied as its step, so that runs with other
batch sizes and numbers of workers lie over each other; TensorBoard itself offers wall time.
``torch.utils.tensorboard`` is imported when a view is made (two seconds, and an extra), which is
also when a missing library is told: before training, not after.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tardygrad.errors import UsageError
from tardygrad.metrics import wording
from tardygrad.metrics.sink import storage_error

_PROGRESS = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "epoch": "train/epoch",
    "samples_per_s": "speed/samples_per_s",
}
_WORKER = ("samples_per_s", "computing_s", "waiting_s", "communicating_s", "restarts")


class TensorBoardView:
    """Writes progress, epochs and evaluations as scalars."""

    def __init__(self, directory: str | os.PathLike[str], *, resume_at: int | None = None) -> None:
        """Open the event file.

        Args:
            directory: Where the event files go; made if need be.
            resume_at: Samples applied when a resumed run goes on; TensorBoard then hides what an
                earlier incarnation wrote beyond.

        Raises:
            UsageError: the extra ``tensorboard`` is not installed.
            StorageError: the directory cannot be written.
        """
        self._directory = Path(directory)
        try:
            library = importlib.import_module("torch.utils.tensorboard")
        except ImportError as error:
            raise UsageError(
                f"tensorboard=true needs TensorBoard, which cannot be imported ({error}); install "
                "it with: pip install 'tardygrad[tensorboard]', or leave it off"
            ) from error
        try:
            self._writer = library.SummaryWriter(str(self._directory), purge_step=resume_at)
        except OSError as error:
            raise storage_error("write TensorBoard's files into", self._directory, error) from error
        self._samples = 0
        self._closed = False

    def update(self, event: dict[str, Any]) -> None:
        """Write the event's scalars, if it has any.

        Raises:
            StorageError: they cannot be written.
        """
        if self._closed:
            return
        scalars = self._scalars(event)
        try:
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, self._samples)
        except OSError as error:
            raise storage_error("write TensorBoard's files into", self._directory, error) from error

    def close(self) -> None:
        """Write everything out; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._writer.close()

    def _scalars(self, event: Mapping[str, Any]) -> dict[str, float]:
        """The event's scalars by their TensorBoard names; notes the samples applied so far."""
        samples = event.get("samples")
        kind = event.get("event")
        if isinstance(samples, int) and kind in ("progress", "epoch", "evaluate"):
            self._samples = samples
        found: dict[str, Any] = {}
        if kind == "progress":
            found = {name: event.get(field) for field, name in _PROGRESS.items()}
            staleness = event.get("staleness") or {}
            found |= {f"staleness/{field}": value for field, value in staleness.items()}
            for row in event.get("workers") or ():
                prefix = f"worker_{row.get('worker', '?')}"
                found |= {f"{prefix}/{field}": row.get(field) for field in _WORKER}
                found[f"{prefix}/staleness_mean"] = (row.get("staleness") or {}).get("mean")
        elif kind == "epoch":
            found = {"train/loss_epoch": event.get("loss")}
        elif kind == "evaluate":
            found = {"test/loss": event.get("loss")}
            found |= {f"test/{name}": value for name, value in wording.metrics(event).items()}
        return {name: float(v) for name, v in found.items() if isinstance(v, int | float)}
