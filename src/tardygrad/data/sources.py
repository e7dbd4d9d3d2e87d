"""Where samples come from: anything that turns sample numbers into a batch of tensors.

Theory of operation. A worker knows which samples to train by number (see `fragments`), so a source
needs a length and `batch(indices)`, nothing else: no iterator whose position would have to be
saved, no order of its own. Arrays in memory are the common case and must cost next to nothing
beside a small model's step, hence `ArraySource`: one `index_select` for each tensor. Everything
else that torch users have is a map-style `Dataset`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, cast, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from tardygrad.errors import DataError

__all__ = ["ArraySource", "DatasetSource", "Indices", "Source", "as_source"]

Indices: TypeAlias = npt.NDArray[np.int64]
"""Sample numbers, int64 `[n]`, writable."""


@runtime_checkable
class Source(Protocol):
    """Samples by number."""

    def __len__(self) -> int:
        """How many samples there are."""
        ...

    def batch(self, indices: Indices) -> tuple[torch.Tensor, ...]:
        """The samples `indices` as one batch.

        Args:
            indices: Sample numbers, int64 `[n]`, each in `[0, len)`; may repeat.

        Returns:
            The model's inputs and, last, the target: each a tensor `[n, ...]`.
        """
        ...


class ArraySource:
    """Samples in memory: tensors with one row for each sample, the target last.

    Args:
        *tensors: At least two, of one length; made contiguous.

    Raises:
        DataError: If there are fewer than two, lengths differ, or there is no sample.

    >>> source = ArraySource(torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, 0]))
    >>> source.batch(np.array([2, 0]))
    (tensor([[4., 5.],
            [0., 1.]]), tensor([0, 0]))
    """

    def __init__(self, *tensors: torch.Tensor) -> None:
        if len(tensors) < 2:
            raise DataError(
                f"data in arrays need at least two, the inputs and the target, got {len(tensors)}; "
                "for a model that predicts its input, pass the inputs twice"
            )
        for number, tensor in enumerate(tensors):
            if not isinstance(tensor, torch.Tensor):
                raise DataError(
                    f"array {number} is {_kind(tensor)}, expected a torch.Tensor; "
                    "tardygrad.data.as_source converts other kinds"
                )
            if tensor.dim() == 0:
                raise DataError(f"array {number} is a single number, expected one row per sample")
        lengths = [len(tensor) for tensor in tensors]
        if len(set(lengths)) > 1:
            raise DataError(
                f"the arrays have {', '.join(map(str, lengths))} rows; expected the same number, "
                "one row of each for every sample"
            )
        if lengths[0] == 0:
            raise DataError("the arrays have no rows; expected at least one sample")
        self.tensors = tuple(tensor.detach().contiguous() for tensor in tensors)
        self._length = lengths[0]

    def __len__(self) -> int:
        return self._length

    def batch(self, indices: Indices) -> tuple[torch.Tensor, ...]:
        """Rows `indices` of every tensor, copied."""
        rows = torch.from_numpy(indices)
        return tuple([torch.index_select(tensor, 0, rows) for tensor in self.tensors])

    def __repr__(self) -> str:
        shapes = ", ".join(f"{tuple(t.shape)} {t.dtype}" for t in self.tensors)
        return f"ArraySource({shapes})"


class DatasetSource:
    """The samples of a map-style `torch.utils.data.Dataset`.

    The dataset is read in the process and at the moment that needs the batch.

    Args:
        dataset: Has `__len__` and `__getitem__` (and `__getitems__`, if it can fetch many at once).
        collate: Makes a batch of a list of samples; by default torch's `default_collate`.

    Raises:
        DataError: If the dataset is an iterable one, or empty.
    """

    def __init__(
        self, dataset: Dataset[Any], collate: Callable[[list[Any]], Any] | None = None
    ) -> None:
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
            raise DataError(
                f"{_kind(dataset)} cannot be read by sample number, so no sample could be redone "
                "after a failure; expected a map-style dataset with __len__ and __getitem__"
            )
        try:
            self._length = len(cast("Sequence[Any]", dataset))
        except (TypeError, NotImplementedError):
            raise DataError(
                f"{_kind(dataset)} has no length; expected a dataset with __len__"
            ) from None
        if self._length == 0:
            raise DataError(f"{_kind(dataset)} is empty; expected at least one sample")
        self.dataset = dataset
        self._collate = collate

    def __len__(self) -> int:
        return self._length

    def batch(self, indices: Indices) -> tuple[torch.Tensor, ...]:
        """The samples fetched one after the other and collated.

        Raises:
            DataError: If the collated batch is not a tuple or list of tensors.
        """
        numbers: list[int] = indices.tolist()
        fetch_many = getattr(self.dataset, "__getitems__", None)
        if fetch_many is not None:
            samples = list(fetch_many(numbers))
        else:
            samples = [self.dataset[number] for number in numbers]
        collate = self._collate
        if collate is None:
            collate = torch.utils.data.default_collate
        batch = collate(samples)
        if (
            not isinstance(batch, tuple | list)
            or len(batch) < 2
            or not all(isinstance(part, torch.Tensor) for part in batch)
        ):
            raise DataError(
                f"samples of {_kind(self.dataset)} were collated to {_kind(batch)}; expected a "
                "tuple of at least two tensors, the target last: return (input, target) from the "
                "dataset, or wrap it as DatasetSource(dataset, collate=...)"
            )
        return tuple(batch)

    def __repr__(self) -> str:
        return f"DatasetSource({self.dataset!r})"


def as_source(data: Any) -> Source:
    """Make a source of whatever people have.

    Args:
        data: A `Source`; a tuple or list of arrays (torch or numpy; the target last); or a
            map-style torch `Dataset`. Numpy arrays of float64 become float32, and whole numbers
            as the target become int64, which is what torch's layers and losses take.

    Raises:
        DataError: If it is something else, empty, or its arrays differ in length.
    """
    if isinstance(data, TensorDataset):
        return ArraySource(*data.tensors)
    if isinstance(data, Dataset):
        return DatasetSource(data)
    if isinstance(data, tuple | list):
        last = len(data) - 1
        return ArraySource(
            *(_as_tensor(array, number, number == last) for number, array in enumerate(data))
        )
    if isinstance(data, Source) and not isinstance(data, type):
        if len(data) == 0:
            raise DataError(f"{_kind(data)} is empty; expected at least one sample")
        return data
    raise DataError(
        f"cannot take {_kind(data)} as data; expected arrays (inputs, target), a map-style torch "
        "Dataset, or an object with __len__ and batch(indices)"
    )


def _as_tensor(array: Any, number: int, is_target: bool) -> torch.Tensor:
    if isinstance(array, torch.Tensor):
        return array
    if not isinstance(array, np.ndarray):
        raise DataError(
            f"array {number} is {_kind(array)}, expected a numpy array or a torch tensor"
        )
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    elif is_target and np.issubdtype(array.dtype, np.integer):
        array = array.astype(np.int64)
    # Torch takes neither foreign byte order nor negative strides, and warns of read-only memory.
    array = np.require(array, array.dtype.newbyteorder("="), ["C", "W"])
    try:
        return torch.from_numpy(array)
    except TypeError:
        raise DataError(
            f"array {number} has dtype {array.dtype}, which torch cannot hold; expected numbers"
        ) from None


def _kind(value: Any) -> str:
    kind = type(value)
    name = (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
    return f"an object of type {name}"
