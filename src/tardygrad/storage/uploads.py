"""Checkpoints on their way to another place, beside the training.

Theory of operation. One thread copies the newest checkpoint that was offered; those that are
overtaken while it is busy are left out. What fails is tried again, ever less often, until it
succeeds or something newer comes; nobody waits for it but the end of the run, and that only as long
as the copy comes further than it came before.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from tardygrad.errors import TardygradError
from tardygrad.storage.checkpoints import Checkpoint
from tardygrad.storage.remote import RemoteCheckpoints

__all__ = ["Uploader"]

_log = logging.getLogger(__name__)


class Uploader:
    """Copies what it is offered, in a thread of its own.

    Args:
        remote: where to.
        keep: how many copies stay there.
        tell: is told decisions and reasons, from that thread.
        retry_s: seconds before a copy that failed is tried again, doubled each time up to the
            second number.
    """

    def __init__(
        self,
        remote: RemoteCheckpoints,
        keep: int,
        tell: Callable[[str, str], None],
        *,
        retry_s: tuple[float, float] = (1.0, 60.0),
    ) -> None:
        self._remote, self._keep, self._tell, self._retry_s = remote, keep, tell, retry_s
        self._changed = threading.Condition()
        self._wanted: Checkpoint | None = None
        self._busy = False
        self._failure = ""
        self._ending = self._given_up = False
        # A connection that hangs must not keep the process alive.
        threading.Thread(target=self._run, daemon=True, name="uploads").start()

    def offer(self, checkpoint: Checkpoint) -> None:
        """A newer checkpoint is there; never waits."""
        with self._changed:
            self._wanted = checkpoint
            self._changed.notify_all()

    def finish(self, patience_s: float, hurried: Callable[[], bool] = lambda: False) -> str:
        """Wait for the newest; returns why it is not there, or an empty string.

        Gives up when the copy has come no further for ``patience_s``, or soon after ``hurried``
        has become true.
        """
        began = time.monotonic()
        with self._changed:
            self._ending = True
            self._changed.notify_all()
            while self._wanted is not None or self._busy:
                left = max(began, self._remote.active_at) + patience_s - time.monotonic()
                if left <= 0 or hurried():
                    self._given_up, self._wanted = True, None
                    reason = self._failure or ("nothing moves" if left <= 0 else "a signal came")
                    _log.warning("the newest checkpoint is not at %s: %s", self._remote.url, reason)
                    return reason
                self._changed.wait(min(left, 1.0))
        return ""

    def _run(self) -> None:
        wait_s = self._retry_s[0]
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted is not None or self._ending)
                checkpoint, self._wanted = self._wanted, None
                if checkpoint is None:
                    return
                self._busy = True
            failure = self._copy(checkpoint)
            with self._changed:
                self._busy, self._failure = False, failure
                if self._given_up:
                    return
                if failure and self._wanted is None:
                    self._wanted = checkpoint
                self._changed.notify_all()
                if not failure:
                    wait_s = self._retry_s[0]
                    continue
                # At the end of a run somebody waits for it.
                self._changed.wait(self._retry_s[0] if self._ending else wait_s)
                wait_s = min(2 * wait_s, self._retry_s[1])

    def _copy(self, checkpoint: Checkpoint) -> str:
        """Copy it; returns why that must be tried again, or an empty string."""
        step = checkpoint.step
        try:
            self._remote.upload(checkpoint)
        except FileNotFoundError:
            # Deleted here meanwhile, because newer ones are there: one of those is offered.
            self._tell(f"checkpoint {step} is not copied", "it was overtaken by newer ones")
            return ""
        except Exception as error:  # whatever it is: without this thread nothing would be copied
            reason = _reason(error)
            self._tell(f"checkpoint {step} is not copied yet", reason)
            return reason
        self._tell(f"checkpoint {step} is copied", f"to {self._remote.url}")
        try:
            self._remote.prune(self._keep)
        except Exception as error:
            self._tell("old copies are not deleted yet", _reason(error))
        return ""


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, TardygradError) else f"{type(error).__name__}: {text}"
