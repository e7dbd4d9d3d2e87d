"""The whole command: an undisturbed run, the same under chaos, and what comes of both.

Theory of operation. A short run measures how fast this machine is, so that the epochs last as long
as the chaos. Then the same configuration is trained twice, with the same seed and so the same
samples: undisturbed, for its speed and its accuracy, and under chaos. Nothing of this happens in
the process that trains.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tardygrad.auditing import audit
from tardygrad.chaos import goodput, memory, redone
from tardygrad.chaos.faults import can_refuse_writes
from tardygrad.chaos.outcome import Outcome
from tardygrad.chaos.plan import Planned, make_plan
from tardygrad.chaos.recovery import table
from tardygrad.chaos.stage import Request, Stage, Watched
from tardygrad.documents import merge
from tardygrad.errors import TardygradError, TrainingFailed
from tardygrad.storage.traces import read_traces

_TRIAL_S = 6.0
_MANY_EPOCHS = 100_000
_SLACK_S = 6.0
_TRIALS = 3

Say = Callable[[str], None]


@dataclass(frozen=True)
class Order:
    """What the command was asked for.

    Attributes:
        config: the whole configuration, as a document.
        out: the run directory of the run under chaos.
        resumed: it is there already and goes on.
        kinds: of ``plan.KINDS``.
        every_s, for_s, seed: of the plan.
        fit_epochs: choose the number of epochs so that the run lasts as long as the chaos.
        alone: no undisturbed run.
    """

    config: Mapping[str, Any]
    out: Path
    resumed: bool
    kinds: Sequence[str]
    every_s: float
    for_s: float
    seed: int
    fit_epochs: bool
    alone: bool
    missing: dict[str, str] = field(default_factory=dict)


def conduct(order: Order, say: Say) -> Outcome:
    """Carry the order out.

    Args:
        order: what to do.
        say: called with lines for people, as things happen.

    Raises:
        TrainingFailed: a run did not come to its end, or told nothing any more.
        TardygradError: what a run raises that cannot begin.
    """
    config = merge(order.config, _patience(order))
    speed: float | None = None
    if order.fit_epochs or order.alone:
        say("measuring the speed of this machine")
        speed, samples = _trial(config)
        if order.fit_epochs:
            epochs = max(1, math.ceil(speed * (order.for_s + _SLACK_S) / samples))
            config = {**config, "epochs": epochs}
            say(f"{speed:,.0f} samples/s: {epochs} epochs for {order.for_s:g} s of chaos")
    undisturbed: Watched | None = None
    if not order.alone:
        say("the undisturbed run")
        undisturbed = _undisturbed(config, order)
        speed = goodput.speed(undisturbed.events)
    say("the run under chaos")
    plan = _plan(order, config, say)
    overrides = _patience(order) if order.resumed else {}
    request = Request(
        order.out, None if order.resumed else config, int(config["servers"]), overrides
    )
    with _stage(request, say) as stage:
        watched = stage.play(plan, order.for_s)
    return _outcome(order, config, watched, undisturbed, speed)


def _patience(order: Order) -> dict[str, Any]:
    """What every run under chaos needs: as many replacements as there are deaths to come."""
    deaths = 4 * int(order.for_s / order.every_s + 1)
    return {"failure": {"restarts": max(int(order.config["failure"]["restarts"]), deaths)}}


def _plan(order: Order, config: Mapping[str, Any], say: Say) -> list[Planned]:
    if "disk" in order.kinds and not can_refuse_writes():
        order.missing["disk"] = "writes cannot be refused to this user here"
    if "backup" in order.kinds and not config["replicas"]:
        order.missing["backup"] = "this run has no replicas; --set replicas=1"
    for kind, why in order.missing.items():
        say(f"kind {kind!r} is not available: {why}")
    wanted = [kind for kind in order.kinds if kind not in order.missing]
    if not wanted:
        return []
    lease_s = float(config["failure"]["lease_s"])
    return make_plan(wanted, order.every_s, order.for_s, order.seed, lease_s)


@contextlib.contextmanager
def _stage(request: Request, say: Say) -> Iterator[Stage]:
    with contextlib.closing(Stage(request, lambda at, what: say(f"{at:8.1f} s  {what}"))) as stage:
        yield stage


def _trial(config: Mapping[str, Any]) -> tuple[float, int]:
    """The speed in samples/s, and the samples of an epoch."""
    for _ in range(_TRIALS - 1):
        speed, samples, paused = _one_trial(config)
        if not paused:
            return speed, samples
    return _one_trial(config)[:2]


def _one_trial(config: Mapping[str, Any]) -> tuple[float, int, bool]:
    place = Path(tempfile.mkdtemp(prefix="tardygrad-chaos-"))
    try:
        quick = merge(config, {"epochs": _MANY_EPOCHS, "evaluation": {"every_epochs": 0}})
        request = Request(place / "run", quick, int(config["servers"]))
        with _stage(request, lambda line: None) as stage:
            watched = stage.play_until(_has_run)
        start = next((e for e in watched.events if e["event"] == "run_start"), None)
        speed = goodput.speed(watched.events)
        if speed is None or start is None:
            raise TrainingFailed(f"a trial of the run trained nothing: {watched.said or 'no word'}")
        return speed, int(start["samples_per_epoch"]), watched.paused_s > 0
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _has_run(events: Sequence[Mapping[str, Any]]) -> bool:
    trained = [e["time_s"] for e in events if e["event"] == "progress" and e["samples"] > 0]
    return bool(trained) and trained[-1] - trained[0] > _TRIAL_S


def _undisturbed(config: Mapping[str, Any], order: Order) -> Watched:
    out = order.out.with_name(f"{order.out.name}-undisturbed")
    with _stage(Request(out, config, int(config["servers"])), lambda line: None) as stage:
        watched = stage.play()
    if watched.end.get("outcome") != "done":
        raise TrainingFailed(f"the undisturbed run did not end: {watched.said or 'no word'}")
    return watched


# --- what comes of it -------------------------------------------------------------------------


def _outcome(
    order: Order, config: Mapping[str, Any], watched: Watched, undisturbed: Watched | None,
    speed: float | None,
) -> Outcome:  # fmt: skip
    workers = int(config["workers"])
    deaths = [(f.at_s, f.id) for f in watched.faults if f.kind == "kill"]
    alive = goodput.times_alive(watched.events, deaths, workers, watched.chaos[1])
    held: list[list[goodput.Interval]] = [[] for _ in range(workers)]
    for fault in watched.faults:
        if fault.kind in ("stop", "slow") and 0 <= fault.id < workers:
            held[fault.id].append((fault.at_s, fault.until_s))
    trained = [
        e["time_s"]
        for e in watched.events
        if e["event"] == "progress" and e["samples"] >= watched.end.get("samples", math.inf)
    ]
    window = (watched.chaos[0], min([watched.chaos[1], *trained[:1]]))
    found = goodput.booked_between(watched.events, window)
    share = of_undisturbed = None
    if found is not None and speed:
        samples, window = found
        cores = max(1, len(os.sched_getaffinity(0)) // int(config["threads"]))
        possible = goodput.capacity_s(alive, held, window, cores)
        share = samples / (speed * possible) if possible else None
        of_undisturbed = samples / (speed * (window[1] - window[0]))
    try:
        found_audit = audit(order.out)
        exact, verdict = found_audit.exact, found_audit.verdict()
        computed, items = redone.redone(read_traces(order.out / "trace"))
    except TardygradError as error:
        exact, verdict, computed, items = False, str(error), 0, []
    last_s = max((e["time_s"] for e in watched.events if e["event"] == "progress"), default=0.0)
    return Outcome(
        run=order.out,
        seed=order.seed,
        planned_s=order.for_s,
        chaos_s=watched.chaos[1] - watched.chaos[0],
        outcome=str(watched.end.get("outcome") or f"ended with status {watched.status}"),
        reason=str(watched.end.get("reason") or watched.said),
        faults=watched.faults,
        skipped=len(watched.skipped),
        missing=dict(order.missing),
        exact=exact,
        verdict=verdict,
        speed=speed,
        goodput=share,
        of_undisturbed=of_undisturbed,
        metrics=dict(watched.end.get("final") or {}),
        undisturbed=dict(undisturbed.end.get("final") or {}) if undisturbed else {},
        computed=computed,
        redone=items,
        recoveries=table(watched.recoveries.found),
        unanswered=[
            f"{fault.kind} {fault.whom} at {fault.at_s:.1f} s: {question}"
            for fault, question in watched.recoveries.open(last_s - _SLACK_S)
        ],
        leaks=watched.leaks,
        processes=watched.processes,
        memory=memory.slopes(watched.memory),
        paused_s=watched.paused_s,
    )
