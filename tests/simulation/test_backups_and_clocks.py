"""Backups repeat what their server did at its own time, whatever becomes of the server's clock."""

from __future__ import annotations

import pytest

from tardygrad.testing.simulation import SimulatedCluster, null_job


@pytest.mark.parametrize("target", ["server-0", None])
@pytest.mark.parametrize("by_s", [0.05, 3.0])
def test_a_clock_that_jumps_moves_server_and_backup_alike(by_s: float, target: str | None) -> None:
    # Rounds that end after a while are ended by the clock.
    admission = {"name": "quorum", "count": 2, "grace_s": 0.02}
    jump = {"kind": "jump", "target": target, "at_s": 0.3, "by_s": by_s}
    compute = {"distribution": "exponential", "mean_s": 0.03}
    cluster = SimulatedCluster(
        null_job(
            samples=60, batch_size=4, epochs=4, workers=3, servers=1, replicas=1,
            method={"name": "sync_sgd", "admission": admission},
            simulation={"compute": compute, "network": 0.001, "faults": [jump]},
        )
    )  # fmt: skip
    end = cluster.run()
    assert end.outcome == "done"
