"""A shard's tensors and trace, in whatever process its server lives.

The server machine decides; this host does: it books a record in the trace, applies the update
through the method's server rule, keeps each worker's newest buffers (shard 0 alone: BatchNorm
statistics ride with its pushes and are averaged over the workers), and gives and takes snapshots.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Protocol

import torch

from tardygrad.errors import StorageError
from tardygrad.methods.base import Method, Origin
from tardygrad.protocol.effects import Apply, Commit, Gather, Include
from tardygrad.protocol.trace import Encoder, Record, file_header
from tardygrad.storage.traces import whole_until


class TraceSink(Protocol):
    """Where records go."""

    def write(self, record: Record) -> None:
        """Keep the record; it survives this process once the call returns."""
        ...

    def close(self) -> None:
        """No more records."""
        ...


class NoTrace:
    """Where nothing is recorded: a replay, or a backup, whose server records."""

    def write(self, record: Record) -> None:
        """Forget the record."""

    def close(self) -> None:
        """Nothing to do."""


class TraceFile:
    """Appends records to one shard's trace file, one system call each.

    What has reached the operating system survives the death of this process, which is what a
    trace is for. It is forced to the disk with every snapshot.

    Raises:
        StorageError: the file cannot be written, or is the trace of another shard, or of a run
            with another number of shards.
    """

    def __init__(self, path: Path, shard: int, shards: int) -> None:
        self._path = path
        self._encoder = Encoder(shards)
        try:
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            size = os.fstat(self._file).st_size
            header = file_header(shard, shards)
            if size < len(header):
                os.ftruncate(self._file, 0)
                os.write(self._file, header)
            else:
                if os.pread(self._file, len(header), 0) != header:
                    os.close(self._file)
                    raise StorageError(
                        f"the trace {path} is not that of shard {shard} of {shards}, so nothing is "
                        "written to it; restore the folder from a copy of the run directory, or "
                        "resume with the number of servers that it is of"
                    )
                with path.open("rb") as written:
                    os.ftruncate(self._file, whole_until(written, size, shards))
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> StorageError:
        return StorageError(
            f"cannot write the trace {self._path}: {error.strerror}; without it nothing proves "
            "that each sample counted once, so the run stops (free some space, then resume it)"
        )

    def write(self, record: Record) -> None:
        """Append the record.

        Raises:
            StorageError: the disk is full or the file cannot be written.
        """
        data = self._encoder.encode(record)
        try:
            if os.write(self._file, data) != len(data):
                raise OSError(28, "No space left on device")
        except OSError as error:
            raise self._failure(error) from error

    def size(self) -> int:
        """Its length in bytes."""
        return os.fstat(self._file).st_size

    def sync(self) -> None:
        """Force what was written to the disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


class BufferTable:
    """Each worker's newest floating buffers, and the mean over those who still push.

    A worker that did not push while the others together pushed ``GONE_AFTER`` times for each row is
    taken for gone, and its row is forgotten. That depends on the order of the updates alone, so a
    replay comes to the same.
    """

    GONE_AFTER = 50

    def __init__(self, initial: torch.Tensor) -> None:
        self._initial = initial.clone()
        self._rows: dict[int, torch.Tensor] = {}
        self._seen: dict[int, int] = {}
        self._puts = 0

    def put(self, worker: int, values: torch.Tensor) -> None:
        """Take in a worker's newest buffers (float32 ``[buffers_size]``)."""
        row = self._rows.get(worker)
        if row is None:
            self._rows[worker] = values.clone()
        else:
            row.copy_(values)
        self._puts += 1
        self._seen[worker] = self._puts
        oldest = min(self._seen, key=self._seen.__getitem__)
        if self._puts - self._seen[oldest] > self.GONE_AFTER * len(self._rows):
            del self._rows[oldest], self._seen[oldest]

    def mean(self) -> torch.Tensor:
        """The mean over the workers that push; the initial values before the first push."""
        if not self._rows:
            return self._initial
        rows = [self._rows[worker] for worker in sorted(self._rows)]
        # The mean of one is itself, to the bit.
        return rows[0] if len(rows) == 1 else torch.stack(rows).mean(dim=0)

    def state(self) -> dict[str, torch.Tensor]:
        """Copies, for a snapshot."""
        state = {f"buffers.{worker}": row.clone() for worker, row in self._rows.items()}
        ages = [[worker, self._puts - seen] for worker, seen in self._seen.items()]
        state["buffer_ages"] = torch.tensor(ages, dtype=torch.int64).reshape(-1, 2)
        return {**state, "initial_buffers": self._initial.clone()}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Take up what :meth:`state` returned."""
        self._initial = state["initial_buffers"].clone()
        self._puts = 0
        self._seen = {worker: -age for worker, age in state["buffer_ages"].tolist()}
        self._rows = {worker: state[f"buffers.{worker}"].clone() for worker in self._seen}


class ShardHost:
    """One shard's tensors.

    Args:
        method: builds the server rule.
        parameters: float32 ``[size]``, changed in place; already holds the initial values.
        buffers: float32 ``[buffers_size]`` where the averaged buffers are kept (shard 0), or None.
        trace: where records go.
    """

    def __init__(
        self,
        method: Method,
        parameters: torch.Tensor,
        buffers: torch.Tensor | None,
        trace: TraceSink,
    ) -> None:
        self._method = method
        self.rule = method.server_rule(parameters)
        self.trace = trace
        self.buffers = buffers
        self._mean: torch.Tensor | None = None
        self._weight = 0.0
        self._table = None
        if buffers is not None and buffers.numel():
            self._table = BufferTable(buffers)

    @property
    def parameters(self) -> torch.Tensor:
        """The shard as it is now, float32 ``[size]``."""
        return self.rule.parameters

    def apply(
        self,
        effect: Apply,
        update: torch.Tensor,
        buffers: torch.Tensor | None,
        out: torch.Tensor | None = None,
    ) -> None:
        """Apply an update (float32 ``[size]``) and take in the pusher's buffers.

        With ``out`` the new parameters are left there, otherwise they change in place.
        """
        origin = Origin(effect.push.worker, effect.record.staleness)
        self.rule.apply(update, effect.scale, effect.consumed, out, origin)
        if self._table is not None and buffers is not None and self.buffers is not None:
            self._table.put(effect.push.worker, buffers)
            self.buffers.copy_(self._table.mean())

    def include(self, effect: Include, buffers: torch.Tensor | None) -> None:
        """Take in the buffers of a pusher whose update comes with the next that is gathered."""
        if self._table is not None and buffers is not None:
            self._table.put(effect.push.worker, buffers)

    def gather(self, effect: Gather, update: torch.Tensor, buffers: torch.Tensor | None) -> None:
        """Take an update (float32 ``[size]``) into the round's mean, and the pusher's buffers."""
        self._weight += effect.weight
        if self._mean is None:
            self._mean = update.clone()
        else:
            # The mean of equal updates is themselves, and of one it is that one, to the bit.
            self._mean.lerp_(update, effect.weight / self._weight)
        if self._table is not None and buffers is not None:
            self._table.put(effect.push.worker, buffers)

    def commit(self, effect: Commit, out: torch.Tensor | None = None) -> None:
        """Apply the round's mean; ``out`` as for :meth:`apply`."""
        assert self._mean is not None
        self.rule.apply(self._mean, effect.record.scale, effect.consumed, out)
        self._mean, self._weight = None, 0.0
        if self._table is not None and self.buffers is not None:
            self.buffers.copy_(self._table.mean())

    def snapshot(self) -> dict[str, torch.Tensor]:
        """Copies of everything that a restored shard needs."""
        tensors = {"parameters": self.parameters.clone()}
        tensors |= {f"rule.{key}": value for key, value in self.rule.state().items()}
        if self._mean is not None:
            weight = torch.tensor(self._weight, dtype=torch.float64)
            tensors |= {"round.mean": self._mean.clone(), "round.weight": weight}
        if self._table is not None:
            tensors |= self._table.state()
        return tensors

    def image(self) -> dict[str, torch.Tensor]:
        """A snapshot, and the averaged buffers as others read them: of the last commit, perhaps."""
        if self.buffers is None:
            return self.snapshot()
        return {**self.snapshot(), "read_buffers": self.buffers.clone()}

    def restore(self, tensors: dict[str, torch.Tensor], *, same_kind: bool = True) -> None:
        """Take up what :meth:`snapshot` or :meth:`image` returned.

        Of another kind of method that is the parameters alone.

        A rule that needs more than zeros to begin with was built over the initial parameters, so it
        is built again.
        """
        self.parameters.copy_(tensors["parameters"])
        if same_kind:
            prefix = "rule."
            self.rule.load_state(
                {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            )
        else:
            self.rule = self._method.server_rule(self.parameters)
        if same_kind and "round.mean" in tensors:
            self._mean = tensors["round.mean"].clone()
            self._weight = float(tensors["round.weight"])
        if self._table is not None and self.buffers is not None:
            self._table.load_state(tensors)
            read = tensors.get("read_buffers")
            self.buffers.copy_(self._table.mean() if read is None else read)


def digest(parts: list[torch.Tensor]) -> str:
    """sha256 over float32 tensors, hexadecimal: equal digests mean equal bits."""
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(part.detach().contiguous().numpy().tobytes())
    return hasher.hexdigest()
