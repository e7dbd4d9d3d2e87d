"""Links: each worker's delay, and bytes that queue behind one another."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tardygrad.engines.base import RunEnd
from tardygrad.engines.inline import InlineEngine
from tardygrad.engines.inline_links import Link
from tardygrad.errors import ConfigError
from tardygrad.protocol import events as ev
from tardygrad.testing.faults import random_schedule
from tardygrad.testing.simulation import MemoryStore, SilentObserver, SimulatedCluster, null_job


def test_a_slow_link_costs_its_worker_alone() -> None:
    links = [0.001, 0.001, 0.02]
    job = null_job(
        workers=3, servers=1, samples=64 * 64, batch_size=8, epochs=2,
        simulation={"compute": 0.01, "network": links},
        method={"name": "async_sgd", "in_flight": 0},
    )  # fmt: skip
    cluster = SimulatedCluster(job)
    end = cluster.run()
    cluster.check(end)
    done = [worker["samples"] for worker in end.figures["statistics"].workers(1.0)]
    # A cycle is a step and three ways (ask, parameters, push) and the answer.
    expected = [1 / (0.01 + 4 * link) for link in links]
    for one, speed in zip(done, expected, strict=True):
        assert abs(one / sum(done) - speed / sum(expected)) < 0.03


class Arrivals:
    """Notes when pushes came to a server and parameters to a worker."""

    def __init__(self) -> None:
        self.pushes: list[tuple[int, float]] = []
        self.pulls: list[tuple[int, float]] = []
        self.computed: list[tuple[int, float]] = []

    def record(self, shard: int, record: Any) -> None:
        """Traces are not of interest here."""

    def handled(self, now: float, address: Any, machine: Any, event: Any, effects: Any) -> None:
        """Note what happened."""
        if type(event) is ev.Push:
            self.pushes.append((event.worker, now))
        elif type(event) is ev.Pulled:
            self.pulls.append((address[1], now))
        elif type(event) is ev.Computed:
            self.computed.append((address[1], now))


def play(
    bandwidth: dict[str, Any], *, workers: int = 2, servers: int = 1, **simulation: Any
) -> tuple[Arrivals, RunEnd]:
    """Two steps of a second for each worker; nothing else takes time but what is given."""
    times = {"compute": 1.0, "network": 0.0, "control": 0.0, "apply": 0.0, **simulation}
    job = null_job(
        parameters=1000, workers=workers, servers=servers, samples=8 * workers, batch_size=8,
        fragment_batches=1, epochs=2, simulation={**times, "bandwidth": bandwidth},
        method={"name": "async_sgd", "in_flight": 0}, failure={"lease_s": 1000.0},
    )  # fmt: skip
    arrivals = Arrivals()
    engine = InlineEngine(arrivals)
    end = engine.run(job, SilentObserver(lambda: engine.now), MemoryStore())
    assert end.outcome == "done"
    return arrivals, end


def test_two_workers_share_the_link_of_the_server() -> None:
    # A second for the update of one worker, on the server's link.
    size = null_job(parameters=1000).push_bytes(0)
    assert size == 4 * 1008, "a multiple of 64 bytes"
    arrivals, end = play({"server_down_bytes_per_s": float(size)})
    # Both have computed at 1; the first push is there at 2, the second behind it at 3. Each worker
    # goes on when its push is answered: computed at 3 and 4, there at 4 and 5.
    assert [t for _, t in arrivals.pushes] == pytest.approx([2.0, 3.0, 4.0, 5.0])
    assert [t for _, t in arrivals.computed] == pytest.approx([1.0, 1.0, 3.0, 4.0])
    statistics = end.figures["statistics"]
    assert statistics.totals("pushed_bytes") == statistics.totals("pulled_bytes") == 4 * size


def test_parameters_queue_on_the_way_up_and_updates_do_not_wait_for_them() -> None:
    size = null_job(parameters=1000).pull_bytes(0)
    arrivals, _ = play({"server_up_bytes_per_s": float(size)})
    # Asked at 0, there at 1 and 2; computed at 2 and 3, and both ask again at once.
    assert [t for _, t in arrivals.pulls] == pytest.approx([1.0, 2.0, 3.0, 4.0])
    assert [t for _, t in arrivals.pushes] == pytest.approx([2.0, 3.0, 4.0, 5.0])


@pytest.mark.parametrize("name", ["worker_up_bytes_per_s", "worker_down_bytes_per_s"])
def test_a_link_of_its_own_is_shared_with_nobody(name: str) -> None:
    size = null_job(parameters=1000).push_bytes(0)
    arrivals, _ = play({name: [float(size), None]})
    # A step and a transfer; the other worker has no limit.
    assert [t for w, t in arrivals.pushes if w == 0] == pytest.approx([2.0, 4.0])
    assert [t for w, t in arrivals.pushes if w == 1] == pytest.approx([1.0, 2.0])


def test_the_narrower_link_decides_and_the_latency_is_added_once() -> None:
    size = float(null_job(parameters=1000).push_bytes(0))
    wide_first = {"worker_up_bytes_per_s": size, "server_down_bytes_per_s": size / 4}
    narrow_first = {"worker_up_bytes_per_s": size / 4, "server_down_bytes_per_s": size}
    for bandwidth in (wide_first, narrow_first):
        arrivals, _ = play(bandwidth, workers=1, network=0.5)
        # Asked and pulled: 1 s; a step: 1 s; the update: 4 s and half a second.
        assert arrivals.pushes[0][1] == pytest.approx(1.0 + 1.0 + 4.0 + 0.5)


def test_a_narrow_sender_does_not_keep_the_server_from_others() -> None:
    size = float(null_job(parameters=1000).push_bytes(0))
    arrivals, _ = play(
        {"worker_up_bytes_per_s": [size / 10, None], "server_down_bytes_per_s": size * 10}
    )
    assert [t for w, t in arrivals.pushes if w == 0] == pytest.approx([11.0, 22.0])
    # A tenth of a second behind the other, whose bytes need no more of the server's link.
    assert [t for w, t in arrivals.pushes if w == 1] == pytest.approx([1.2, 2.3])


def test_every_shard_has_a_link_of_its_own() -> None:
    job = null_job(parameters=1000, servers=2)
    sizes = [float(job.push_bytes(shard)) for shard in range(2)]
    arrivals, _ = play({"server_down_bytes_per_s": sizes}, workers=1, servers=2)
    assert [t for _, t in arrivals.pushes] == pytest.approx([2.0, 2.0, 4.0, 4.0])


def test_without_limits_nothing_has_changed() -> None:
    # Recorded before backups, crews that change and a scheduler that dies were drawn as well: of
    # seeds that draw none of them, and that were as they had been before links had a width.
    recorded = {53: (3288, 9.756789867516531), 79: (1197, 3.1912297846892224)}
    for seed, (events, seconds) in recorded.items():
        settings_of = random_schedule(seed).settings
        assert "bandwidth" not in settings_of["simulation"]
        cluster = random_schedule(seed).cluster()
        cluster.run()
        assert (cluster.events, cluster.seconds) == (events, seconds)


def test_a_saturated_link_does_not_collapse() -> None:
    # A transfer takes three times as long as a worker's patience. Sent again each time, pushes
    # would come faster than the link takes them, and the run would never end.
    size = null_job(parameters=1000).push_bytes(0)
    job = null_job(
        parameters=1000, workers=4, samples=8 * 16, batch_size=8, epochs=1,
        failure={"lease_s": 4.0, "heartbeat_s": 0.25},
        simulation={
            "compute": 0.01, "limit_s": 1000.0,
            "bandwidth": {"server_down_bytes_per_s": size / 3, "server_up_bytes_per_s": size / 3},
        },
    )  # fmt: skip
    cluster = SimulatedCluster(job)
    end = cluster.run()
    cluster.check(end)
    assert end.outcome == "done"
    # Sixteen updates on the one link, one after the other, and not many more.
    assert 16 * 3 <= cluster.seconds < 20 * 3


@settings(max_examples=200, deadline=None)
@given(
    rate=st.floats(1.0, 1e9),
    transfers=st.lists(st.tuples(st.floats(0.0, 10.0), st.integers(1, 10**7)), max_size=30),
)
def test_a_link_is_never_used_twice_nor_idle_while_something_waits(
    rate: float, transfers: list[tuple[float, int]]
) -> None:
    link = Link(rate)
    now = free_at = 0.0
    for gap, size in transfers:
        now += gap
        began, ended = link.take(now, size)
        assert began == max(now, free_at)
        assert ended == pytest.approx(began + size / rate)
        free_at = ended


@pytest.mark.parametrize(
    ("bandwidth", "message"),
    [
        ({"worker_up_bytes_per_s": 0}, "worker_up_bytes_per_s: expected a number greater than 0"),
        ({"worker_up_bytes_per_s": [1e6]}, "expected one number for all, or a list of 2"),
        ({"server_up_bytes_per_s": [1e6, 1e6]}, r"a list of 1 \(one for each server\)"),
        ({"server_up": 1e6}, "did you mean"),
        ({"worker_down_bytes_per_s": "fast"}, "expected a number"),
        ({"worker_down_bytes_per_s": []}, "at least 1"),
    ],
)
def test_mistakes_are_told(bandwidth: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        null_job(workers=2, servers=1, simulation={"bandwidth": bandwidth})
