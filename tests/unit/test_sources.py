"""Sources: whatever people have as data becomes batches by sample number, or one clear error."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from tardygrad.config import DataConfig
from tardygrad.data import ArraySource, DatasetSource, Source, as_source
from tardygrad.data.references import call, resolve
from tardygrad.data.registry import load
from tardygrad.errors import ConfigError, DataError, UsageError


class Squares(Dataset[tuple[torch.Tensor, int]]):
    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.tensor([float(index)]), index * index


class ManySquares(Squares):
    def __getitems__(self, indices: list[int]) -> list[tuple[torch.Tensor, int]]:
        return [(torch.tensor([float(index)]), -index) for index in indices]


class Named(Squares):
    def __getitem__(self, index: int) -> Any:
        return {"x": float(index), "y": index}


class Endless(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(int, 1)


class NoLength(Dataset[int]):
    def __getitem__(self, index: int) -> int:
        return index


class OwnSource:
    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def batch(self, indices: np.ndarray) -> tuple[torch.Tensor, ...]:
        rows = torch.from_numpy(indices)
        return rows.float(), rows


@given(st.lists(st.integers(0, 19), max_size=30))
def test_array_batches_are_the_rows_asked_for(rows: list[int]) -> None:
    x = torch.arange(120.0).reshape(20, 2, 3)
    y = torch.arange(20)
    source = ArraySource(x, y)
    inputs, target = source.batch(np.array(rows, dtype=np.int64))
    assert torch.equal(inputs, x[rows])
    assert torch.equal(target, y[rows])
    assert len(source) == 20


def test_array_batches_are_copies() -> None:
    source = ArraySource(torch.zeros(3, 2), torch.zeros(3))
    source.batch(np.arange(3))[0].fill_(1)
    assert source.tensors[0].sum() == 0


def test_arrays_are_made_contiguous_and_leave_the_graph() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    source = ArraySource(x.t(), torch.zeros(3))
    assert source.tensors[0].is_contiguous()
    assert not source.tensors[0].requires_grad


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ((torch.zeros(3),), "at least two, the inputs and the target, got 1"),
        ((torch.zeros(3, 2), torch.zeros(4)), "have 3, 4 rows"),
        ((torch.zeros(0, 2), torch.zeros(0)), "no rows"),
        ((torch.zeros(3), torch.tensor(1.0)), "array 1 is a single number"),
        ((torch.zeros(3), [1, 2, 3]), "array 1 is an object of type list"),
        ((np.array(["a", "b"]), np.zeros(2)), "array 0 has dtype <U1"),
    ],
)
def test_arrays_that_are_no_samples_are_refused(arrays: tuple[Any, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_source(arrays)


def test_numpy_arrays_become_what_layers_and_losses_take() -> None:
    x = np.arange(6.0).reshape(3, 2)[::-1]
    y = np.array([1, 0, 1], dtype=np.uint8)
    y.flags.writeable = False
    source = as_source((x, y))
    inputs, target = source.batch(np.array([0, 2]))
    assert inputs.dtype == torch.float32
    assert inputs.tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert target.dtype == torch.int64
    assert target.tolist() == [1, 1]


@pytest.mark.filterwarnings("error")
def test_read_only_arrays_are_copied_in_silence() -> None:
    x = np.ones((3, 2), dtype=np.float32)
    x.flags.writeable = False
    source = as_source((x, np.zeros(3)))
    assert source.batch(np.array([2]))[0].tolist() == [[1.0, 1.0]]


def test_inputs_of_whole_numbers_and_torch_dtypes_stay() -> None:
    source = as_source([np.ones(2, dtype=">i4"), torch.ones(2, dtype=torch.float64)])
    assert isinstance(source, ArraySource)
    assert [tensor.dtype for tensor in source.tensors] == [torch.int32, torch.float64]


def test_tensor_datasets_become_arrays() -> None:
    source = as_source(TensorDataset(torch.zeros(3, 2), torch.arange(3)))
    assert isinstance(source, ArraySource)


@pytest.mark.parametrize(("dataset", "sign"), [(Squares(), 1), (ManySquares(), 0)])
def test_datasets_are_collated(dataset: Squares, sign: int) -> None:
    source = as_source(dataset)
    assert isinstance(source, DatasetSource)
    assert len(source) == 7
    inputs, target = source.batch(np.array([5, 2]))
    assert inputs.tolist() == [[5.0], [2.0]]
    assert target.tolist() == ([25, 4] if sign else [-5, -2])


def test_subsets_keep_their_numbers() -> None:
    _, target = as_source(Subset(Squares(), [6, 3])).batch(np.array([1, 0]))
    assert target.tolist() == [9, 36]


def test_collate_of_ones_own() -> None:
    def collate(samples: list[dict[str, float]]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor([s["x"] for s in samples]), torch.tensor([s["y"] for s in samples])

    source = DatasetSource(Named(), collate)
    assert source.batch(np.array([3]))[1].tolist() == [3]
    with pytest.raises(DataError, match=r"collated to an object of type dict.*collate="):
        DatasetSource(Named()).batch(np.array([3]))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Endless(), "map-style dataset"),
        (NoLength(), "has no length"),
        (Subset(Squares(), []), "is empty"),
        (OwnSource(0), "is empty"),
        (torch.zeros(3), "cannot take an object of type torch.Tensor as data"),
        (7, "cannot take an object of type int"),
        (OwnSource, "cannot take an object of type type"),
    ],
)
def test_other_data_are_refused(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_source(data)


def test_a_source_of_ones_own_is_taken_as_it_is() -> None:
    source = OwnSource(3)
    assert isinstance(source, Source)
    assert as_source(source) is source


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "user_data.py").write_text(
        "import numpy as np\n"
        "from tardygrad.errors import DataError\n"
        "NUMBER = 3\n"
        "def pair(rows=4):\n"
        "    return (np.zeros((rows, 2)), np.zeros(rows)), None\n"
        "def single():\n"
        "    return np.zeros((4, 2))\n"
        "def broken():\n"
        "    return {}['gone']\n"
        "def missing():\n"
        "    raise DataError('the file is not here')\n"
    )
    (tmp_path / "user_broken.py").write_text("1 / 0\n")
    (tmp_path / "user_needs.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("user_data", "user_broken", "user_needs"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "user_data"


def test_load_runs_the_function_that_is_named(user_module: str) -> None:
    train, test = load(DataConfig(source=f"{user_module}:pair", arguments={"rows": 6}))
    assert len(train) == 6
    assert test is None


def test_load_takes_data_by_value() -> None:
    arrays = (np.zeros((3, 2)), np.zeros(3))
    config = DataConfig(source="by-value")
    train, test = load(config, by_value=(arrays, OwnSource(5)))
    assert (len(train), test and len(test)) == (3, 5)
    train, _ = load(config, by_value=lambda: (arrays, None))
    assert len(train) == 3


@pytest.mark.parametrize(
    ("source", "arguments", "error", "message"),
    [
        ("mnits", {}, ConfigError, "unknown data set 'mnits' .did you mean 'mnist'"),
        ("mnist", {"flatt": True}, ConfigError, "'mnist' was given arguments .*it takes .*flat"),
        ("user_data:pear", {}, ConfigError, "'user_data' has no 'pear' .did you mean 'pair'"),
        ("user_data:NUMBER", {}, ConfigError, "is 3, expected a function"),
        ("user_data:pair", {"row": 1}, ConfigError, "unexpected keyword argument 'row'.*rows"),
        ("user_data:broken", {}, ConfigError, "failed with KeyError: 'gone'"),
        ("user_data:missing", {}, DataError, "the file is not here"),
        ("user_data:single", {}, DataError, r"expected \(train, test\).*got ndarray"),
        ("user_dater:pair", {}, ConfigError, "no module 'user_dater' on the import path"),
        ("user_broken:pair", {}, ConfigError, "importing 'user_broken' failed with ZeroDivision"),
        ("user_needs:pair", {}, ConfigError, "needs module 'not_installed_anywhere'"),
        ("by-value", {}, DataError, "hand the data over again"),
    ],
)
def test_load_says_what_is_wrong(
    user_module: str, source: str, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        load(DataConfig(source=source, arguments=arguments))
    assert "\n" not in str(caught.value)


def test_load_names_the_part_that_cannot_be_used() -> None:
    with pytest.raises(DataError, match=r"data handed over from Python, test: .*no rows"):
        load(
            DataConfig(source="by-value"),
            by_value=((np.zeros((3, 2)), np.zeros(3)), (np.zeros((0, 2)), np.zeros(0))),
        )


def test_references_reach_into_classes_and_need_a_colon() -> None:
    assert resolve("collections:Counter.fromkeys", "x", UsageError).__name__ == "fromkeys"
    with pytest.raises(UsageError, match=r"loss 'math.sqrt': expected 'package.module:name'"):
        resolve("math.sqrt", "loss", UsageError)


def test_call_needs_no_signature() -> None:
    assert call(dict, {"a": 1}, "x", UsageError) == {"a": 1}


def test_importing_fragments_does_not_import_torch() -> None:
    """The protocol uses fragments, and the command line's help must be fast."""
    code = "import sys; from tardygrad.data import FragmentPlan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
