"""Each worker's link to the servers has a delay of its own."""

from __future__ import annotations

from tardygrad.testing.simulation import SimulatedCluster, null_job


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
