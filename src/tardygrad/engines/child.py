"""What the processes of a run have in common: the job they read, and their link to the main one.

The job travels as one file in the runtime directory, written by the main process with cloudpickle
(functions of a script or notebook travel by value) and read by processes that it started itself.
Nothing that arrives on a socket is ever unpickled.

The link is two sockets: messages, and, from a thread of its own so that it never waits behind a
long step, signs of life with the newest counts.

An exception that ends a child is told to the main process in one line, with the place in the user's
own code if it came from there; the traceback is in the child's log.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import torch
import zmq

from tardygrad.config import RunConfig
from tardygrad.data import registry
from tardygrad.data.sources import ArraySource, Source
from tardygrad.engines import seals, wire
from tardygrad.engines.base import Job
from tardygrad.engines.gate import FAILURE, HELLO, MESSAGE, name_of, packed
from tardygrad.engines.mapped import Shared, share, shared
from tardygrad.engines.runtime_directory import reserve
from tardygrad.errors import StorageError, TardygradError, UsageError
from tardygrad.layout import KeyRange, Layout
from tardygrad.methods import parse
from tardygrad.models.factory import build
from tardygrad.protocol import events as ev

_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
_SLICE_NS = 100_000
_SET_NAME = 15  # prctl
_REASON_LIMIT = 500
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_TOP_PAD = -1, -3, -2


def tune_allocator() -> None:
    """Keep freed memory in the process: large activations otherwise fault in pages every step."""
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TOP_PAD, 64 << 20)


def _take_name(name: str) -> None:
    """Be called ``name`` in ``ps`` and ``top``: all children are forks of one program."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_SET_NAME, name.encode()[:15], 0, 0, 0)


def ask_for_short_slices() -> None:
    """Let this process run soon after it wakes, where the kernel knows how (Linux 6.12).

    A server works for a tenth of a millisecond at a time. Beside a worker on the same core it would
    otherwise wait for the end of the worker's time slice, some milliseconds, for every update.
    """
    number = _SCHED_SETATTR.get(os.uname().machine)
    if not sys.platform.startswith("linux") or number is None:
        return
    # struct sched_attr: size, policy (other), flags, nice, priority, runtime (the slice), ...
    attributes = struct.pack("<IIQiIQQQ", 48, 0, 0, 0, 0, _SLICE_NS, 0, 0)
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).syscall(number, 0, attributes, 0)


def live(kind: str, member: int, incarnation: int, life: Callable[[Link, Job, Path], None]) -> int:
    """Play a child's part; returns its exit status.

    Whatever ends ``life`` before its time is told to the main process. What fails while
    ``link.starting`` is set, or fails as one of our own errors, would fail again: it is *fatal*.
    """
    tune_allocator()
    _take_name(f"tg {kind}-{member}")
    link = Link(job_file().parent, kind, member, incarnation)
    try:
        link.starting = True
        job, directory = read_job()
        torch.set_num_threads(job.config.threads)
        link.starting = False
        life(link, job, directory)
    except (Exception, SystemExit) as error:
        fatal = link.starting or isinstance(error, TardygradError)
        link.send_data(FAILURE, {"reason": explain(error), "fatal": fatal})
        with contextlib.suppress(OSError):  # where the disk is full, the log is too
            traceback.print_exc()
        link.close()
        return 1
    link.close()
    return 0


def explain(error: BaseException) -> str:
    """An exception in one line; one that is not ours with its type and where it came from."""
    text = " ".join(str(error).split())
    if not isinstance(error, TardygradError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if len(text) > _REASON_LIMIT:
        text = text[: _REASON_LIMIT - 3] + "..."
    return text + _place_in_user_code(error)


def _place_in_user_code(error: BaseException) -> str:
    paths = sysconfig.get_paths()
    ours = str(Path(__file__).parents[1])
    libraries = tuple(paths[name] for name in ("purelib", "platlib", "stdlib", "platstdlib"))
    # Innermost first. What wrapped an error of the user's names it as its cause.
    for frame in reversed(traceback.extract_tb((error.__cause__ or error).__traceback__)):
        if not frame.filename.startswith((ours, *libraries, "<frozen")):
            return f" ({frame.filename}, line {frame.lineno}, in {frame.name})"
    return ""


@dataclass
class SharedSource:
    """How a child gets at a data source: arrays in shared memory, or an object by value."""

    entries: list[Shared] | None
    value: Source | None

    @classmethod
    def of(cls, source: Source | None, path: Path, *, by_value: bool) -> SharedSource | None:
        """Put arrays into shared memory at ``path``; other sources travel by value or by name."""
        if source is None:
            return None
        if isinstance(source, ArraySource):
            return cls(share(path, source.tensors), None)
        return cls(None, source if by_value else None)


def write_job(job: Job, directory: Path) -> None:
    """Write the job's file for the children, and the data and initial parameters beside it."""
    by_value = "data" in job.by_value
    spec = {
        "config": job.config.model_dump(),
        "plan": job.plan,
        "layout": job.layout.to_json(),
        "ranges": [(r.start, r.stop) for r in job.ranges],
        "run": job.run,
        "lineage": job.lineage,
        "generation": job.generation,
        "first_step": job.first_step,
        "epochs_reported": job.epochs_reported,
        "residuals": job.residuals,
        "run_directory": job.run_directory,
        "trace_directory": job.trace_directory,
        "by_value": {k: v for k, v in job.by_value.items() if k != "data"},
        "initial": share(directory / "initial", (job.initial,)),
        "train": SharedSource.of(job.train, directory / "train", by_value=by_value),
        "test": SharedSource.of(job.test, directory / "test", by_value=by_value),
    }
    data = pickled(spec)
    try:
        with open(reserve(directory / "job", len(data)), "wb") as file:
            file.write(data)
    except OSError as error:
        raise StorageError(f"cannot write {directory / 'job'}: {error.strerror}") from error


def pickled(value: Any) -> bytes:
    """What came from Python by value, as bytes.

    Raises:
        UsageError: it cannot be sent to other processes.
    """
    try:
        data: bytes = cloudpickle.dumps(value)
    except Exception as error:
        raise UsageError(
            "the model, loss, metrics or data handed over from Python cannot be sent to other "
            f"processes ({explain(error)}); hand over a function that makes them, or its name as "
            "'package.module:function'"
        ) from error
    return data


def job_file() -> Path:
    """The file that describes the job, in the runtime directory."""
    return Path(os.environ["TARDYGRAD_JOB"])


def read_job() -> tuple[Job, Path]:
    """The job that the zygote was told about, and the runtime directory."""
    path = job_file()
    directory = path.parent
    spec = cloudpickle.loads(path.read_bytes())
    config = RunConfig.model_validate(spec["config"])
    by_value: dict[str, Any] = spec["by_value"]
    job = Job(
        config=config,
        method=parse(config.method),
        plan=spec["plan"],
        layout=Layout.from_json(spec["layout"]),
        ranges=tuple(KeyRange(*r) for r in spec["ranges"]),
        initial=shared(directory / "initial", spec["initial"])[0],
        train=_NoSource(),
        test=None,
        build_adapter=lambda: build(config.model, config.seed, by_value, config.device),
        run=spec["run"],
        lineage=spec["lineage"],
        generation=spec["generation"],
        first_step=spec["first_step"],
        epochs_reported=spec["epochs_reported"],
        residuals=spec["residuals"],
        run_directory=spec["run_directory"],
        trace_directory=spec["trace_directory"],
        by_value=spec,
    )
    return job, directory


class _NoSource:
    """Stands for data that a process has no use for."""

    def __len__(self) -> int:
        return 0

    def batch(self, indices: Any) -> tuple[torch.Tensor, ...]:
        raise RuntimeError("this process has no data")


def open_source(job: Job, directory: Path, which: str) -> Source:
    """The training or test data, in a child."""
    described: SharedSource = job.by_value[which]
    if described.entries is not None:
        return ArraySource(*shared(directory / which, described.entries))
    if described.value is not None:
        return described.value
    train, test = registry.load(job.config.data)
    source = train if which == "train" else test
    assert source is not None
    return source


class Link:
    """A child's connection to the main process; all that travels there is sealed."""

    def __init__(self, directory: Path, kind: str, member: int, incarnation: int) -> None:
        self._who = (kind, member, incarnation)
        self._directory = directory
        self._secret = seals.inherited()
        self.starting = False
        self.clock = (0, 0)  # a worker's session and its clock there, told with each sign of life
        self._context = zmq.Context()
        self.socket = self._connect(self._context, "control")
        # Orders come to where a sealed message was last sent from.
        self._send(HELLO, packed({}))

    def _connect(self, context: zmq.Context[zmq.Socket[bytes]], name: str) -> zmq.Socket[bytes]:
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 1000)
        socket.setsockopt(zmq.MAXMSGSIZE, seals.MESSAGE_BYTES_MAX)
        socket.connect(f"ipc://{self._directory / name}")
        return socket

    @property
    def _name(self) -> bytes:
        kind, member, incarnation = self._who
        return name_of((kind, member), incarnation)

    def become(self, kind: str, member: int, incarnation: int) -> None:
        """Be known as another member from now on."""
        _take_name(f"tg {kind}-{member}")
        self._who = (kind, member, incarnation)
        self.socket.close()
        self.socket = self._connect(self._context, "control")
        self._send(HELLO, packed({}))

    def beat(
        self, every_s: float, steps: Callable[[], int], report: Callable[[], dict[str, Any]]
    ) -> None:
        """Start sending signs of life with the newest counts, from a thread of their own."""

        def run() -> None:
            # A context of its own: closing the control socket must not wait for this one.
            socket = self._connect(zmq.Context(), "heartbeats")
            while True:
                beat = ev.Heartbeat(*self._who, steps(), *self.clock)
                name = name_of((beat.kind, beat.id), beat.incarnation)
                frames = wire.encode(beat), packed(report())
                socket.send_multipart(self._secret.close(seals.BEATS, name, *frames))
                time.sleep(every_s)

        threading.Thread(target=run, daemon=True, name="heartbeat").start()

    def send(self, message: ev.Event) -> None:
        """Send a message to the scheduler."""
        self._send(MESSAGE, wire.encode(message))

    def send_data(self, tag: bytes, data: dict[str, Any]) -> None:
        """Send something that is no message of the protocol: counts, a failure, a measurement."""
        self._send(tag, packed(data))

    def _send(self, tag: bytes, data: bytes) -> None:
        self.socket.send_multipart(self._secret.close(seals.TO_MAIN, self._name, tag, data))

    def receive(self) -> list[ev.Event]:
        """Messages that have arrived; never waits."""
        found: list[ev.Event] = []
        while True:
            try:
                message = wire.decode(self._open(self.socket.recv_multipart(zmq.NOBLOCK)))
            except zmq.Again:
                return found
            if message is not None:
                found.append(message)

    def receive_data(self) -> dict[str, Any]:
        """Wait for something that is no message of the protocol."""
        while True:
            data = wire.decode_data(self._open(self.socket.recv_multipart()))
            if data is not None:
                return data

    def _open(self, message: list[bytes]) -> bytes:
        """What is sealed for this process; nothing of anything else."""
        try:
            name, frames = self._secret.open(seals.TO_CHILD, message)
        except seals.Refused:
            return b""
        return frames[0] if name == self._name else b""

    def close(self) -> None:
        """Wait until everything is sent, at most a second."""
        self.socket.close()
        self._context.term()
