"""Shards that are exchanged in turns: the bits of diloco where nothing differs, else the formula.

And what it is for: narrow links that are busy all the time instead of now and then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tardygrad.data.fragments import Permutations
from tardygrad.data.sources import ArraySource
from tardygrad.engines.base import Job, RunEnd
from tardygrad.engines.inline import InlineEngine
from tardygrad.engines.shard_host import digest
from tardygrad.methods.base import WorkerRule
from tardygrad.methods.diloco import DiLoCo
from tardygrad.methods.rules.stripes import StripedLocalWorker
from tardygrad.models.base import ModelAdapter
from tardygrad.protocol import effects as ef
from tardygrad.protocol import trace
from tardygrad.replaying import replay_traces
from tardygrad.storage.traces import read_residuals, read_traces
from tardygrad.testing.battery import network, plain_network
from tardygrad.testing.simulation import (
    MemoryStore,
    SilentObserver,
    SimulatedCluster,
    null_job,
    torch_job,
)
from tardygrad.turns import Turns

WORKERS, BATCH, FRAGMENT, EPOCHS = 2, 6, 8, 3
SAMPLES = WORKERS * BATCH * FRAGMENT
ADAMW = {"class": "AdamW", "arguments": {"lr": 0.02, "weight_decay": 0.1}}
SETTINGS: dict[str, Any] = {
    "epochs": EPOCHS,
    "batch_size": BATCH,
    "fragment_batches": FRAGMENT,
    "workers": WORKERS,
    "servers": 2,
    "simulation": {"compute": 0.01, "network": 0.0, "control": 0.0, "apply": 0.0},
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Sums are the same to the bit only over as many threads; one is the fastest here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def samples() -> ArraySource:
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(SAMPLES, 6, generator=generator)
    return ArraySource(inputs, torch.randint(0, 4, (SAMPLES,), generator=generator))


def diloco(**settings: Any) -> dict[str, Any]:
    return {"name": "diloco", "exchange_period": 4, "optimizer": ADAMW, **settings}


def make(method: dict[str, Any], **settings: Any) -> Job:
    return torch_job(plain_network, samples(), **{**SETTINGS, **settings}, method=method)


def run(job: Job) -> RunEnd:
    cluster = SimulatedCluster(job)
    end = cluster.run()
    cluster.check(end)
    assert end.outcome == "done"
    return end


# --- identities -------------------------------------------------------------------------------


class InTurns(DiLoCo):
    """Goes through the machine and the rule that exchange in turns, though nothing asks for it."""

    @property
    def turns(self) -> Turns:
        return Turns(self.stripes, self.delay)

    def worker_rule(self, adapter: ModelAdapter) -> WorkerRule:
        return StripedLocalWorker(self, adapter)


@pytest.mark.parametrize("fragment", [FRAGMENT, 5])
@pytest.mark.parametrize("codec", ["fp32", "top_k"])
def test_one_stripe_without_delay_is_diloco_to_the_bit(fragment: int, codec: str) -> None:
    jobs = [make(diloco(codec={"name": codec}), fragment_batches=fragment) for _ in range(2)]
    assert jobs[0].method.turns is None
    jobs[1] = dataclasses.replace(jobs[1], method=InTurns(**dict(jobs[1].method)))
    assert jobs[1].method.turns == Turns(1, 0)
    plain, turned = map(run, jobs)
    assert torch.equal(plain.parameters, turned.parameters)


@pytest.mark.parametrize("stripes", [1, 2, 3])
@pytest.mark.parametrize("delay", [0, 1])
def test_alone_and_averaged_it_is_local_training_without_any_exchange(
    stripes: int, delay: int
) -> None:
    # Whatever is pushed is what the servers make of it, and mixing it with itself changes nothing.
    # With a delay that holds as long as nothing is trained meanwhile, which a rate of 0 sees to.
    outer = {"arguments": {"lr": 1.0}}
    plain = {"class": "SGD", "arguments": {"lr": 0.0 if delay else 0.1, "momentum": 0.9}}
    method = diloco(
        stripes=stripes, delay=delay, exchange_period=6, outer=outer, optimizer=plain,
        mixing=0.5 if stripes > 1 else 1.0,
    )  # fmt: skip
    job = make(method, workers=1, servers=3)
    end = run(job)
    flat = torch.nn.Parameter(job.initial.clone())
    optimizer = torch.optim.SGD([flat], lr=plain["arguments"]["lr"], momentum=0.9)
    adapter, order, source = job.build_adapter(), Permutations(job.plan), samples()
    for epoch in range(EPOCHS):
        for fragment in range(job.plan.fragments_per_epoch):
            for _, indices in order.batches(epoch, fragment, 0, FRAGMENT):
                train(adapter, flat, optimizer, source.batch(indices))
    assert torch.allclose(end.parameters, flat.detach(), atol=2e-6)


def train(
    adapter: ModelAdapter, flat: torch.Tensor, optimizer: torch.optim.Optimizer, batch: Any
) -> None:
    adapter.load(flat.detach())
    adapter.gradient(batch, 0)
    flat.grad = torch.zeros_like(flat)
    adapter.write_gradient(flat.grad, add=False)
    optimizer.step()


# --- the formula ------------------------------------------------------------------------------


class Reference:
    """Streaming DiLoCo written down by hand for workers in step; ends of fragments push all."""

    def __init__(self, job: Job, *, stripes: int, delay: int, mixing: float) -> None:
        self.job, self.stripes, self.delay, self.mixing = job, stripes, delay, mixing
        self.where = [
            torch.cat([torch.arange(r.start, r.stop) for r in job.ranges[p::stripes]])
            for p in range(stripes)
        ]
        initial = job.initial
        self.server = initial.clone()
        self.momentum = torch.zeros_like(initial)
        self.commits = [0] * stripes
        self.replicas = [torch.nn.Parameter(initial.clone()) for _ in range(WORKERS)]
        self.bases = [initial.clone() for _ in range(WORKERS)]
        self.inner = [
            torch.optim.AdamW([replica], **ADAMW["arguments"]) for replica in self.replicas
        ]
        self.adapter, self.source = job.build_adapter(), samples()

    def run(self, period: int) -> torch.Tensor:
        order, segment = Permutations(self.job.plan), period // self.stripes
        away: list[int] = []
        back_at = 0
        for epoch in range(EPOCHS):
            since, turn = [0] * self.stripes, None
            for batch in range(FRAGMENT):
                if away and batch == back_at:
                    self.mix(away)
                    away = []
                for worker in range(WORKERS):
                    indices = order.indices(epoch, worker, batch)
                    train(
                        self.adapter, self.replicas[worker], self.inner[worker],
                        self.source.batch(indices),
                    )  # fmt: skip
                done = batch + 1
                if done % segment and done < FRAGMENT:
                    continue
                if turn is None:
                    lower = [p for p in range(1, self.stripes)
                             if self.commits[p] < self.commits[p - 1]]  # fmt: skip
                    turn = (lower or [0])[0]
                count = 1 if done < FRAGMENT else self.stripes
                for _ in range(count):
                    if since[turn] < done:
                        self.commit(turn)
                        since[turn] = done
                        away.append(turn)
                    turn = (turn + 1) % self.stripes
                back_at = min(done + self.delay, done + segment - 1) % FRAGMENT
        return self.server

    def mix(self, stripes: list[int]) -> None:
        for stripe in stripes:
            where = self.where[stripe]
            for replica, base in zip(self.replicas, self.bases, strict=True):
                mine, theirs = replica.data[where], self.server[where]
                replica.data[where] = (1 - self.mixing) * mine + self.mixing * theirs
                base[where] = theirs

    def commit(self, stripe: int) -> None:
        where = self.where[stripe]
        pairs = zip(self.replicas, self.bases, strict=True)
        delta = torch.stack([(b - r.data)[where] for r, b in pairs]).mean(dim=0)
        self.momentum[where] = 0.9 * self.momentum[where] + delta
        self.server[where] -= 0.7 * (delta + 0.9 * self.momentum[where])
        self.commits[stripe] += 1


@pytest.mark.parametrize(
    ("servers", "settings"),
    [
        (2, {"stripes": 2, "delay": 0, "mixing": 1.0}),
        (2, {"stripes": 2, "delay": 1, "mixing": 0.5}),
        (3, {"stripes": 2, "delay": 1, "mixing": 1.0}),
        (4, {"stripes": 4, "delay": 0, "mixing": 0.25}),
        (2, {"stripes": 1, "delay": 3, "mixing": 0.5}),
    ],
)
def test_workers_in_step_do_what_the_formula_says(servers: int, settings: dict[str, Any]) -> None:
    job = make(diloco(**settings), servers=servers)
    end = run(job)
    expected = Reference(job, **settings).run(4)
    assert torch.allclose(end.parameters, expected, atol=5e-6)
    assert not torch.allclose(end.parameters, run(make(diloco(), servers=servers)).parameters)


# --- misfortunes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"stripes": 2, "delay": 1, "mixing": 0.5, "codec": {"name": "top_k"}},
        {"stripes": 4, "codec": {"name": "power_sgd"}},
        {"stripes": 2, "delay": 1, "admission": {"name": "quorum", "count": 2, "grace_s": 0.01}},
        {"name": "async_diloco", "stripes": 2, "delay": 1, "staleness": {"name": "polynomial"}},
        {"name": "local_sgd", "stripes": 3, "mixing": 0.5, "balance": {"name": "steps"}},
    ],
)
def test_members_die_and_the_replay_is_the_run(settings: dict[str, Any], tmp_path: Path) -> None:
    faults = [
        {"kind": "crash", "target": "worker-1", "at_s": 0.2},
        {"kind": "crash", "target": "server-0", "at_s": 0.3},
        {"kind": "hang", "target": "worker-2", "at_s": 0.4, "for_s": 2.0},
        {"kind": "loss", "rate": 0.05},
        {"kind": "delay", "rate": 0.1, "factor": 20.0},
    ]
    job = torch_job(
        network, samples(), method=diloco(**settings), workers=3, servers=4, epochs=4,
        batch_size=4, fragment_batches=7, checkpoint={"every_s": 0.05},
        failure={"lease_s": 0.5, "heartbeat_s": 0.1, "restarts": 20, "backoff_s": 0.05},
        simulation={"compute": {"distribution": "exponential", "mean_s": 0.01}, "faults": faults},
    )  # fmt: skip
    job = dataclasses.replace(job, trace_directory=tmp_path)
    end = run(job)
    traces = read_traces(tmp_path)
    assert {trace.RESTORED, trace.SNAPSHOT} <= {r.kind for records in traces for r in records}
    found = replay_traces(job, traces, read_residuals(tmp_path))
    assert digest([found]) == end.figures["digest"]


# --- links ------------------------------------------------------------------------------------

PARAMETERS, STEP_S = 4096, 0.01


class Sent:
    """Notes how many bytes the first worker sends at a time."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.times: dict[float, int] = {}

    def record(self, shard: int, record: Any) -> None:
        """Traces are not of interest here."""

    def handled(self, now: float, address: Any, machine: Any, event: Any, effects: Any) -> None:
        """Add up what is published."""
        if address != ("worker", 0):
            return
        for effect in effects:
            if isinstance(effect, ef.Publish):
                size = sum(self._job.push_bytes(shard) for shard in effect.shards)
                at = round(now, 4)
                self.times[at] = self.times.get(at, 0) + size


def linked(bandwidth: dict[str, Any], **settings: Any) -> tuple[Job, float, list[int]]:
    """A run of two workers; its virtual seconds, and the bytes of each of a worker's sendings."""
    job = null_job(
        parameters=PARAMETERS, samples=2 * 256 * 4, batch_size=4, fragment_batches=256, workers=2,
        servers=4, epochs=1, failure={"lease_s": 1000.0},
        method={"name": "diloco", "exchange_period": 16, **settings},
        simulation={"compute": STEP_S, "network": 0.0, "control": 0.0, "apply": 0.0,
                    "bandwidth": bandwidth},
    )  # fmt: skip
    sent = Sent(job)
    engine = InlineEngine(sent)
    end = engine.run(job, SilentObserver(lambda: engine.now), MemoryStore())
    assert end.outcome == "done"
    return job, engine.now, list(sent.times.values())


def test_so_many_stripes_send_so_many_times_less_at_a_time() -> None:
    job, _, whole = linked({})
    _, _, parts = linked({}, stripes=4)
    size = sum(job.push_bytes(shard) for shard in range(4))
    assert whole == [size] * 16
    # 64 turns, the last one at the end of the fragment, which is that of all.
    assert parts == [size // 4] * 63 + [size]


def test_a_narrow_link_holds_up_who_sends_everything_at_once() -> None:
    # 8 steps for a whole model, half a period, and as long for the way back.
    model_bytes = 4 * PARAMETERS
    keys = ("worker_up_bytes_per_s", "worker_down_bytes_per_s")
    narrow = dict.fromkeys(keys, model_bytes / (8 * STEP_S))
    free = linked({})[1]
    at_once = linked(narrow)[1]
    in_turns = linked(narrow, stripes=4)[1]
    overlapped = linked(narrow, stripes=4, delay=3, mixing=0.5)[1]
    seconds = [round(s, 2) for s in (free, at_once, in_turns, overlapped)]
    assert seconds == [2.56, 5.12, 5.24, 3.35], "docs/which-method.md"
    assert at_once > 1.9 * free, "after 16 steps it sends for 8, and receives for 8"
    assert in_turns > 1.9 * free, "a fourth of it, four times as often"
    assert overlapped < 1.35 * free, "of the 4 steps for a stripe there and back 3 are trained"
