"""The conformance battery of codecs: what each must do, whoever wrote it.

A codec needs no registration: ``check_codec("my_codec")`` finds the file as a run would. It passes
if every part, however small or oddly cut, is encoded into as many bytes as it says, the same way
each time; if what is sent plus the residual is what was computed, also where pushes are lost, and
the residual stays bounded; if what is not finite shows and leaves nothing behind; if a successor
goes on with what a worker left; and if methods train with it, repeatably, through faults.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from tardygrad.codecs import parse
from tardygrad.codecs.base import Codec, Part
from tardygrad.codecs.pushes import PushFormat
from tardygrad.engines.packing import Packer
from tardygrad.layout import KeyRange, Layout, partition
from tardygrad.protocol.residuals import Inherited
from tardygrad.testing import battery
from tardygrad.testing.checks import require
from tardygrad.testing.fuzz import check_replay
from tardygrad.testing.simulation import SimulatedCluster

__all__ = ["check_codec", "check_codec_with"]

_TENSORS = [
    ("wide", (24, 40), "float32"), ("bias", (5,), "float32"), ("none", (0, 3), "float32"),
    ("kernel", (6, 3, 3, 3), "float32"), ("scalar", (), "float32"), ("odd", (13, 7), "float32"),
]  # fmt: skip
_LAYOUT = Layout.of(_TENSORS, [("statistics", (3,), "float32")])
_PUSHES = 120
_HUGE = 1e30


def check_codec(name: str, **settings: Any) -> None:
    """Check the codec in ``tardygrad/codecs/<name>.py`` by itself.

    Args:
        name: the codec's name.
        **settings: keys of its section, for checking more than its defaults.

    Raises:
        AssertionError: it does not do what a codec must; the message says what.
        ConfigError: there is no such codec, or it refuses the settings.
    """
    codec = parse({"name": name, **settings})
    section = codec.model_dump(mode="json")
    require(parse(section) == codec, f"{section} does not make the same codec again")
    threads = torch.get_num_threads()
    # On parts this small more of them only cost time.
    torch.set_num_threads(1)
    try:
        for part in _parts():
            _check_part(codec, part)
        for servers in (1, 3):
            _check_sums(codec, servers)
        _check_strange_values(codec)
        _check_successor(codec)
    finally:
        torch.set_num_threads(threads)


def check_codec_with(name: str, method: str, **settings: Any) -> None:
    """Check that a method trains with the codec, through faults, and that its traces repeat it.

    Args:
        name: the codec's name.
        method: the method's.
        **settings: keys of the method's section.

    Raises:
        AssertionError: it does not.
        InvariantViolation: the run broke a promise of the protocol, or is not repeated.
    """
    section = {"name": method, "codec": name, **settings}
    cluster = SimulatedCluster(battery.troubled(section, seed=1))
    end = cluster.run()
    cluster.check(end)
    require(end.outcome == "done", f"a run under faults ends as {end.outcome}: {end.reason}")
    require(bool(torch.isfinite(end.parameters).all()), "the parameters are not finite")
    require(not torch.equal(end.parameters, cluster.job.initial), "nothing was trained")
    check_replay(cluster, end)


# --- parts ------------------------------------------------------------------------------------


def _parts() -> Iterator[Part]:
    """Whole models, cuts through tensors, single elements, nothing."""
    size = _LAYOUT.parameters_size
    for servers in (1, 2, 5):
        yield from (Part.of(_LAYOUT, owned) for owned in partition(_LAYOUT, servers))
    yield Part.of(_LAYOUT, KeyRange(0, 0))
    yield from (Part.of(_LAYOUT, KeyRange(at, at + 1)) for at in (0, 965, size - 1))
    yield Part.of(_LAYOUT, KeyRange(7, size - 3))


def _values(part: Part, seed: int) -> torch.Tensor:
    """Random numbers in the tensors, zeros in the gaps."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.zeros(part.size)
    for piece in part.pieces:
        values[piece.start : piece.stop] = torch.randn(
            piece.stop - piece.start, generator=generator
        )
    return values


def _check_part(codec: Codec, part: Part) -> None:
    one, other = codec.coder(part), codec.coder(part)
    gaps = torch.ones(part.size, dtype=torch.bool)
    for piece in part.pieces:
        gaps[piece.start : piece.stop] = False
    what = f"of a part of {part.size} elements"
    for seed in range(3):
        values = _values(part, seed)
        kept = values.clone()
        # What lay there before must not matter.
        bytes_ = [torch.full((one.nbytes,), fill, dtype=torch.uint8) for fill in (0, 255)]
        one.encode(values, bytes_[0])
        other.encode(values, bytes_[1])
        require(torch.equal(values, kept), f"encode() changes the values {what}")
        require(torch.equal(*bytes_), f"the same values give other bytes {what}")
        decoded = one.decode(bytes_[0])
        shape, dtype = tuple(decoded.shape), decoded.dtype
        require(shape == (part.size,) and dtype == torch.float32, f"decoded: {shape}, {dtype}")
        again = codec.coder(part).decode(bytes_[0].clone())
        require(torch.equal(decoded, again), f"decoding depends on more than the bytes {what}")
        require(not decoded[gaps].any(), f"something is decoded into a gap {what}")
        if codec.is_plain:
            require(torch.equal(decoded, values), f"it changes the values {what}")
    zeros = torch.zeros(part.size)
    one.encode(zeros, bytes_[0])
    require(not one.decode(bytes_[0]).any(), f"zeros are decoded as something else {what}")


# --- the residual -----------------------------------------------------------------------------


class _Worker:
    """A packer, and what it has sent."""

    def __init__(self, codec: Codec, servers: int) -> None:
        self.form = PushFormat(codec, _LAYOUT, partition(_LAYOUT, servers))
        self.packer = Packer(self.form, 0, lambda entry: None)
        self.seq = 0

    def push(self, update: torch.Tensor) -> torch.Tensor:
        """Pack and unpack an update, float32 ``[layout.size]``."""
        self.seq += 1
        out = torch.full((self.form.nbytes,), 255, dtype=torch.uint8)
        self.packer.pack(self.seq, update, out)
        decoded = torch.full((_LAYOUT.size,), torch.nan)
        self.packer.unpack(out, decoded)
        return decoded

    def left_out(self) -> torch.Tensor:
        """The residual, or zeros."""
        size = self.form.parameters_size
        return torch.zeros(size) if self.packer.residual is None else self.packer.residual


def _update(seed: int) -> torch.Tensor:
    part = Part.of(_LAYOUT, KeyRange(0, _LAYOUT.parameters_size))
    return torch.cat([_values(part, seed), torch.tensor([1.0, -2.0, 1e-9]), torch.zeros(13)])


def _check_sums(codec: Codec, servers: int) -> None:
    """What the shards took, plus the residual, is what was computed of it."""
    worker = _Worker(codec, servers)
    size = _LAYOUT.parameters_size
    wanted, taken = torch.zeros(2, size, dtype=torch.float64)
    steady = _update(99)
    largest = [0.0, 0.0]
    for number in range(2 * _PUSHES):
        update = steady + _update(number)
        decoded = worker.push(update)
        require(torch.equal(decoded[size:], update[size:]), "the buffers change on the way")
        lost = (number % servers,) if number % 7 == 3 else ()
        worker.packer.answered(worker.seq, lost)
        for shard, owned in enumerate(worker.form.owned):
            if shard not in lost:
                wanted[owned] += update[owned]
                taken[owned] += decoded[owned]
        half = number // _PUSHES
        largest[half] = max(largest[half], float(worker.left_out().norm()))
    worker.packer.leave()
    if not codec.feeds_back:
        return
    difference = (wanted - taken - worker.left_out()).abs().max()
    require(
        float(difference) < 1e-4 * _PUSHES,
        f"what was taken and the residual differ from what was computed by {difference:g}",
    )
    require(
        largest[1] <= 2 * largest[0] + 1e-6,
        f"the residual grows without end: {largest[0]:g}, then {largest[1]:g}",
    )


def _check_strange_values(codec: Codec) -> None:
    size = _LAYOUT.parameters_size
    plain = _update(1)
    for strange in (torch.nan, torch.inf, -torch.inf):
        worker = _Worker(codec, 2)
        worker.push(plain)
        broken = plain.clone()
        broken[2], broken[size - 20] = strange, strange
        decoded = worker.push(broken)
        for owned in worker.form.owned:
            finite = bool(decoded[owned].isfinite().all())
            require(finite == bool(broken[owned].isfinite().all()), f"{strange} does not show")
        require(bool(worker.left_out().isfinite().all()), f"{strange} stays in the residual")
        require(bool(worker.push(plain).isfinite().all()), f"{strange} comes again")
    for size_of in (_HUGE, 1 / _HUGE):
        decoded = _Worker(codec, 2).push(size_of * plain)
        require(bool(decoded.isfinite().all()), f"values about {size_of:g} are not finite")


def _check_successor(codec: Codec) -> None:
    """A worker that goes on with what another left does what that would have done."""
    one, other = _Worker(codec, 2), _Worker(codec, 2)
    for number in range(5):
        one.push(_update(number))
    one.packer.answered(one.seq, (1,))
    other.packer.take_over(one.packer.leave(), Inherited(0, 1, 0), same_codec=True)
    same = [torch.equal(one.push(_update(n)), other.push(_update(n))) for n in range(5, 8)]
    require(all(same), "a successor does not go on as its predecessor would have")
    reset = _Worker(codec, 2)
    reset.packer.take_over(one.packer.leave(), Inherited(0, 2, 1), same_codec=False)
    require(torch.equal(reset.left_out(), one.left_out()), "another codec loses the residual")
