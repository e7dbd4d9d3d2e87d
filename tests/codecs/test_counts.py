"""With error feedback what was applied, plus the residuals, is every sample exactly once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tardygrad.codecs import names
from tardygrad.protocol.residuals import Returned
from tardygrad.testing.counting import CountingAdapter
from tardygrad.testing.simulation import SimulatedCluster, counting_job

AGAIN = {"name": "cut_off", "below": 1, "again": True}
DROP = {"name": "cut_off", "below": 2}
CASES: dict[str, dict[str, Any]] = {
    "nothing is refused": {},
    "several in flight": {"in_flight": 3, "exchange_period": 2},
    "asked for again": {"staleness": AGAIN, "in_flight": 0},
    "asked for again, several in flight": {"staleness": AGAIN, "in_flight": 3},
    "dropped": {"staleness": DROP},
    "bounded": {"consistency": {"name": "ssp", "bound": 1}},
}


def counted(codec: Any, method: dict[str, Any], **settings: Any) -> SimulatedCluster:
    """A run whose workers die of nothing; what they count is compared with the trace."""
    job = counting_job(
        samples=210, workers=4, servers=2, epochs=2, batch_size=4, fragment_batches=6, threads=1,
        method={"codec": codec, **method},
        simulation={"compute": {"distribution": "exponential", "mean_s": 0.01}},
        **settings,
    )  # fmt: skip
    cluster = SimulatedCluster(job)
    end = cluster.run()
    assert end.outcome == "done"
    _, left, _ = cluster.store.workers()
    adapter = job.build_adapter()
    assert isinstance(adapter, CountingAdapter)
    whole = end.parameters.clone()
    if job.method.codec.feeds_back:
        assert sorted(left) == [0, 1, 2, 3]
        # A push lowers the parameters by itself, so what was not sent still has to be taken off.
        for worker in sorted(left):
            whole -= left[worker].tensors["residual"]
    table = whole.view(adapter.shards, adapter.width)[:, : job.plan.samples]
    expected = cluster.history.applied_per_sample()
    torch.testing.assert_close(table, expected.to(torch.float32), atol=2e-3, rtol=0)
    # Nothing else moves in the end, though scaled_sign moves it to and fro.
    rest = whole.view(adapter.shards, adapter.width)[:, job.plan.samples :]
    torch.testing.assert_close(rest, torch.zeros_like(rest), atol=2e-3, rtol=0)
    return cluster


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("codec", names())
def test_every_sample_is_applied_or_in_a_residual(codec: str, case: str) -> None:
    cluster = counted(codec, CASES[case])
    refused = any(r.kind not in (0, 1) for records in cluster.history.records for r in records)
    if codec != "fp32" and case.startswith("asked for again"):
        assert cluster.history.residuals and refused


def test_what_is_left_out_of_a_refused_update_does_not_count() -> None:
    """Without undoing, top_k would apply most of what was refused: the counts are exact."""
    cluster = counted({"name": "top_k", "fraction": 0.01}, {"staleness": AGAIN, "in_flight": 1})
    assert sum(isinstance(entry, Returned) for entry in cluster.history.residuals) > 20
