"""What a run is told: frozen sections of settings, checked before anything starts.

A configuration exists in two forms.  A *document* is a plain dict, as a recipe returns it and as a
YAML file holds it; documents are merged and overridden (``--set a.b=c``).  A ``RunConfig`` is the
document checked and completed: frozen, every default filled in, and what a run directory keeps.

Checking is strict, because a run that silently used another setting is worse than one that did not
start: no string passes for a number, no unknown key is ignored, infinities and NaN are refused.
Whatever is wrong is raised as one ``ConfigError`` with one line for each problem; an unknown key
names the nearest valid one.

The method's section is only passed through here: methods stand above this module, and
``tardygrad.methods.parse`` checks it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from tardygrad.documents import dump, load_config, merge, override, parse_overrides
from tardygrad.errors import ConfigError
from tardygrad.sections import Document, Section
from tardygrad.simulation_settings import Bandwidth, Duration, Fault, SimulationConfig

__all__ = [
    "BY_VALUE",
    "Bandwidth",
    "CheckpointConfig",
    "DataConfig",
    "Document",
    "Duration",
    "ElasticConfig",
    "EvaluationConfig",
    "FailureConfig",
    "Fault",
    "ModelConfig",
    "RunConfig",
    "Section",
    "SimulationConfig",
    "load_config",
    "merge",
    "override",
    "parse_overrides",
    "to_document",
    "to_yaml",
]

BY_VALUE = "by-value"
"""Stands in a configuration for an object that was handed over from Python."""

DEFAULT_METHOD = "async_sgd"

_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_NAME = re.compile(r"[A-Za-z_][\w-]*")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://\S+")
_DEVICE = re.compile(r"cpu|cuda(:[0-9]+)?")


def _check_reference(value: str) -> str:
    if value == BY_VALUE or _REFERENCE.fullmatch(value):
        return value
    raise ValueError("expected 'package.module:function'")


def _check_source(value: str) -> str:
    if _NAME.fullmatch(value):
        return value
    try:
        return _check_reference(value)
    except ValueError:
        raise ValueError("expected the name of a data set or 'package.module:function'") from None


class ModelConfig(Section):
    """Which model is trained, by which loss, measured by which metrics."""

    factory: str
    """``package.module:function`` that returns a new ``torch.nn.Module``."""
    arguments: dict[str, Any] = {}
    """Keyword arguments of the factory."""
    loss: str = "torch.nn.functional:cross_entropy"
    """``package.module:function`` of (output, target) that returns a scalar tensor."""
    metrics: dict[str, str] = {"accuracy": "tardygrad.models.metrics:accuracy"}
    """Name to ``package.module:function`` of (output, target) that returns a number."""

    @field_validator("factory", "loss")
    @classmethod
    def _references(cls, value: str) -> str:
        return _check_reference(value)

    @field_validator("metrics")
    @classmethod
    def _metric_references(cls, value: dict[str, str]) -> dict[str, str]:
        for name, reference in value.items():
            if name == "loss":
                raise ValueError("'loss' is always measured; give this metric another name")
            try:
                _check_reference(reference)
            except ValueError as error:
                raise ValueError(f"metric {name!r}: {error}") from None
        return value


class DataConfig(Section):
    """Which data the model is trained and tested on."""

    source: str
    """Name of a data set (``mnist``), or ``package.module:function`` that returns (train, test)."""
    arguments: dict[str, Any] = {}
    """Keyword arguments of the source."""

    @field_validator("source")
    @classmethod
    def _source(cls, value: str) -> str:
        return _check_source(value)


class EvaluationConfig(Section):
    """When the newest parameters are measured on the test data."""

    every_epochs: int = Field(1, ge=0)
    """Evaluate after every so many epochs; 0 = only at the end."""
    batch_size: int = Field(1000, ge=1)
    """Samples per evaluation step; only memory and speed depend on it."""


class CheckpointConfig(Section):
    """How often the run is saved."""

    every_s: float = Field(30.0, gt=0, allow_inf_nan=True)
    """Seconds between checkpoints; ``.inf`` = only when the run stops."""
    keep: int = Field(3, ge=1)
    """How many of the newest checkpoints stay on the disk, and at ``url``."""
    url: str | None = None
    """Where copies go, as fsspec understands it: ``s3://bucket/prefix``, ``file:///mnt/share``."""

    @field_validator("url")
    @classmethod
    def _with_a_protocol(cls, value: str | None) -> str | None:
        if value is None or _URL.fullmatch(value):
            return value
        raise ValueError("expected a URL such as 's3://bucket/prefix' or 'file:///mnt/share'")


class FailureConfig(Section):
    """How long silence may last, and what is done about the dead."""

    lease_s: float = Field(5.0, gt=0)
    """Seconds of silence that are taken for death, until a process's rhythm is known."""
    silence_min_s: float | None = Field(None, gt=0)
    """The limit that follows the rhythm is never shorter; None = two fifths of ``lease_s``."""
    silence_max_s: float | None = Field(None, gt=0)
    """The limit that follows the rhythm is never longer; None = four times ``lease_s``."""
    heartbeat_s: float = Field(0.25, gt=0)
    """Seconds between two signs of life."""
    restarts: int = Field(10, ge=0)
    """How many replacements the whole run may start; then it goes on with fewer workers."""
    put_aside_after: int = Field(3, ge=1)
    """A worker that dies so often in a row, with nothing booked, is not replaced any more."""
    backoff_s: float = Field(0.5, ge=0)
    """Seconds before a replacement starts; doubled for each further death of the same slot."""
    backoff_max_s: float = Field(30.0, ge=0)
    """Longest such wait in seconds."""
    start_s: float = Field(60.0, gt=0)
    """Seconds that a process may take to come up, and a worker for its first step."""
    stop_s: float = Field(30.0, gt=0)
    """Seconds that processes have to finish when the run stops, before they are killed."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.lease_s <= 2 * self.heartbeat_s:
            raise ValueError(
                f"lease_s must be more than twice heartbeat_s ({self.heartbeat_s:g}), so that one "
                f"late heartbeat does not count as a death, got {self.lease_s:g}"
            )
        for key, low, high in (
            ("silence_min_s", 2 * self.heartbeat_s, self.lease_s),
            ("silence_max_s", self.lease_s, float("inf")),
        ):
            value = getattr(self, key)
            if value is not None and not low <= value <= high:
                bounds = f"from {low:g} to {high:g}" if high < float("inf") else f"{low:g} or more"
                raise ValueError(f"{key} must be {bounds}, got {value:g}")
        if self.backoff_max_s < self.backoff_s:
            raise ValueError(
                f"backoff_max_s must be at least backoff_s ({self.backoff_s:g}), "
                f"got {self.backoff_max_s:g}"
            )
        return self

    @property
    def silence_s(self) -> tuple[float, float]:
        """The bounds of the limit that follows a process's rhythm, in seconds."""
        least, most = self.silence_min_s, self.silence_max_s
        if least is None:
            least = min(max(0.4 * self.lease_s, 4 * self.heartbeat_s), self.lease_s)
        return least, 4 * self.lease_s if most is None else most


class ElasticConfig(Section):
    """Workers that join and leave while the run goes on."""

    workers_max: int | None = Field(None, ge=1)
    """So many workers there can be at a time; None = twice ``workers``, and at least 16."""
    learning_rate: Literal["fixed", "linear"] = "fixed"
    """``linear`` multiplies it by the live number of workers over the configured one."""


class RunConfig(Document):
    """Everything that determines a run; ``tardygrad.training.resolve`` makes it of a document."""

    name: str = "run"
    """Name of the run, the beginning of its directory's name."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Initial parameters, order of the samples, random numbers of the model, simulated times."""
    model: ModelConfig
    data: DataConfig
    method: dict[str, Any] = {"name": DEFAULT_METHOD}
    """``name`` of the method and its settings; a bare string is the name."""
    epochs: int = Field(5, ge=1)
    batch_size: int = Field(64, ge=1)
    """Samples per step of one worker."""
    fragment_batches: int | None = Field(None, ge=1)
    """Batches that are leased at a time; None = chosen from the data and the workers."""
    workers: int = Field(4, ge=1)
    servers: int = Field(1, ge=1)
    """Into how many shards the parameters are cut."""
    replicas: int = Field(0, ge=0, le=8)
    """How many backups each shard has, which lose nothing if its server dies."""
    engine: Literal["processes", "inline"] = "processes"
    """``processes`` trains for real; ``inline`` simulates in one process and virtual time."""
    threads: int = Field(1, ge=1)
    """Compute threads of each process."""
    device: str = "cpu"
    """Where workers compute: ``cpu``, ``cuda`` or ``cuda:N``."""
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    failure: FailureConfig = FailureConfig()
    elastic: ElasticConfig = ElasticConfig()
    simulation: SimulationConfig = SimulationConfig()
    tensorboard: bool = False
    """Write TensorBoard files into the run directory as well (extra ``tensorboard``)."""

    @field_validator("method", mode="before")
    @classmethod
    def _method_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, Mapping):
            method = {"name": DEFAULT_METHOD, **value}
            if not isinstance(method["name"], str) or not _NAME.fullmatch(method["name"]):
                raise ValueError(f"expected the name of a method, got {method['name']!r}")
            return method
        return value

    @field_validator("name")
    @classmethod
    def _file_name(cls, value: str) -> str:
        if _FILE_NAME.fullmatch(value):
            return value
        raise ValueError("expected letters, digits, '.', '_' and '-' (it names a directory)")

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if _DEVICE.fullmatch(value):
            return value
        raise ValueError("expected 'cpu', 'cuda' or 'cuda:N'")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        most = self.elastic.workers_max
        if most is not None and most < self.workers:
            raise ValueError(
                f"elastic.workers_max must be at least workers ({self.workers}), got {most}"
            )
        self.simulation.check(self.workers, self.servers, self.servers * self.replicas)
        return self

    @property
    def workers_max(self) -> int:
        """How many workers there can be at a time."""
        return self.elastic.workers_max or max(16, 2 * self.workers)

    def fragment_batches_for(self, samples: int) -> int:
        """Batches per fragment for a training set of ``samples`` samples.

        Unless it is set: an eighth of a worker's share of an epoch, so that the fast can take over
        from the slow, and at most 32, so that little is redone after a death.
        """
        if self.fragment_batches is not None:
            return self.fragment_batches
        batches_per_epoch = -(-samples // self.batch_size)
        return max(1, min(32, batches_per_epoch // (8 * self.workers)))


def to_document(config: Section) -> dict[str, Any]:
    """The configuration as a plain dict that the same class accepts again.

    Raises:
        ConfigError: an argument of the model or of the data is an object that no file can hold.
    """
    try:
        return config.model_dump(mode="json", by_alias=True)
    except ValueError as error:
        raise ConfigError(
            f"the configuration holds an object that cannot be written to a file ({error}); give "
            "numbers, texts and lists as arguments, or hand the model and the data over by value"
        ) from None


def to_yaml(config: Section, comment: str = "") -> str:
    """The configuration as YAML that ``load_config`` reads; ``comment`` stands above, behind #."""
    return dump(to_document(config), comment)
