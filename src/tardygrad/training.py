"""From a configuration to a trained model: the one road that every run takes.

``resolve`` checks a document; ``run`` makes the run directory, the data, the model and the job, and
hands them to the engine; ``resume`` does the same for a directory that is there. Whatever happens
is told to a ``RunObserver``: metrics.jsonl first, then events.log, the views and the callbacks.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import torch

import tardygrad
from tardygrad import copies
from tardygrad.callbacks import Callback, CallbackList
from tardygrad.config import RunConfig, to_yaml
from tardygrad.data import registry
from tardygrad.data.fragments import FragmentPlan
from tardygrad.data.sources import Source
from tardygrad.documents import load_config, merge
from tardygrad.engines import nursery
from tardygrad.engines.base import Engine, Job, RunEnd
from tardygrad.engines.child import explain, pickled
from tardygrad.engines.stores import DirectoryStore, store_of
from tardygrad.errors import ModelError, RunDirectoryError, TardygradError, UsageError
from tardygrad.exporting import keep_fixed_state
from tardygrad.methods import parse, switch
from tardygrad.metrics.console import View, choose
from tardygrad.metrics.recorder import Recorder
from tardygrad.metrics.sink import MetricsLog, read
from tardygrad.models.factory import build
from tardygrad.observer import RunObserver, stopped_by_signals
from tardygrad.preflight import check_first_batch
from tardygrad.resuming import begins_anew, check_resumable, made_ready, placed, with_residuals
from tardygrad.storage.atomic import write_bytes
from tardygrad.storage.run_directory import RunDirectory

if TYPE_CHECKING:
    from tardygrad.auditing import Audit
    from tardygrad.models.torch import TorchAdapter

_EXIT_CODES = {"done": 0, "failed": 1, "preempted": 75}
_BY_VALUE_DATA_LIMIT = 64 << 20
_FIXED_ON_RESUME = (
    "seed", "model", "data", "batch_size", "fragment_batches", "engine",
)  # fmt: skip


def resolve(document: Mapping[str, Any]) -> RunConfig:
    """A document checked and completed, the method's section included.

    Raises:
        ConfigError: something is wrong; one line for each problem.
    """
    config = RunConfig.model_validate(dict(document))
    method = parse(config.method)
    return config.model_copy(update={"method": method.model_dump(mode="json", by_alias=True)})


@dataclass
class Result:
    """What a run gave.

    Attributes:
        outcome: ``done``, ``preempted`` (resume it) or ``failed``.
        reason: why it ended.
        metrics: the final test metrics, "loss" among them.
        summary: the fields of the ``run_end`` event.
        model: the trained module, on the CPU, with averaged buffers, in evaluation mode.
        run_directory: where everything is.
        curves: the picture of the run, or None if the extra ``report`` is not installed.
        history: the epoch, evaluate and run_end events of this stretch, in order.
        start: the fields of its ``run_start`` event.
    """

    outcome: str
    reason: str
    metrics: dict[str, float]
    summary: dict[str, Any]
    model: torch.nn.Module
    run_directory: Path
    curves: Path | None
    history: list[dict[str, Any]] = field(default_factory=list, repr=False)
    start: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def exit_code(self) -> int:
        """0 done, 1 failed, 75 preempted."""
        return _EXIT_CODES[self.outcome]


def run(
    config: RunConfig,
    *,
    out: str | os.PathLike[str] | None = None,
    quiet: bool = False,
    command_started: float | None = None,
    by_value: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """Begin a new run and train to its end.

    Args:
        config: from :func:`resolve`.
        out: the run directory; None takes a free ``runs/NAME-YYYYmmdd-HHMMSS``.
        quiet: show nothing on the terminal.
        command_started: ``time.monotonic()`` when the command began, for ``first_update_s``.
        by_value: objects instead of names: "model", "loss", "metrics", "data".
        callbacks: are told what happens, in this process.

    Raises:
        TardygradError: see its subclasses; nothing that was written before is lost.
    """
    started = time.monotonic() if command_started is None else command_started
    if config.engine == "processes":
        nursery.prestart(config.threads)
    try:
        data = registry.load(config.data, (by_value or {}).get("data"))
        adapter = build(config.model, config.seed, by_value, config.device)
        # The cut of the data is settled once: a resumed run may have other workers.
        settled = {"fragment_batches": _fragment_batches(config, len(data[0]))}
        config = config.model_copy(update=settled)
        job = _job(config, data, adapter, by_value or {})
        check_first_batch(job)
        copies.check(config)
        with RunDirectory.create(
            None if out is None else Path(out), to_yaml(config), name=config.name
        ) as directory:
            directory.check_layout(job.layout.fingerprint())
            _keep_by_value(directory, by_value or {})
            keep_fixed_state(directory, adapter)
            copies.claim(config, directory)
            stage = _Stage(directory, job, adapter, started, quiet, callbacks)
            return stage.play()
    finally:
        nursery.discard()


def resume(
    run: str | os.PathLike[str],
    *,
    overrides: Mapping[str, Any] | None = None,
    quiet: bool = False,
    command_started: float | None = None,
    by_value: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """Go on with a run from its newest checkpoint that is whole.

    Args:
        run: the run directory.
        overrides: settings to change, such as ``{"workers": 8}``; what determines which samples
            are trained cannot change.
        quiet: show nothing on the terminal.
        command_started: ``time.monotonic()`` when the command began.
        by_value: objects that the run directory does not hold (large data).
        callbacks: are told what happens, in this process.

    Raises:
        RunDirectoryError: there is no such run, it is done, or another process drives it.
        CheckpointError: no checkpoint of the run can be used.
        StorageError: there is none here, and the place of its copies cannot be reached.
    """
    started = time.monotonic() if command_started is None else command_started
    with RunDirectory.open(Path(run), lock=True) as directory:
        config = resumed_config(directory, overrides or {})
        if config.engine == "processes":
            nursery.prestart(config.threads)
        try:
            objects = {**_kept_by_value(directory), **(by_value or {})}
            data = registry.load(config.data, objects.get("data"))
            adapter = build(config.model, config.seed, objects, config.device)
            job = _job(config, data, adapter, objects)
            directory.check_layout(job.layout.fingerprint())
            store = store_of(directory, job)
            decisions = copies.fetch(config, directory, store)
            check_resumable(directory, job, store)
            check_first_batch(job)
            decisions += made_ready(directory, job, store)
            write_bytes(directory.config_yaml, to_yaml(config).encode())
            keep_fixed_state(directory, adapter)
            stage = _Stage(directory, job, adapter, started, quiet, callbacks)
            return stage.play(directory.next_incarnation(), decisions)
        finally:
            nursery.discard()


def job_of_run(run: str | os.PathLike[str], by_value: Mapping[str, Any] | None = None) -> Job:
    """The job of a run directory as it was at its beginning; nothing is written.

    Args:
        run: the run directory.
        by_value: objects that the run directory does not hold (large data).

    Raises:
        RunDirectoryError: there is no such run.
    """
    directory = RunDirectory.open(Path(run))
    config = resolve(load_config(directory.config_yaml))
    objects = {**_kept_by_value(directory), **(by_value or {})}
    data = registry.load(config.data, objects.get("data"))
    return _job(config, data, build(config.model, config.seed, objects), objects)


def _fragment_batches(config: RunConfig, samples: int) -> int:
    usual = config.fragment_batches_for(samples)
    if config.fragment_batches is not None:
        return usual
    batches = -(-samples // config.batch_size)
    method = parse(config.method)
    return method.fragment_batches(usual, batches=batches, workers=config.workers)


def _job(
    config: RunConfig,
    data: tuple[Source, Source | None],
    adapter: TorchAdapter,
    by_value: Mapping[str, Any],
) -> Job:
    method = parse(config.method)
    train, test = data
    plan = FragmentPlan(
        samples=len(train),
        batch_size=config.batch_size,
        fragment_batches=config.fragment_batches_for(len(train)),
        seed=config.seed,
    )
    initial = adapter.flat.clone()
    initial[: adapter.layout.parameters_size] = adapter.read()
    return Job(
        config=config,
        method=method,
        plan=plan,
        layout=adapter.layout,
        ranges=method.ranges(adapter.layout, config.servers),
        initial=initial,
        train=train,
        test=test,
        build_adapter=lambda: build(config.model, config.seed, by_value, config.device),
        by_value=dict(by_value),
    )


def _keep_by_value(directory: RunDirectory, by_value: Mapping[str, Any]) -> None:
    if not by_value:
        return
    kept = dict(by_value)
    data = kept.get("data")
    if data is not None and len(pickled(data)) > _BY_VALUE_DATA_LIMIT:
        del kept["data"]
    directory.write_job(pickled(kept))


def _kept_by_value(directory: RunDirectory) -> dict[str, Any]:
    pickled = directory.read_job()
    if pickled is None:
        return {}
    try:
        kept: dict[str, Any] = cloudpickle.loads(pickled)
    except Exception as error:
        raise ModelError(
            f"what {directory} was given from Python cannot be loaded from {directory.job_pkl}: "
            f"{explain(error)}; if a module is missing, go to the folder that has it, or put that "
            "folder into PYTHONPATH"
        ) from error
    return {key: value for key, value in kept.items() if value is not None}


def resumed_config(directory: RunDirectory, overrides: Mapping[str, Any]) -> RunConfig:
    """The configuration with which a run goes on.

    Raises:
        UsageError: ``overrides`` change what may not change, or the run is done.
        ConfigError: they name a method that there is not.
    """
    fixed = [key for key in overrides if key in _FIXED_ON_RESUME]
    if fixed:
        raise UsageError(
            f"{', '.join(fixed)} cannot change when a run is resumed: the ledger and the "
            "checkpoints depend on it; start a new run instead"
        )
    if directory.record.outcome == "done" and "epochs" not in overrides:
        raise RunDirectoryError(
            f"{directory} is done; to train on, resume it with more epochs (--set epochs=N)"
        )
    document = load_config(directory.config_yaml)
    changes = dict(overrides)
    method = changes.get("method", {})
    changes["method"] = method = {"name": method} if isinstance(method, str) else method
    if isinstance(method, Mapping) and "name" in method:
        # Another method begins with its own defaults, but for what means the same to both.
        document["method"] = switch(document["method"], str(method["name"]))
    return resolve(merge(document, changes))


class _Stage:
    """One stretch of a run, from its start or a checkpoint to its end or an interruption."""

    def __init__(
        self, directory: RunDirectory, job: Job, adapter: TorchAdapter, started: float,
        quiet: bool, callbacks: Sequence[Callback],
    ) -> None:  # fmt: skip
        self.directory, self.job, self.adapter = directory, job, adapter
        self.started, self.quiet = started, quiet
        self.callbacks = CallbackList(callbacks)

    def play(self, generation: int = 0, decisions: Sequence[tuple[str, str]] = ()) -> Result:
        """Train; returns the result, whatever the outcome. ``decisions`` were made before."""
        config, store = self.job.config, store_of(self.directory, self.job)
        job = placed(self.job, self.directory, store, generation)
        log = MetricsLog(self.directory.metrics_jsonl)
        engine, clock = _engine(config.engine)
        origin = None if config.engine == "inline" else self.started
        with Recorder(log, self._views(generation), clock, origin=origin) as recorder:
            observer = RunObserver(recorder, self.directory.events_log, self.callbacks)
            for decision, reason in decisions:
                observer.decided(decision, reason)
            if generation and (why := begins_anew(store, job)):
                observer.decided("the method's state begins anew", why)
            if generation:
                job, told = with_residuals(job, store)
                for why in told:
                    observer.decided("what codecs left out at the workers", why)
            start = self._start_fields(job)
            observer.emit("run_start", **start)
            self.callbacks.begin(observer.emit)
            kept = copies.kept(config, self.directory, store, observer.decided)
            with stopped_by_signals(observer), kept:
                end = self._run_engine(engine, job, observer, store)
                summary = self._summary(end, observer)
                # Before the wait for the last copy: who is impatient may kill that.
                observer.emit("run_end", **summary)
                self.directory.finish(end.outcome)
        return self._result(end, start, summary, observer)

    def _run_engine(
        self, engine: Engine, job: Job, observer: RunObserver, store: DirectoryStore
    ) -> RunEnd:
        try:
            return engine.run(job, observer, store)
        except TardygradError as error:
            with contextlib.suppress(TardygradError):
                observer.emit("run_end", outcome="failed", reason=str(error))
                self.directory.finish("failed")
            raise

    def _views(self, generation: int) -> list[View]:
        views: list[View] = [choose(self.quiet, sys.stderr)]
        if self.job.config.tensorboard:
            from tardygrad.metrics.tensorboard import TensorBoardView

            resume_at = None
            if generation:
                samples = [
                    e["samples"] for e in read(self.directory.metrics_jsonl) if "samples" in e
                ]
                resume_at = max(samples, default=0)
            views.append(TensorBoardView(self.directory.path / "tensorboard", resume_at=resume_at))
        return views

    def _start_fields(self, job: Job) -> dict[str, Any]:
        config = self.job.config
        return {
            "run": self.directory.record.run,
            "name": config.name,
            "incarnation": job.generation,
            "samples": job.consumed_before,
            "workers": config.workers,
            "servers": config.servers,
            "epochs": config.epochs,
            "samples_per_epoch": job.plan.samples,
            "fragment_batches": job.plan.fragment_batches,
            "batch_size": config.batch_size,
            "method": config.method,
            "engine": config.engine,
            "seed": config.seed,
            "model_parameters": job.layout.parameter_count,
            "versions": {
                "tardygrad": tardygrad.__version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
            },
        }

    def _summary(self, end: RunEnd, observer: RunObserver) -> dict[str, Any]:
        statistics = end.figures.pop("statistics")
        final = end.figures.pop("final", None)
        if final is None:
            final = self._evaluate(end, observer, statistics.consumed)
        seconds = end.figures["seconds"]
        first = end.figures["first_update_s"]
        if first is not None:  # virtual seconds cannot be counted from the command
            first = first - self.started if self.job.config.engine == "processes" else None
        found = self._audit(end, observer)
        totals = {
            name: sum(getattr(row, name) for row in found.rows)
            for name in ("applied", "dropped", "missing", "twice")
        }
        consumed = statistics.consumed - statistics.start_consumed
        return {
            **end.figures,
            "outcome": end.outcome,
            "reason": end.reason,
            "samples": statistics.consumed,
            "samples_per_s": consumed / max(seconds, 1e-9),
            "first_update_s": first,
            "staleness": statistics.staleness(),
            "staleness_histogram": statistics.staleness_histogram(),
            "workers": statistics.workers(max(seconds, 1e-9)),
            "servers": statistics.servers(),
            "bytes_pushed": int(statistics.totals("pushed_bytes")),
            "bytes_unencoded": int(statistics.totals("unencoded_bytes")),
            "bytes_pulled": int(statistics.totals("pulled_bytes")),
            "ledger": {"exact": found.exact, **totals},
            "final": final,
        }

    def _audit(self, end: RunEnd, observer: RunObserver) -> Audit:
        from tardygrad.auditing import Audit, audit

        try:
            # The directory does not know its outcome yet, and with it depends what is due.
            return audit(self.directory.path, outcome=end.outcome)
        except TardygradError as error:
            if end.outcome == "done":
                raise
            # A run that ended before any server began has no books; why it ended matters more.
            observer.decided("the ledger cannot be read", str(error))
            return Audit(exact=not any(self.directory.trace.glob("*.trace")), rows=[])

    def _evaluate(self, end: RunEnd, observer: RunObserver, samples: int) -> dict[str, float]:
        self._load(end)
        if self.job.test is None:
            return {}
        at = observer.now()
        try:
            found = self.adapter.evaluate(self.job.test, self.job.config.evaluation.batch_size)
        except Exception as error:
            # What was trained is safe: a resume with a mended metric only measures.
            observer.decided("the final evaluation failed", explain(error))
            if end.outcome == "done":
                end.outcome, end.reason = "failed", f"the final evaluation failed: {explain(error)}"
            return {}
        epoch = samples // self.job.plan.samples
        observer.emit("evaluate", epoch=epoch, samples=samples, at_s=at, final=True, **found)
        return found

    def _load(self, end: RunEnd) -> None:
        size = self.job.layout.parameters_size
        self.adapter.load(end.parameters[:size])
        self.adapter.load_buffers(end.parameters[size:])

    def _result(
        self, end: RunEnd, start: dict[str, Any], summary: dict[str, Any], observer: RunObserver
    ) -> Result:
        self._load(end)
        self.adapter.module.eval().cpu()
        curves: Path | None = None
        with contextlib.suppress(UsageError):  # the extra is not there: nothing is drawn
            from tardygrad.metrics.report import report

            curves = next((p for p in report(self.directory.path) if p.suffix == ".png"), None)
        self.callbacks.end(summary)
        return Result(
            outcome=end.outcome,
            reason=end.reason,
            metrics=dict(summary["final"]),
            summary=summary,
            model=self.adapter.module,
            run_directory=self.directory.path,
            curves=curves,
            history=observer.history,
            start=start,
        )


def _engine(name: str) -> tuple[Engine, Callable[[], float]]:
    """The engine and the clock that its run goes by."""
    if name == "inline":
        from tardygrad.engines.inline import InlineEngine

        simulator = InlineEngine()
        return simulator, lambda: simulator.now
    from tardygrad.engines.processes import ProcessesEngine

    return ProcessesEngine(), time.monotonic
