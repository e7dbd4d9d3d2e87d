"""Named tensors <-> one flat float32 vector, and how that vector is cut into shards.

Theory of operation. A model is many named tensors; a parameter server wants one vector and key
ranges. A `Layout` is the fixed map between the two:

    | parameter | gap | parameter | gap | ... | buffer | gap | buffer | gap |
    0                                   parameters_size                 size

Trainable parameters come first, then the floating buffers (BatchNorm statistics), which are
averaged rather than optimised and so never belong to a shard's key range. Every field starts at
a multiple of `ALIGN` elements (64 bytes), so that a kernel working on a view into the vector sees
the alignment of a tensor allocated on its own, and runs the same instructions in the same order:
that makes "one worker equals the plain loop, bit for bit" possible. The gaps hold zeros.

Everything here is integers and tuples: no array library, so every layer may use it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Self

from tardygrad.errors import CheckpointError, ConfigError

__all__ = [
    "ALIGN",
    "ELEMENT_BYTES",
    "Field",
    "FieldKind",
    "KeyRange",
    "Layout",
    "Locality",
    "partition",
]

ALIGN = 16
"""Elements between possible starts of a field: 16 float32 are 64 bytes, one cache line."""

ELEMENT_BYTES = 4
"""Bytes of an element of the flat vector (float32, whatever dtype the model's own tensor has)."""

FieldKind = Literal["parameter", "buffer"]
Locality = Literal["element", "tensor", "global"]
TensorSpec = tuple[str, Sequence[int], str]
"""Name, shape and dtype (as `str(tensor.dtype)` without `torch.`) of one tensor."""


@dataclass(frozen=True, slots=True)
class KeyRange:
    """The half-open run `[start, stop)` of elements of the flat vector that a shard owns."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop:
            raise ValueError(f"KeyRange needs 0 <= start <= stop, got {self.start}, {self.stop}")

    @property
    def size(self) -> int:
        """Elements in the range."""
        return self.stop - self.start

    @property
    def slice(self) -> slice:
        """The range as an index: `vector[key_range.slice]`."""
        return slice(self.start, self.stop)


@dataclass(frozen=True, slots=True)
class Field:
    """One named tensor in the flat vector: elements `[offset, offset + size)`.

    Attributes:
        name: Its name in the model, as in `named_parameters()`.
        shape: Its shape; `()` is a scalar.
        dtype: Its dtype in the model ("float32", "bfloat16", ...). In the vector it is float32.
        offset: Its first element in the flat vector, a multiple of `ALIGN`.
        size: Its elements (the product of the shape).
        kind: "parameter" (trained) or "buffer" (averaged).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    size: int
    kind: FieldKind

    @property
    def stop(self) -> int:
        """The element after its last."""
        return self.offset + self.size


@dataclass(frozen=True, slots=True)
class Layout:
    """The map between a model's tensors and its flat vector. Build it with `Layout.of`.

    Attributes:
        fields: Parameters, then buffers, by ascending offset.
        parameters_size: Elements of the vector's trainable part, gaps included; a multiple of
            `ALIGN`.
        size: Elements of the whole vector, buffers and gaps included; a multiple of `ALIGN`.
    """

    fields: tuple[Field, ...]
    parameters_size: int
    size: int

    @classmethod
    def of(cls, parameters: Iterable[TensorSpec], buffers: Iterable[TensorSpec] = ()) -> Self:
        """Lay tensors out in the order given, parameters before buffers.

        Args:
            parameters: Name, shape and dtype of each trainable tensor (a tied one once).
            buffers: The same for each floating buffer.

        Raises:
            ValueError: If two tensors have one name, or a shape has a negative extent.

        >>> layout = Layout.of([("w", (3, 5), "float32"), ("b", (3,), "float32")])
        >>> [(f.name, f.offset, f.size) for f in layout.fields], layout.size
        ([('w', 0, 15), ('b', 16, 3)], 32)
        """
        fields: list[Field] = []
        offset = 0

        def append(spec: TensorSpec, kind: FieldKind) -> None:
            nonlocal offset
            name, shape, dtype = spec
            extents = tuple(int(extent) for extent in shape)
            if any(extent < 0 for extent in extents):
                raise ValueError(f"{kind} {name!r} has shape {extents}: extents must be >= 0")
            size = math.prod(extents)
            fields.append(Field(name, extents, dtype, offset, size, kind))
            offset = _aligned(offset + size)

        for spec in parameters:
            append(spec, "parameter")
        parameters_size = offset
        for spec in buffers:
            append(spec, "buffer")
        names = [field.name for field in fields]
        if len(set(names)) != len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"every tensor needs a name of its own; given twice: {twice}")
        return cls(tuple(fields), parameters_size, offset)

    @property
    def parameters(self) -> tuple[Field, ...]:
        """The trainable fields."""
        return tuple(field for field in self.fields if field.kind == "parameter")

    @property
    def buffers(self) -> tuple[Field, ...]:
        """The averaged fields."""
        return tuple(field for field in self.fields if field.kind == "buffer")

    @property
    def buffers_size(self) -> int:
        """Elements of the vector's averaged part, gaps included."""
        return self.size - self.parameters_size

    @property
    def parameter_count(self) -> int:
        """Trainable numbers of the model, gaps not counted."""
        return sum(field.size for field in self.fields if field.kind == "parameter")

    def fingerprint(self) -> str:
        """The sha256 (hex) of names, shapes, dtypes and kinds: equal for equal models.

        Part of a run's lineage: a checkpoint or a worker of another model has another fingerprint.
        """
        text = json.dumps([[f.name, list(f.shape), f.dtype, f.kind] for f in self.fields])
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """This layout as plain JSON values (offsets included, so that others can read files)."""
        return {
            "align": ALIGN,
            "parameters_size": self.parameters_size,
            "size": self.size,
            "fields": [
                {
                    "name": f.name,
                    "shape": list(f.shape),
                    "dtype": f.dtype,
                    "offset": f.offset,
                    "size": f.size,
                    "kind": f.kind,
                }
                for f in self.fields
            ],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The layout that `to_json` wrote.

        Raises:
            CheckpointError: If a key is missing or wrong, or the offsets are not those that this
                version computes.
        """
        try:
            specs: dict[str, list[TensorSpec]] = {"parameter": [], "buffer": []}
            for entry in data["fields"]:
                spec = (str(entry["name"]), tuple(entry["shape"]), str(entry["dtype"]))
                specs[entry["kind"]].append(spec)
            layout = cls.of(specs["parameter"], specs["buffer"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"not a layout: {type(error).__name__}: {error}; expected what "
                "Layout.to_json writes"
            ) from error
        if layout.to_json() != data:
            raise CheckpointError(
                f"this layout was written with other offsets (align {data.get('align')!r}, size "
                f"{data.get('size')!r}); this version computes align {ALIGN}, size {layout.size}: "
                "read it with the tardygrad version that wrote it"
            )
        return layout


def partition(layout: Layout, servers: int, locality: Locality = "element") -> tuple[KeyRange, ...]:
    """Cut the trainable part of the vector into one key range for each server.

    The ranges are in order, not empty, and cover `[0, parameters_size)` exactly. Sizes are
    balanced: with "element" they differ by one cache line at most; with "tensor" the largest is as
    small as cuts between tensors allow.

    Args:
        layout: What to cut.
        servers: How many ranges, at least 1.
        locality: Where the method in use may be cut: "element" (anywhere, here at multiples of
            `ALIGN`), "tensor" (between tensors) or "global" (nowhere).

    Raises:
        ConfigError: If the vector cannot be cut into that many ranges.

    >>> layout = Layout.of([("w", (10, 10), "float32"), ("b", (10,), "float32")])
    >>> partition(layout, 2)
    (KeyRange(start=0, stop=64), KeyRange(start=64, stop=128))
    >>> partition(layout, 2, "tensor")
    (KeyRange(start=0, stop=112), KeyRange(start=112, stop=128))
    """
    if locality not in ("element", "tensor", "global"):
        raise ConfigError(f"locality must be 'element', 'tensor' or 'global', got {locality!r}")
    borders = _borders(layout, locality)
    most = len(borders) - 1
    if not 1 <= servers <= most:
        raise ConfigError(_refusal(layout, servers, locality, most))
    if locality == "element":
        cuts = [borders[most * server // servers] for server in range(servers + 1)]
    else:
        cuts = _balanced_cuts(borders, servers)
    return tuple(KeyRange(start, stop) for start, stop in pairwise(cuts))


def _aligned(offset: int) -> int:
    return -(-offset // ALIGN) * ALIGN


def _borders(layout: Layout, locality: Locality) -> Sequence[int]:
    """Where the vector may be cut, ascending, both ends included."""
    if locality == "element":
        return range(0, layout.parameters_size + 1, ALIGN)
    if locality == "tensor":
        # A set, as tensors without elements share their offset with the next; sorted at once.
        return sorted({f.offset for f in layout.parameters} | {0, layout.parameters_size})
    return sorted({0, layout.parameters_size})


def _refusal(layout: Layout, servers: int, locality: Locality, most: int) -> str:
    unit = {
        "element": f"blocks of {ALIGN} elements",
        "tensor": "whole tensors, as this method needs",
        "global": "no parts, as this method needs the whole model in one place",
    }[locality]
    allowed = "1" if most == 1 else f"1 to {most}"
    advice = f"set servers to {allowed}" if most else "the model has nothing to train"
    return (
        f"servers is {servers}, but the model's {layout.parameter_count} parameters can be cut "
        f"into at most {most} shard{'' if most == 1 else 's'} ({unit}): {advice}"
    )


def _balanced_cuts(borders: Sequence[int], servers: int) -> list[int]:
    """The cuts at `borders` that make the largest of `servers` non-empty ranges smallest."""
    sizes = [stop - start for start, stop in pairwise(borders)]
    low, high = max(sizes), sum(sizes)
    while low < high:
        middle = (low + high) // 2
        if len(_fill(borders, middle)) <= servers:
            high = middle
        else:
            low = middle + 1
    cuts = [0, *_fill(borders, low)]
    # Filling each range to the brim may need fewer ranges than there are servers. Cut further,
    # each time the largest range that can be cut, at the border nearest to its middle.
    while len(cuts) - 1 < servers:
        places = [
            (stop - start, [b for b in borders if start < b < stop], (start + stop) / 2)
            for start, stop in pairwise(cuts)
        ]
        _, inner, middle_of_range = max((p for p in places if p[1]), key=lambda place: place[0])
        cuts.append(min(inner, key=lambda border: abs(border - middle_of_range)))
        cuts.sort()
    return cuts


def _fill(borders: Sequence[int], capacity: int) -> list[int]:
    """The stops of ranges that are each filled as far as `capacity` allows, from the left."""
    stops: list[int] = []
    start = borders[0]
    for before, after in pairwise(borders):
        if after - start > capacity:
            stops.append(before)
            start = before
    return [*stops, borders[-1]]
