"""What workers and servers count about themselves, and what a run makes of it.

Reports are cumulative over the life of their process, so one that is lost costs nothing, and one
that comes late is recognised. ``RunStatistics`` turns them into the ``progress`` and ``run_end``
events of metrics.jsonl.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tardygrad.codecs.pushes import PushFormat
from tardygrad.metrics.summary import merge, summarise

Histogram = dict[int, int]


class WorkerCounters:
    """One worker process's counts. Times in seconds, traffic in bytes.

    ``scatter_s2`` sums, over exchanges, the squared difference of the seconds of a batch to those
    in the exchange before, divided by ``1 / b + 1 / b'`` for exchanges of ``b`` and ``b'`` batches:
    a sum of variances of single batches, and blind to what drifts (von Neumann et al., The mean
    square successive difference, 1941). ``answering_s`` are the seconds from a push to the last
    answer, of the ``answers`` that the worker waited for and did not compute meanwhile.
    ``elapsed_s`` counts from the worker's beginning to its newest batch.
    """

    def __init__(self) -> None:
        self.batches = 0
        self.samples = 0
        self.computing_s = 0.0
        self.waiting_s = 0.0
        self.communicating_s = 0.0
        self.exchanges = 0
        self.scatter_s2 = 0.0
        self.answers = 0
        self.answering_s = 0.0
        self.elapsed_s = 0.0
        self.pulled_bytes = 0
        self.pushed_bytes = 0
        self.unencoded_bytes = 0
        self.losses: dict[int, list[float]] = {}
        self._newest = (0.0, 0)

    def computed(self, epoch: int, samples: int, batches: int, loss: float, seconds: float) -> None:
        """Count one computed range of batches; ``loss`` is its mean."""
        self.batches += batches
        self.samples += samples
        self.computing_s += seconds
        self.exchanges += 1
        if batches:  # none where it was stopped before its first one ended
            batch_s, (before_s, before) = seconds / batches, self._newest
            if before:
                self.scatter_s2 += (batch_s - before_s) ** 2 / (1 / batches + 1 / before)
            self._newest = (batch_s, batches)
        entry = self.losses.setdefault(epoch, [0.0, 0.0])
        entry[0] += loss * batches
        entry[1] += batches
        if len(self.losses) > 4:
            del self.losses[min(self.losses)]

    def pushed(self, form: PushFormat, shards: Iterable[int]) -> None:
        """Count a push to these shards: what travelled, and what would have without a codec."""
        for shard in shards:
            self.pushed_bytes += form.sent[shard]
            self.unencoded_bytes += form.unencoded[shard]

    def met(self, size: int) -> None:
        """Count a meeting with another worker: what it offered came, half the difference went."""
        self.pulled_bytes += size
        self.pushed_bytes += size
        self.unencoded_bytes += size

    def report(self) -> dict[str, Any]:
        """Plain data; called from the thread that sends signs of life."""
        counts = {name: value for name, value in vars(self).items() if name[0] != "_"}
        return {**counts, "losses": [[e, *pair] for e, pair in list(self.losses.items())]}


class ServerCounters:
    """One server process's counts."""

    def __init__(self) -> None:
        # None: it is still being restored.
        self.consumed: int | None = None
        self.updates = 0
        self.dropped = 0
        self.pushes = 0
        self.applying_s = 0.0
        self.first_update_s: float | None = None
        self.staleness: dict[int, Histogram] = {}

    def applied(self, worker: int, staleness: int) -> None:
        """Count one applied update."""
        self.updates += 1
        histogram = self.staleness.get(worker)
        if histogram is None:
            histogram = self.staleness[worker] = {}
        histogram[staleness] = histogram.get(staleness, 0) + 1

    def report(self) -> dict[str, Any]:
        """Plain data."""
        pairs = [[w, list(h.items())] for w, h in list(self.staleness.items())]
        return {**vars(self), "staleness": pairs}


class _Worker:
    def __init__(self) -> None:
        self.incarnation = 0
        self.state = "starting"
        self.reason = ""
        self.restarts = 0
        self.now: dict[str, Any] = {}
        self.past: dict[str, float] = {}
        self.samples_before = 0.0

    def total(self, key: str) -> float:
        return float(self.past.get(key, 0.0) + self.now.get(key, 0.0))


_TOLD = (
    "computing_s", "waiting_s", "communicating_s", "exchanges", "scatter_s2", "answers",
    "answering_s", "elapsed_s",
)  # fmt: skip
_SUMS = ("batches", "samples", *_TOLD, "pulled_bytes", "pushed_bytes", "unencoded_bytes")


class RunStatistics:
    """Everything countable about a run, from the newest reports."""

    def __init__(self, workers: int, shards: int, samples_per_epoch: int) -> None:
        self._workers = [_Worker() for _ in range(workers)]
        self._first_incarnation = 0
        self._servers: list[dict[int, dict[str, Any]]] = [{} for _ in range(shards)]
        self._samples_per_epoch = samples_per_epoch
        self._losses: dict[tuple[int, int, int], tuple[float, float]] = {}
        self._loss_before = (0.0, 0.0)
        self._consumed_before = 0
        self._time_before = 0.0
        self.start_consumed = 0

    def _worker(self, number: int) -> _Worker:
        """A slot's counts; one that joined has nothing before."""
        while number >= len(self._workers):
            self._workers.append(_Worker())
            self._workers[-1].incarnation = self._first_incarnation
        return self._workers[number]

    @property
    def places(self) -> int:
        """How many slots are not free for those who join."""
        return sum(entry.state != "left" for entry in self._workers)

    # --- taking in ----------------------------------------------------------------------------

    def member(
        self, kind: str, member: int, incarnation: int, state: str, reason: str = ""
    ) -> None:
        """A worker or server changed its state."""
        if kind != "worker":
            return
        entry = self._worker(member)
        came = state == "started" and entry.state == "dead"
        entry.reason = entry.reason if came else reason
        if incarnation > entry.incarnation:
            for key in _SUMS:
                entry.past[key] = entry.total(key)
            entry.now = {}
            # One that left, or had to stop when work came back, did not die.
            entry.restarts += came
            entry.incarnation = incarnation
        shown = {"started": "restarting" if entry.restarts else "starting", "ready": "training"}
        # Who was asked to leave has left; the others are done.
        shown |= {"left": "left" if entry.state == "leaving" else "done"}
        entry.state = {**shown, "died": "dead", "suspected": "dead"}.get(state, state)

    def begin(self, incarnation: int, consumed: int, now: float) -> None:
        """A run begins, or is resumed with ``consumed`` samples: nobody counts as restarted."""
        self.start_consumed = self._consumed_before = consumed
        self._first_incarnation = incarnation
        self._time_before = now
        for entry in self._workers:
            entry.incarnation = incarnation

    def waiting(self, worker: int, waits: bool) -> None:
        """Whether a live worker has nothing to do just now."""
        entry = self._worker(worker)
        if entry.state in ("training", "waiting"):
            entry.state = "waiting" if waits else "training"

    def worker_report(self, worker: int, incarnation: int, report: dict[str, Any]) -> None:
        """The newest counts of a worker."""
        entry = self._worker(worker)
        if incarnation != entry.incarnation:
            return
        if entry.now and report["batches"] < entry.now["batches"]:
            return
        entry.now = report
        for epoch, total, count in report["losses"]:
            self._losses[(int(epoch), worker, incarnation)] = (total, count)

    def server_report(self, shard: int, incarnation: int, report: dict[str, Any]) -> None:
        """The newest counts of a server."""
        if report["consumed"] is not None:
            self._servers[shard][incarnation] = report

    # --- giving out ---------------------------------------------------------------------------

    @property
    def consumed(self) -> int:
        """Samples booked on every shard."""
        newest = [s[max(s)]["consumed"] if s else self.start_consumed for s in self._servers]
        return int(min(newest))

    @property
    def first_update_s(self) -> float | None:
        """When the first update was applied, on the engine's clock."""
        times = [
            r["first_update_s"]
            for s in self._servers
            for r in s.values()
            if r["first_update_s"] is not None
        ]
        return min(times, default=None)

    def histograms(self) -> list[Histogram]:
        """Each worker's applied updates by staleness, over all shards and incarnations."""
        found: defaultdict[int, list[Histogram]] = defaultdict(list)
        for server in self._servers:
            for report in server.values():
                for worker, pairs in report["staleness"]:
                    found[int(worker)].append({int(k): int(n) for k, n in pairs})
        return [dict(merge(found[worker])) for worker in range(len(self._workers))]

    def epoch_loss(self, epoch: int) -> float | None:
        """Mean training loss over the batches of an epoch (counted from 0)."""
        found = [v for (e, _, _), v in self._losses.items() if e == epoch]
        count = sum(n for _, n in found)
        return sum(s for s, _ in found) / count if count else None

    def totals(self, key: str) -> float:
        """The sum of one count over all workers."""
        return sum(w.total(key) for w in self._workers)

    def progress(self, now: float, learning_rate: Callable[[int], float]) -> dict[str, Any]:
        """The fields of a ``progress`` event, and the beginning of the next interval."""
        seconds = max(now - self._time_before, 1e-9)
        consumed = self.consumed
        totals = [sum(v[i] for v in self._losses.values()) for i in (0, 1)]
        batches = totals[1] - self._loss_before[1]
        loss = (totals[0] - self._loss_before[0]) / batches if batches > 0 else None
        fields: dict[str, Any] = {
            "epoch": consumed / self._samples_per_epoch,
            "samples": consumed,
            "samples_per_s": max(consumed - self._consumed_before, 0) / seconds,
            "loss": loss,
            "learning_rate": learning_rate(consumed),
            "staleness": self.staleness(),
            "bytes_pushed": int(self.totals("pushed_bytes")),
            "bytes_unencoded": int(self.totals("unencoded_bytes")),
            "workers": self._rows([s / seconds for s in self._new_samples()]),
        }
        self._loss_before = (totals[0], totals[1])
        self._consumed_before, self._time_before = consumed, now
        return fields

    def staleness(self) -> dict[str, float]:
        """Mean, p50, p99 and maximum over all workers."""
        return dict(summarise(dict(merge(self.histograms()))).as_dict())

    def workers(self, seconds: float) -> list[dict[str, Any]]:
        """One entry for each worker slot, its speed that over the whole stretch of ``seconds``."""
        return self._rows([entry.total("samples") / seconds for entry in self._workers])

    def rows(self, speeds: Mapping[int, float]) -> list[dict[str, Any]]:
        """One entry for each worker slot as it is now, with the speed that is given for it."""
        return self._rows([speeds.get(worker, 0.0) for worker in range(len(self._workers))])

    def _new_samples(self) -> list[float]:
        """What each slot did since the last call."""
        found = []
        for entry in self._workers:
            samples = entry.total("samples")
            found.append(max(samples - entry.samples_before, 0.0))
            entry.samples_before = samples
        return found

    def _rows(self, speeds: list[float]) -> list[dict[str, Any]]:
        rows = []
        histograms = self.histograms()
        for number, entry in enumerate(self._workers):
            rows.append(
                {
                    "worker": number,
                    "incarnation": entry.incarnation,
                    "state": entry.state,
                    "reason": entry.reason,
                    "samples": int(entry.total("samples")),
                    "samples_per_s": speeds[number],
                    "staleness": dict(summarise(histograms[number]).as_dict()),
                    **{name: entry.total(name) for name in _TOLD},
                    "restarts": entry.restarts,
                }
            )
        return rows

    def servers(self) -> list[dict[str, Any]]:
        """One entry for each shard: the pushes that it handled and the seconds that they took."""
        return [
            {
                "server": shard,
                "pushes": sum(report["pushes"] for report in server.values()),
                "applying_s": sum(report["applying_s"] for report in server.values()),
            }
            for shard, server in enumerate(self._servers)
        ]

    def staleness_histogram(self) -> dict[str, dict[str, int]]:
        """All histograms, with texts as keys, for JSON."""
        return {
            str(worker): {str(k): n for k, n in sorted(histogram.items())}
            for worker, histogram in enumerate(self.histograms())
        }
