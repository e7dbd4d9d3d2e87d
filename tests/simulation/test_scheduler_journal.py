"""Wherever a scheduler dies: its journal gives the same machine, which then does the same."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tardygrad.engines import wire
from tardygrad.engines.base import Job
from tardygrad.engines.inline import InlineEngine
from tardygrad.engines.inline_scheduler import MemoryJournal
from tardygrad.engines.scheduler_host import SchedulerHost
from tardygrad.errors import ConfigError
from tardygrad.protocol import effects as ef
from tardygrad.protocol import events as ev
from tardygrad.protocol import journal
from tardygrad.storage.journal import JournalFile
from tardygrad.testing.faults import random_schedule
from tardygrad.testing.history import History
from tardygrad.testing.simulation import (
    MemoryStore,
    SilentObserver,
    SimulatedCluster,
    counting_job,
    null_job,
)

# Plain ones, rounds, groups, clocks, balance; deaths of everybody.
SEEDS = (0, 1, 2, 3, 4, 5, 6, 9, 13, 17, 23, 40)


class Told(NamedTuple):
    """What the scheduler of a simulation was told, and what it wanted."""

    job: Job
    records: list[bytes]
    effects: list[list[ef.Effect]]


class Listener(History):
    """Writes down what the scheduler is told."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.begins(job)
        self.told: list[bytes] = []
        self.wanted: list[list[ef.Effect]] = []

    def handled(
        self, now: float, address: ev.Address, machine: Any, event: Any, effects: list[ef.Effect]
    ) -> None:
        if address == ev.SCHEDULER:
            number = len(self.told) + 1
            # Whatever was wanted before is done by then.
            entry = wire.Entry(number, number - 1, now, event)
            self.told.append(journal.record(wire.encode_entry(entry)))
            self.wanted.append(effects)


@functools.cache
def told(seed: int) -> Told:
    job = random_schedule(seed).job()
    faults = job.config.simulation.faults
    # What is told of is the time of the world, not that of a clock that jumps.
    faults = tuple(f for f in faults if f.target != "scheduler" and f.kind != "jump")
    simulation = job.config.simulation.model_copy(update={"faults": faults})
    job.config.__dict__["simulation"] = simulation
    listener = Listener(job)
    InlineEngine(listener, start_s=5.0).run(job, SilentObserver(), MemoryStore())
    return Told(job, listener.told, listener.wanted)


def made(job: Job, place: MemoryJournal, base_every: int) -> SchedulerHost:
    return SchedulerHost(job, place, base_every, 5.0)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(SEEDS), st.sampled_from((2, 30, 10**6)), st.data())
def test_a_journal_cut_anywhere_gives_the_same_machine(
    seed: int, base_every: int, draw: st.DataObject
) -> None:
    run = told(seed)
    at = draw.draw(st.integers(0, len(run.records)))
    place = MemoryJournal()
    first = made(run.job, place, base_every)
    first.take_up(0)
    for data in run.records[:at]:
        first.handle(data)
    # Any number of bytes is missing at the end, but for the base.
    _, base_end = next(journal.scan(place.data))
    place.cut(draw.draw(st.integers(base_end, len(place.data))))
    done = draw.draw(st.integers(max(at - 1, 0), at))
    second = made(run.job, place, base_every)
    answers = second.take_up(done)
    assert first.base <= second.number <= first.number
    answers += [a for data in run.records[second.number : at] for a in second.handle(data)[0]]
    assert journal.state_of(second.machine) == journal.state_of(first.machine)
    assert [a.effects for a in answers if a.number > done] == run.effects[done:at]
    until = min(at + 50, len(run.records))
    rest = [a.effects for data in run.records[at:until] for a in second.handle(data)[0]]
    assert rest == run.effects[at:until]


@pytest.mark.parametrize("seed", SEEDS)
def test_every_effect_passes_to_another_process(seed: int) -> None:
    for effects in told(seed).effects:
        sent = msgpack.packb(wire.plain_effects(effects))
        again = wire.made_effects(msgpack.unpackb(sent, use_list=False))
        assert [type(e) for e in again] == [type(e) for e in effects]
        assert msgpack.packb(wire.plain_effects(again)) == sent


def test_a_journal_does_not_grow_without_bound(tmp_path: Any) -> None:
    run = told(SEEDS[0])
    file = JournalFile(tmp_path / "scheduler" / "journal")
    host = SchedulerHost(run.job, file, 20, 5.0)
    host.take_up(0)
    sizes = []
    for data in run.records:
        host.handle(data)
        sizes.append(len(list(journal.scan(file.read()))))
    assert max(sizes) <= 23 < len(run.records)
    again = SchedulerHost(run.job, JournalFile(tmp_path / "scheduler" / "journal"), 20, 5.0)
    assert again.take_up(host.number) == []
    assert journal.state_of(again.machine) == journal.state_of(host.machine)
    assert [p.name for p in (tmp_path / "scheduler").iterdir()] == ["journal"]


def test_the_journal_of_an_earlier_stretch_is_none() -> None:
    run = told(SEEDS[0])
    place = MemoryJournal()
    host = made(run.job, place, 10)
    host.take_up(0)
    host.handle(run.records[0])
    later = made(dataclasses.replace(run.job, lineage=2), place, 10)
    assert later.take_up(0) == [] and later.number == 0 and later.cut
    assert len(list(journal.scan(place.data))) == 1


# --- in the simulator -------------------------------------------------------------------------


def faults(*times: float, for_s: float) -> dict[str, Any]:
    deaths = [{"kind": "crash", "target": "scheduler", "at_s": at, "for_s": for_s} for at in times]
    return {"faults": deaths, "tick_s": 0.1, "limit_s": 1000}


@pytest.mark.parametrize("for_s", [0.001, 0.2, 5.0])
def test_nobody_notices_that_the_scheduler_was_away(for_s: float) -> None:
    job = counting_job(
        samples=640, workers=3, servers=2, epochs=3, batch_size=8,
        failure={"lease_s": 0.5, "heartbeat_s": 0.05},
        simulation=faults(0.0, 0.2, 0.21, 0.5, 0.9, 1.3, for_s=for_s),
    )  # fmt: skip
    cluster = SimulatedCluster(job)
    end = cluster.run()
    cluster.check(end)
    assert end.outcome == "done"
    (observer,) = cluster.observers
    changed = [(e["kind"], e["state"]) for e in observer.of("member")]
    assert changed.count(("scheduler", "died")) == end.figures["scheduler"]["restarts"] > 0
    assert ("worker", "died") not in changed and ("server", "died") not in changed
    assert {r.session for shard in cluster.history.records for r in shard} - {0} == {1, 2, 3}


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "crash", "target": "scheduler"},
        {"kind": "hang", "target": "scheduler", "for_s": 1.0},
        {"kind": "loss", "target": "scheduler", "for_s": 1.0, "rate": 0.5},
        {"kind": "crash", "target": "scheduler-0", "for_s": 1.0},
    ],
)
def test_faults_that_the_scheduler_cannot_have(fault: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="scheduler"):
        null_job(simulation={"faults": [fault]})
