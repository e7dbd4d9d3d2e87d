"""A callback with which tests stop a run."""

from __future__ import annotations

from typing import Any

from tardygrad.callbacks import Callback


class StopAfter(Callback):
    """Stops the run at the end of an epoch, counted from 1; later ones are stopped as well."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        """Stop, if it is time."""
        self.stop_training = epoch >= self._epoch
