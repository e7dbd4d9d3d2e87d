"""How much memory a process holds, as Linux counts it."""

from __future__ import annotations

from pathlib import Path

_WORKER = "tg worker-"
"""How the name of a worker's process begins."""


def parse(smaps_rollup: str) -> dict[str, float]:
    """Resident and proportional set size in MiB, from the text of /proc/PID/smaps_rollup."""
    kib = {
        name: int(rest.split()[0])
        for name, _, rest in (line.partition(":") for line in smaps_rollup.splitlines())
        if name in ("Rss", "Pss")
    }
    return {"rss_mib": kib["Rss"] / 1024, "pss_mib": kib["Pss"] / 1024}


def of_process(pid: int | str) -> dict[str, float]:
    """The memory of one process; empty if it has ended, or if this system does not say."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return {}
    return parse(text) if text else {}


def descendants(pid: int, parents: dict[int, int]) -> set[int]:
    """All processes below ``pid``, from a map of process to parent."""
    found = {pid}
    while new := {child for child, parent in parents.items() if parent in found} - found:
        found |= new
    return found - {pid}


def processes(root: int, beginning: str) -> list[int]:
    """The descendants of ``root`` whose names begin so."""
    names: dict[int, str] = {}
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # it has ended
        # pid (name) state parent ...; the name may hold anything, parentheses too.
        pid, name = int(path.parent.name), text[text.index("(") + 1 : text.rindex(")")]
        names[pid], parents[pid] = name, int(text[text.rindex(")") + 1 :].split()[1])
    return sorted(p for p in descendants(root, parents) if names[p].startswith(beginning))


def largest_worker(root: int) -> dict[str, float] | None:
    """The memory of the largest worker among the descendants of ``root``; None if there is none."""
    sizes = [size for size in map(of_process, processes(root, _WORKER)) if size]
    return max(sizes, key=lambda size: size["pss_mib"], default=None)
