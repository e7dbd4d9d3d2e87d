"""Random runs with random misfortunes, each one wholly decided by its seed.

A ``Schedule`` is a configuration of a small run (members, data, method, speeds, network) and what
befalls it: crashes, freezes, slowness, losses, doubled and delayed messages, blackouts, failing
writes, interruptions and power cuts. The draws come from Python's own generator, whose stream is
the same in all versions, so a seed that failed once stays a test forever.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Any

from tardygrad import codecs
from tardygrad.config import Duration, merge
from tardygrad.testing.misfortunes import with_misfortunes
from tardygrad.testing.schedules import BATCH, Schedule
from tardygrad.testing.simulation import Stop

TORCH_EVERY = 40
"""Of so many schedules one has a torch model, if its run is short."""
GROUPS_SHARE = 0.3
"""Of the schedules with rounds, so many average in groups."""
PEERS_SHARE = 0.25
"""Of the schedules whose updates take effect as they come, so many average replicas in pairs."""
STRIPES_SHARE = 0.3
"""Of the schedules that could exchange their shards in turns, so many do."""
_TORCH_SAMPLES = 160


def random_schedule(seed: int) -> Schedule:
    """The schedule of a seed."""
    rng = random.Random(seed)
    theme = rng.choice(("anything", "anything", "anything", "late mail", "stop and go"))
    workers, servers, epochs = rng.randint(1, 6), rng.randint(1, 4), rng.randint(1, 3)
    batches = rng.choice((3, 8, 20, 40, 60))
    mean_s = 0.01
    method = _method(rng)
    plain = method["staleness"]["name"] in ("constant", "cut_off")
    nominal_s = epochs * batches * mean_s / workers
    lease_s = rng.uniform(0.4, 1.5)
    settings: dict[str, Any] = {
        "seed": rng.randrange(1 << 30),
        "workers": workers,
        "servers": servers,
        "epochs": epochs,
        "batch_size": BATCH,
        "fragment_batches": rng.randint(1, 8),
        "method": method,
        "checkpoint": {"every_s": rng.choice((0.05, 0.2, 0.5, 1.0, float("inf")))},
        "failure": {
            "lease_s": lease_s,
            "heartbeat_s": lease_s / rng.uniform(3, 8),
            "restarts": rng.choice((10, 10, 10, 10, 3, 1, 0)),
            "backoff_s": rng.uniform(0.0, 0.2),
            "backoff_max_s": 0.5,
            "stop_s": rng.uniform(2, 5),
        },
        "simulation": {
            **_times(rng, workers, mean_s),
            "tick_s": 60.0,
            "limit_s": 5000.0,
            "faults": _faults(rng, theme, workers, servers, 1.5 * nominal_s + 0.2, lease_s),
        },
    }
    schedule = Schedule(
        seed=seed,
        samples=batches * BATCH - rng.randrange(BATCH),
        settings=settings,
        stops=_stops(rng, nominal_s) if theme == "stop and go" else (),
        failing=_failing_writes(rng),
        model="counting" if plain and rng.random() < 0.3 else "null",
        disk=Duration(mean_s=0.0),
    )
    schedule = _with_more(schedule, random.Random(f"more of {seed}"))
    schedule = _with_peers(schedule, random.Random(f"peers of {seed}"))
    schedule = _with_balance(schedule, random.Random(f"balance of {seed}"))
    schedule = _with_stripes(schedule, random.Random(f"stripes of {seed}"))
    schedule = _with_links(schedule, random.Random(f"links of {seed}"))
    schedule = with_misfortunes(schedule, random.Random(f"misfortunes of {seed}"))
    horizon_s = 1.5 * nominal_s + 0.2
    schedule = _without_scheduler(schedule, random.Random(f"scheduler of {seed}"), horizon_s)
    schedule = _with_replicas(schedule, random.Random(f"replicas of {seed}"))
    return _with_changes(schedule, random.Random(f"crew of {seed}"), horizon_s)


def _with_replicas(schedule: Schedule, rng: random.Random) -> Schedule:
    if rng.random() < 0.5:
        return schedule
    settings = schedule.settings
    replicas, servers = rng.choice((1, 1, 1, 2)), settings["servers"]
    horizon_s = max((f.get("at_s", 0.0) for f in settings["simulation"]["faults"]), default=0.5)
    lease_s = settings["failure"]["lease_s"]
    faults = list(settings["simulation"]["faults"])
    for _ in range(rng.choice((0, 1, 2, 4))):
        target = f"server-{rng.randrange(servers)}"
        if rng.random() < 0.4:
            target = f"backup-{rng.randrange(servers * replicas)}"
        kind = rng.choice(("crash", "crash", "crashes", "hang"))
        faults += _misfortune(rng, kind, target, horizon_s + 0.1, lease_s)
    changes: dict[str, Any] = {"replicas": replicas, "simulation": {"faults": faults}}
    if rng.random() < 0.4:
        # Slow servers: some push is always on its way when one dies.
        changes["simulation"]["apply"] = rng.uniform(0.002, 0.01)
    return dataclasses.replace(schedule, settings=merge(settings, changes))


def _with_changes(schedule: Schedule, rng: random.Random, horizon_s: float) -> Schedule:
    if rng.random() < 0.5:
        return schedule
    changes = []
    for _ in range(rng.randint(1, 4)):
        add, remove = rng.choice(((1, 0), (2, 0), (3, 0), (0, 1), (0, 1), (0, 2), (1, 1)))
        changes.append({"at_s": rng.uniform(0, horizon_s), "add": add, "remove": remove})
    most = schedule.settings["workers"] + rng.randint(0, 4)
    settings: dict[str, Any] = {
        "simulation": {"changes": changes},
        "elastic": {"workers_max": most},
    }
    # What counts samples would see half of one.
    if schedule.model != "counting" and rng.random() < 0.3:
        settings["elastic"]["learning_rate"] = "linear"
    return dataclasses.replace(schedule, settings=merge(schedule.settings, settings))


def _with_more(schedule: Schedule, rng: random.Random) -> Schedule:
    # From a stream of its own: what is drawn here moves nothing that was drawn before.
    mean_s = rng.choice((0.0, 0.01, 0.1, 0.5))
    disk = Duration(distribution="uniform", mean_s=mean_s, spread=mean_s)
    schedule = dataclasses.replace(schedule, disk=disk)
    if schedule.seed % TORCH_EVERY or schedule.samples > _TORCH_SAMPLES:
        return _with_codec(_with_rounds(schedule, rng))
    adam = {"class": "Adam", "arguments": {"lr": 0.01}}
    momentum = {"class": "SGD", "arguments": {"lr": 0.05, "momentum": 0.9}}
    method = {"mixing": rng.choice((1.0, 0.5)), "optimizer": rng.choice((adam, momentum))}
    schedule = dataclasses.replace(
        schedule,
        # Batches of one sample have no variance.
        samples=schedule.samples + (schedule.samples % BATCH == 1),
        settings=merge(schedule.settings, {"method": method, "threads": 1}),
        model="torch",
    )
    return _with_codec(_with_rounds(schedule, rng))


def _with_rounds(schedule: Schedule, rng: random.Random) -> Schedule:
    method = schedule.settings["method"]
    # What counts samples would see the mean of a round.
    if schedule.model == "counting" or method["consistency"]["name"] != "asp" or rng.random() < 0.3:
        return schedule
    if random.Random(f"group of {schedule.seed}").random() < GROUPS_SHARE:
        return _with_groups(schedule)
    count = rng.randint(1, 5)
    admission = rng.choice(
        (
            {"name": "quorum"},
            {"name": "quorum", "count": count},
            {"name": "quorum", "count": count, "grace_s": rng.choice((0.01, 0.1, 1.0))},
            {"name": "collect", "updates": count},
            {"name": "whole_epoch"},
        )
    )
    settings = merge(schedule.settings, {"method": {"admission": admission}})
    return dataclasses.replace(schedule, settings=settings)


def _with_balance(schedule: Schedule, rng: random.Random) -> Schedule:
    method = schedule.settings["method"]
    admission = method.get("admission", {"name": "at_once"})["name"]
    # What counts samples would see merged batches as one; whole epochs take no balance.
    kinds = ["fixed", *(["steps"] if admission == "at_once" else [])]
    local = method["name"] == "gossip"
    if schedule.model != "counting" and admission != "whole_epoch" and not local:
        kinds += ["batch", "batch"]
    changes: dict[str, Any] = {"balance": {"name": rng.choice(kinds)}}
    base = method["exchange_period"]
    growing = {
        "name": "piecewise",
        "at": [[rng.randrange(200), 1], [200, base + rng.randint(0, 4)]],
    }
    by_rate = {"name": "quadratic", "alpha": rng.choice((0.05, 0.12)), "most": 6}
    if rng.random() < 0.5:
        changes["exchange_schedule"] = rng.choice((growing, by_rate))
    if method.get("staleness", {}).get("again") and rng.random() < 0.5:
        changes["staleness"] = {"stops": True}
    if admission == "quorum" and rng.random() < 0.5:
        changes["admission"] = {"weights": "tokens"}
    settings = merge(schedule.settings, {"method": changes})
    return dataclasses.replace(schedule, settings=settings)


def _with_stripes(schedule: Schedule, rng: random.Random) -> Schedule:
    method = schedule.settings["method"]
    # What counts samples would see none of local training; whoever keeps clocks takes no stripes.
    if schedule.model == "counting" or method["name"] in ("all_reduce", "gossip"):
        return schedule
    fits = method["consistency"]["name"] == "asp" and method["balance"]["name"] != "batch"
    if not fits or rng.random() >= STRIPES_SHARE:
        return schedule
    rounds = "admission" in method
    stripes = rng.randint(1, schedule.settings["servers"])
    period = max(method["exchange_period"], stripes) * rng.choice((1, 1, 2))
    changes = {
        "name": rng.choice(("diloco", "local_sgd") if rounds else ("async_diloco", "local_sgd")),
        "admission": method.get("admission", {"name": "at_once"}),
        "stripes": stripes,
        "exchange_period": period,
        "delay": rng.randint(0, period // stripes - 1),
        "mixing": rng.choice((1.0, 0.5)),
    }
    settings = {**schedule.settings, "method": {**method, **changes}}
    return dataclasses.replace(schedule, settings=settings)


def _with_links(schedule: Schedule, rng: random.Random) -> Schedule:
    if rng.random() < 0.6:
        return schedule
    # An update of a few hundred bytes then takes half a millisecond to a tenth of a second.
    rates = (None, 5e3, 5e4, 5e5)
    keys = ("worker_up", "worker_down", "server_up", "server_down")
    bandwidth: dict[str, Any] = {f"{key}_bytes_per_s": rng.choice(rates) for key in keys}
    if rng.random() < 0.5:
        count = schedule.settings["workers"]
        bandwidth["worker_up_bytes_per_s"] = [rng.choice(rates) for _ in range(count)]
    simulation: dict[str, Any] = {"bandwidth": bandwidth}
    if rng.random() < 0.3:
        every_s = rng.choice((0.05, 0.3))
        phases = {"kind": "slow", "target": "worker-0", "factor": rng.uniform(1, 8)}
        phases |= {"every_s": every_s, "for_s": every_s * rng.uniform(0.1, 0.9)}
        simulation["faults"] = [*schedule.settings["simulation"]["faults"], phases]
    return dataclasses.replace(
        schedule, settings=merge(schedule.settings, {"simulation": simulation})
    )


def _without_scheduler(schedule: Schedule, rng: random.Random, horizon_s: float) -> Schedule:
    """It dies now and then, and is away for a moment or for longer than a lease."""
    if rng.random() < 0.5:
        return schedule
    lease_s = schedule.settings["failure"]["lease_s"]
    deaths = [
        {
            "kind": "crash",
            "target": "scheduler",
            "at_s": rng.uniform(0, horizon_s),
            "for_s": rng.choice((0.001, 0.05, 0.4, 1.2, 3.0)) * lease_s,
        }
        for _ in range(rng.choice((1, 1, 2, 4)))
    ]
    faults = [*schedule.settings["simulation"]["faults"], *deaths]
    settings = merge(schedule.settings, {"simulation": {"faults": faults}})
    return dataclasses.replace(schedule, settings=settings)


def _with_groups(schedule: Schedule) -> Schedule:
    carried = ("exchange_period", "optimizer")
    method = {key: value for key, value in schedule.settings["method"].items() if key in carried}
    in_flight = min(schedule.settings["method"]["in_flight"], 1)
    method |= {"name": "all_reduce", "in_flight": in_flight}
    settings = {**schedule.settings, "method": method}
    return dataclasses.replace(schedule, settings=settings)


def _with_peers(schedule: Schedule, rng: random.Random) -> Schedule:
    method = schedule.settings["method"]
    # What counts samples would see a part of each update.
    unfit = "admission" in method or method["name"] != "async_sgd" or schedule.model == "counting"
    if unfit or rng.random() >= PEERS_SHARE:
        return schedule
    carried = ("consistency", "exchange_period", "in_flight")
    method = {key: method[key] for key in carried}
    method |= {"name": "gossip", "momentum": rng.choice((0.0, 0.9))}
    return dataclasses.replace(schedule, settings={**schedule.settings, "method": method})


def _with_codec(schedule: Schedule) -> Schedule:
    # From a stream of its own as well. What counts samples would have to see the residuals.
    rng = random.Random(f"codec of {schedule.seed}")
    grouped = schedule.settings["method"]["name"] == "all_reduce"
    if schedule.model == "counting" or grouped or rng.random() < 0.3:
        return schedule
    codec: dict[str, Any] = {"name": rng.choice(codecs.names())}
    if codec["name"] != "fp32" and rng.random() < 0.2:
        codec |= {"error_feedback": False}
    settings = merge(schedule.settings, {"method": {"codec": codec}})
    return dataclasses.replace(schedule, settings=settings)


def _method(rng: random.Random) -> dict[str, Any]:
    consistency: dict[str, Any] = {"name": "asp"}
    if rng.random() < 0.4:
        consistency = {"name": "ssp", "bound": rng.randint(0, 4)}
    name = rng.choice(
        ("constant", "constant", "inverse", "polynomial", "delay_adaptive", "cut_off", "cut_off")
    )
    staleness: dict[str, Any] = {"name": name}
    if name == "cut_off":
        staleness |= {"below": rng.randint(1, 8), "again": rng.random() < 0.6}
    return {
        "name": "async_sgd",
        "consistency": consistency,
        "staleness": staleness,
        "exchange_period": rng.choice((1, 1, 1, 2, 3, 5)),
        "in_flight": rng.randint(0, 3),
    }


def _times(rng: random.Random, workers: int, mean_s: float) -> dict[str, Any]:
    uneven = rng.random() < 0.5
    distribution = rng.choice(("constant", "uniform", "exponential", "lognormal"))

    def duration(mean_s: float) -> dict[str, Any]:
        spread = mean_s * rng.random() if distribution in ("uniform", "lognormal") else 0.0
        return {"distribution": distribution, "mean_s": mean_s, "spread": spread}

    def way() -> dict[str, Any]:
        kind = rng.choice(("constant", "exponential"))
        return {"distribution": kind, "mean_s": rng.choice((0.0, 0.0002, 0.002, 0.02))}

    compute = [duration(mean_s * (rng.uniform(0.5, 10) if uneven else 1)) for _ in range(workers)]
    return {
        "compute": compute,
        "network": way(),
        "control": way(),
        "apply": rng.choice((0.0, 0.0001, 0.002)),
    }


def _faults(
    rng: random.Random, theme: str, workers: int, servers: int, horizon_s: float, lease_s: float
) -> list[dict[str, Any]]:
    faults: list[dict[str, Any]] = []
    if theme == "late mail":
        # Answers to the dead reach the living.
        faults.append({"kind": "delay", "rate": 0.3, "factor": rng.choice((10.0, 30.0, 100.0))})
        faults.append({"kind": "duplicate", "rate": 0.3})
    kinds = ("crash", "crash", "crashes", "hang", "slow", "messages", "messages", "blackout")
    for _ in range(rng.choice((0, 1, 1, 2, 3, 4, 6))):
        kind = "crashes" if theme == "late mail" else rng.choice(kinds)
        target = f"worker-{rng.randrange(workers)}"
        if kind != "slow" and rng.random() < 0.4:
            target = f"server-{rng.randrange(servers)}"
        faults += _misfortune(rng, kind, target, horizon_s, lease_s)
    return faults


def _misfortune(
    rng: random.Random, kind: str, target: str, horizon_s: float, lease_s: float
) -> list[dict[str, Any]]:
    at_s = rng.uniform(0, horizon_s)
    fault = {"kind": kind, "target": target, "at_s": at_s}
    if kind == "messages":
        return [_messages(rng, at_s, target, horizon_s)]
    if kind == "slow":
        return [{**fault, "factor": rng.uniform(1, 8)}]
    if kind == "crashes":
        times = [at_s]
        for _ in range(rng.randint(1, 3)):
            times.append(times[-1] + rng.choice((0.0, 0.005, 0.05, 0.5)) * rng.random())
        return [{**fault, "kind": "crash", "at_s": at} for at in times]
    if kind == "blackout" or (kind == "hang" and rng.random() < 0.8):
        fault["for_s"] = rng.choice((0.3, 0.9, 1.5, 4.0)) * lease_s
    return [fault]


def _messages(rng: random.Random, at_s: float, target: str, horizon_s: float) -> dict[str, Any]:
    kind = rng.choice(("loss", "duplicate", "delay"))
    fault: dict[str, Any] = {"kind": kind, "rate": rng.choice((0.02, 0.1, 0.3))}
    if kind == "delay":
        fault["factor"] = rng.choice((3.0, 30.0, 300.0))
    if rng.random() < 0.4:
        fault["target"] = target
    if rng.random() < 0.5:
        fault |= {"at_s": at_s, "for_s": rng.uniform(0.1, 1) * horizon_s}
    return fault


def _stops(rng: random.Random, nominal_s: float) -> tuple[Stop, ...]:
    return tuple(
        Stop("power_cut" if rng.random() < 0.5 else "preempt", rng.uniform(0.05, nominal_s + 0.1))
        for _ in range(rng.randint(1, 3))
    )


def _failing_writes(rng: random.Random) -> frozenset[int]:
    if rng.random() < 0.9:
        return frozenset()
    return frozenset(rng.randrange(30) for _ in range(3))
