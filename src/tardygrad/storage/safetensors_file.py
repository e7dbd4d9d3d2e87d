"""Tensors as a safetensors file, written as a stream.

Theory of operation. The format is eight bytes of the header's length, the header (JSON: for each
tensor its dtype, shape and place; texts under ``__metadata__``), and the tensors' bytes. So a file
can be written piece by piece from where the tensors are, and its checksum taken on the way: of a
large shard there is no second copy, and nothing here holds the interpreter's lock for long, which
a server beside it needs.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

from tardygrad.errors import StorageError

if TYPE_CHECKING:
    import torch

__all__ = ["read_texts", "write_tensors"]

_CODES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
    "complex64": "C64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip
_CHUNK = 4 << 20
_ALIGN = 8
_HEADER_LIMIT = 100_000_000  # that of the safetensors library


def write_tensors(
    file: BinaryIO, tensors: Mapping[str, torch.Tensor], texts: Mapping[str, str]
) -> tuple[int, str]:
    """Write tensors into an open file.

    Args:
        file: open for writing, at its beginning.
        tensors: any shapes, on any device, of the dtypes that the format knows.
        texts: the file's metadata.

    Returns:
        Bytes written, and their SHA-256 in hex.

    Raises:
        StorageError: the format does not know a tensor's dtype.
        OSError: the file cannot be written.
    """
    import torch

    if sys.byteorder != "little":
        raise StorageError("safetensors files are little-endian, and this machine is not")
    # Names in order, so that equal content gives equal files.
    on_host = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    header: dict[str, object] = {"__metadata__": dict(texts)} if texts else {}
    at = 0
    # The widest first, so that each tensor lies at a multiple of its element's size.
    order = sorted(on_host, key=lambda name: -on_host[name].element_size())
    for name in order:
        tensor = on_host[name]
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _code(name, tensor),
            "shape": list(tensor.shape),
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGN)
    digest = hashlib.sha256()

    def put(data: bytes | memoryview) -> None:
        digest.update(data)
        file.write(data)

    put(len(text).to_bytes(8, "little"))
    put(text)
    for name in order:
        raw = on_host[name].reshape(-1).view(torch.uint8).numpy().data
        for start in range(0, len(raw), _CHUNK):
            put(raw[start : start + _CHUNK])
    return 8 + len(text) + at, digest.hexdigest()


def _code(name: str, tensor: torch.Tensor) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in _CODES:
        raise StorageError(
            f"cannot write {name}: safetensors has no dtype {dtype}; expected one of "
            f"{', '.join(_CODES)}"
        )
    return _CODES[dtype]


def read_texts(stream: BinaryIO) -> dict[str, Any]:
    """What JSON says in each text of a file's header: an object behind 8 bytes of its length.

    Raises:
        ValueError: it is not readable.
    """
    length = int.from_bytes(stream.read(8), "little")
    if length > _HEADER_LIMIT:
        raise ValueError(f"its header would have {length} bytes")
    header = json.loads(stream.read(length))
    return {key: json.loads(text) for key, text in header.get("__metadata__", {}).items()}
