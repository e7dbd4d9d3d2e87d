"""What is written as a stream is what the safetensors library reads."""

from __future__ import annotations

import hashlib
import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from tardygrad.errors import StorageError
from tardygrad.storage import safetensors_file
from tardygrad.storage.safetensors_file import write_tensors

DTYPES = [getattr(torch, name) for name in safetensors_file._CODES]


def written(tensors: dict[str, torch.Tensor], texts: dict[str, str]) -> bytes:
    file = io.BytesIO()
    size, digest = write_tensors(file, tensors, texts)
    data = file.getvalue()
    assert (size, digest) == (len(data), hashlib.sha256(data).hexdigest())
    return data


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_comes_back(dtype: torch.dtype) -> None:
    tensor = torch.arange(12).reshape(3, 4).to(dtype)
    found = load(written({"a": tensor, "b": tensor[1:, ::2]}, {}))
    assert found["a"].dtype == dtype
    assert torch.equal(found["a"].view(torch.uint8), tensor.view(torch.uint8))
    assert torch.equal(found["b"].view(torch.uint8), tensor[1:, ::2].contiguous().view(torch.uint8))


@given(
    shapes=st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(
            st.lists(st.integers(0, 5), max_size=3),
            st.sampled_from([torch.float32, torch.int8, torch.int64, torch.bfloat16]),
        ),
        max_size=5,
    ),
    texts=st.dictionaries(st.text(max_size=5), st.text(max_size=9), max_size=2),
)
def test_it_reads_as_what_the_library_writes(
    shapes: dict[str, tuple[list[int], torch.dtype]], texts: dict[str, str]
) -> None:
    tensors = {n: torch.randint(0, 99, shape).to(dtype) for n, (shape, dtype) in shapes.items()}
    ours, theirs = load(written(tensors, texts)), load(save(tensors, texts or None))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].shape == tensor.shape and ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor)


def test_a_large_tensor_is_written_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_file, "_CHUNK", 7)
    tensor = torch.arange(100, dtype=torch.float64)
    assert torch.equal(load(written({"a": tensor}, {}))["a"], tensor)


def test_what_the_format_cannot_hold_is_refused() -> None:
    with pytest.raises(StorageError, match="cannot write a: safetensors has no dtype complex128"):
        write_tensors(io.BytesIO(), {"a": torch.zeros(1, dtype=torch.complex128)}, {})
