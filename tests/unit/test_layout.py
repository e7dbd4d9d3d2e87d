"""Layout: where tensors lie in the flat vector, and how it is cut."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tardygrad.errors import CheckpointError, ConfigError
from tardygrad.layout import ALIGN, KeyRange, Layout, Locality, partition

shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple)
tensors = st.lists(st.tuples(shapes, st.sampled_from(["float32", "bfloat16"])), max_size=8)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    def named(prefix: str) -> list[tuple[str, tuple[int, ...], str]]:
        return [(f"{prefix}{i}", shape, dtype) for i, (shape, dtype) in enumerate(draw(tensors))]

    return Layout.of(named("p"), named("b"))


@st.composite
def cuts(draw: st.DrawFn) -> tuple[Layout, Locality, tuple[KeyRange, ...]]:
    sizes = draw(st.lists(st.integers(1, 200), min_size=1, max_size=12))
    layout = Layout.of([(f"p{i}", (size,), "float32") for i, size in enumerate(sizes)])
    locality = draw(st.sampled_from(("element", "tensor")))
    most = layout.parameters_size // ALIGN if locality == "element" else len(sizes)
    servers = draw(st.integers(1, most))
    return layout, locality, partition(layout, servers, locality)


@given(layouts())
def test_fields_are_aligned_in_order_and_apart(layout: Layout) -> None:
    for field in layout.fields:
        assert field.offset % ALIGN == 0
    for before, after in pairwise(layout.fields):
        assert before.stop <= after.offset < before.stop + ALIGN
        assert (before.kind, after.kind) != ("buffer", "parameter")
    assert layout.parameters_size % ALIGN == 0
    assert layout.size % ALIGN == 0
    for field in layout.parameters:
        assert field.stop <= layout.parameters_size
    for field in layout.buffers:
        assert layout.parameters_size <= field.offset
        assert field.stop <= layout.size
    assert layout.parameter_count == sum(field.size for field in layout.parameters)
    assert layout.parameters_size + layout.buffers_size == layout.size


def test_of_computes_sizes_of_scalars_and_empty_tensors() -> None:
    layout = Layout.of(
        [("scalar", (), "float32"), ("empty", (0, 3), "float32"), ("w", (17,), "float32")],
        [("mean", (4,), "float32")],
    )
    assert [(f.name, f.offset, f.size) for f in layout.fields] == [
        ("scalar", 0, 1),
        ("empty", 16, 0),
        ("w", 16, 17),
        ("mean", 48, 4),
    ]
    assert (layout.parameters_size, layout.size, layout.parameter_count) == (48, 64, 18)


def test_of_refuses_a_name_given_twice() -> None:
    with pytest.raises(ValueError, match=r"given twice: \['w'\]"):
        Layout.of([("w", (1,), "float32")], [("w", (2,), "float32")])


@given(layouts())
def test_json_round_trip(layout: Layout) -> None:
    again = Layout.from_json(json.loads(json.dumps(layout.to_json())))
    assert again == layout
    assert again.fingerprint() == layout.fingerprint()


@pytest.mark.parametrize(
    "change",
    [{"size": 5}, {"align": 8}, {"fields": [{"name": "w"}]}, {"fields": None}],
)
def test_from_json_refuses_what_it_did_not_write(change: dict[str, object]) -> None:
    data = Layout.of([("w", (3,), "float32")]).to_json()
    with pytest.raises(CheckpointError, match="layout"):
        Layout.from_json(data | change)


def test_fingerprint_depends_on_names_shapes_dtypes_and_kinds() -> None:
    layouts = [
        Layout.of([("w", (2, 3), "float32")]),
        Layout.of([("v", (2, 3), "float32")]),
        Layout.of([("w", (3, 2), "float32")]),
        Layout.of([("w", (2, 3), "bfloat16")]),
        Layout.of([], [("w", (2, 3), "float32")]),
    ]
    assert len({layout.fingerprint() for layout in layouts}) == len(layouts)


@given(cuts())
def test_partition_covers_the_parameters_once(
    cut: tuple[Layout, Locality, tuple[KeyRange, ...]],
) -> None:
    layout, locality, ranges = cut
    assert ranges[0].start == 0
    assert ranges[-1].stop == layout.parameters_size
    for before, after in pairwise(ranges):
        assert before.stop == after.start
    for key_range in ranges:
        assert key_range.size > 0
        assert key_range.start % ALIGN == 0
    if locality == "element":
        sizes = [key_range.size for key_range in ranges]
        assert max(sizes) - min(sizes) <= ALIGN
    else:
        borders = {field.offset for field in layout.parameters}
        assert {key_range.start for key_range in ranges} <= borders


@given(st.lists(st.integers(1, 80), min_size=1, max_size=7), st.data())
def test_tensor_cuts_make_the_largest_shard_smallest(sizes: list[int], data: st.DataObject) -> None:
    layout = Layout.of([(f"p{i}", (size,), "float32") for i, size in enumerate(sizes)])
    servers = data.draw(st.integers(1, len(sizes)))
    borders = [*(field.offset for field in layout.parameters), layout.parameters_size]

    def smallest_largest(start: int, parts: int) -> int:
        if parts == 1:
            return borders[-1] - borders[start]
        return min(
            max(borders[stop] - borders[start], smallest_largest(stop, parts - 1))
            for stop in range(start + 1, len(borders) - parts + 1)
        )

    largest = max(key_range.size for key_range in partition(layout, servers, "tensor"))
    assert largest == smallest_largest(0, servers)


@pytest.mark.parametrize(
    ("locality", "servers", "message"),
    [
        ("element", 4, "servers is 4, but the model's 33 parameters .* at most 3 shards"),
        (
            "tensor",
            3,
            "servers is 3, but .* at most 2 shards .*whole tensors.*set servers to 1 to 2",
        ),
        ("global", 2, "servers is 2, but .* at most 1 shard .*set servers to 1$"),
        ("element", 0, "servers is 0"),
        ("row", 1, "got 'row'"),
    ],
)
def test_partition_refuses_what_cannot_be_cut(
    locality: Locality, servers: int, message: str
) -> None:
    layout = Layout.of([("w", (32,), "float32"), ("b", (1,), "float32")])
    with pytest.raises(ConfigError, match=message):
        partition(layout, servers, locality)


def test_global_is_one_range() -> None:
    layout = Layout.of([("w", (32,), "float32")], [("mean", (4,), "float32")])
    assert partition(layout, 1, "global") == (KeyRange(0, 32),)


def test_key_range_refuses_a_stop_before_its_start() -> None:
    with pytest.raises(ValueError, match="got 3, 2"):
        KeyRange(3, 2)
    assert KeyRange(16, 48).size == 32
