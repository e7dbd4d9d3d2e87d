"""``tardygrad.train``: a whole run from Python, with objects where the command line has names.

What is given as an object travels by value to the processes that the run starts, so functions
and classes of a script or notebook work as they are, and a script needs no
``if __name__ == "__main__"``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tardygrad import methods, training
from tardygrad.callbacks import Callback
from tardygrad.config import BY_VALUE, DEFAULT_METHOD
from tardygrad.documents import load_config, merge
from tardygrad.errors import TrainingFailed, UsageError
from tardygrad.methods.base import Method
from tardygrad.training import Result

_YAML = (".yaml", ".yml")


def train(
    model: Any = None,
    data: Any = None,
    *,
    recipe: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    test_data: Any = None,
    loss: str | Callable[..., Any] | None = None,
    metrics: Mapping[str, str | Callable[..., Any]] | None = None,
    method: str | Mapping[str, Any] | Method | None = None,
    out: str | os.PathLike[str] | None = None,
    quiet: bool = False,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> Result:
    """Train a model and return it with everything that is known about the run.

    Args:
        model: a ``torch.nn.Module``, a function without arguments that returns one, or
            ``"package.module:function"``.
        data: the training data: a tuple of arrays or tensors (inputs..., target), a map-style torch
            ``Dataset``, a ``tardygrad.data.Source``, the name of a data set (``"mnist"``), or
            ``"package.module:function"`` that returns ``(train, test)``.
        recipe: a recipe's name, a YAML file or a configuration document to start from.
        test_data: like ``data``, for evaluation.
        loss: function of (output, target) that returns the batch's mean loss; cross entropy if not
            given.
        metrics: name to function of (output, target) that returns the batch's mean; accuracy if
            not given.
        method: ``tardygrad.methods.AsyncSGD(...)``, or a name, or settings that are merged into
            the recipe's own section.
        out: the run directory; None takes a free ``runs/NAME-YYYYmmdd-HHMMSS``.
        quiet: show nothing on the terminal.
        callbacks: are told what happens, in this process.
        settings: any other key of the configuration: ``workers=4``, ``servers=2``, ``epochs=5``,
            ``batch_size=64``, ``seed=0``, ``engine="inline"``, ``checkpoint={"every_s": 10}``, ...

    Raises:
        UsageError: an argument cannot be used (``ConfigError``, ``ModelError``, ``DataError``).
        TrainingFailed: the run failed; the message names the reason and the run directory.
        TardygradError: see its subclasses.
    """
    _check_callbacks(callbacks)
    document = _recipe(recipe)
    by_value: dict[str, Any] = {}
    if model is not None:
        # Of the recipe's model section the loss and the metrics stay; arguments were its model's.
        kept = {k: v for k, v in document.get("model", {}).items() if k != "arguments"}
        document["model"] = {**kept, **_model(model, by_value)}
    if isinstance(loss, str):
        document.setdefault("model", {})["loss"] = loss
    elif loss is not None:
        by_value["loss"] = loss
    if metrics is not None:
        document.setdefault("model", {})["metrics"] = _metrics(metrics, by_value)
    if data is not None:
        document["data"] = _data(data, test_data, by_value)
    elif test_data is not None:
        raise UsageError("test_data was given without data; give both")
    if method is not None:
        document["method"] = _method(method, document.get("method", {}))
    for section in ("model", "data"):
        if section not in document:
            raise UsageError(f"{section} is missing: give {section}=... or recipe=...")
    config = training.resolve(merge(document, settings))
    result = training.run(config, out=out, quiet=quiet, by_value=by_value, callbacks=callbacks)
    return _unless_failed(result)


def resume(
    run: str | os.PathLike[str],
    *,
    data: Any = None,
    test_data: Any = None,
    quiet: bool = False,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> Result:
    """Go on with a run from its newest checkpoint.

    Args:
        run: the run directory.
        data: the training data again, if they were too large to be kept in the run directory.
        test_data: likewise.
        quiet: show nothing on the terminal.
        callbacks: are told what happens, in this process.
        settings: what may change, such as ``workers`` or ``epochs``.

    Raises:
        RunDirectoryError: there is no such run, it is done, or another process drives it.
        CheckpointError: no checkpoint of the run can be used.
        TrainingFailed: the run failed; the message names the reason and the run directory.
    """
    _check_callbacks(callbacks)
    by_value = {} if data is None else {"data": (data, test_data)}
    result = training.resume(
        run, overrides=settings, quiet=quiet, by_value=by_value, callbacks=callbacks
    )
    return _unless_failed(result)


def _unless_failed(result: Result) -> Result:
    if result.outcome == "failed":
        raise TrainingFailed(f"{result.reason} (the run is in {result.run_directory})")
    return result


def _check_callbacks(callbacks: Any) -> None:
    if isinstance(callbacks, Callback):
        raise UsageError("callbacks is one callback; expected a list: callbacks=[callback]")
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise UsageError(
                f"callbacks has an object of type {type(callback).__name__}; expected instances of "
                "subclasses of tardygrad.Callback"
            )


def _recipe(recipe: str | os.PathLike[str] | Mapping[str, Any] | None) -> dict[str, Any]:
    if recipe is None:
        return {}
    if isinstance(recipe, os.PathLike) or (isinstance(recipe, str) and recipe.endswith(_YAML)):
        return load_config(Path(recipe))
    if isinstance(recipe, str):
        from tardygrad import recipes

        return dict(recipes.load(recipe))
    if isinstance(recipe, Mapping):
        return dict(recipe)
    raise UsageError(
        f"recipe is an object of type {type(recipe).__name__}; expected a recipe's name, a YAML "
        "file, or a dictionary"
    )


def _model(model: Any, by_value: dict[str, Any]) -> dict[str, Any]:
    if isinstance(model, str):
        return {"factory": model}
    if not callable(model):
        raise UsageError(
            f"model is an object of type {type(model).__name__}; expected a torch.nn.Module, a "
            "function that returns one, or 'package.module:function'"
        )
    by_value["model"] = model
    return {"factory": BY_VALUE}


def _metrics(metrics: Any, by_value: dict[str, Any]) -> dict[str, str]:
    if not isinstance(metrics, Mapping):
        raise UsageError(f"metrics is {metrics!r}; expected {{'name': function}}")
    by_value["metrics"] = {k: v for k, v in metrics.items() if not isinstance(v, str)}
    return {k: v if isinstance(v, str) else BY_VALUE for k, v in metrics.items()}


def _data(data: Any, test_data: Any, by_value: dict[str, Any]) -> dict[str, Any]:
    if isinstance(data, str):
        if test_data is not None:
            raise UsageError(f"data={data!r} brings its own test data; leave out test_data")
        return {"source": data}
    by_value["data"] = (data, test_data)
    return {"source": BY_VALUE}


def _method(method: Any, recipe: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(method, Method):
        return method.model_dump(mode="json", by_alias=True)
    section = {"name": method} if isinstance(method, str) else method
    if not isinstance(section, Mapping):
        raise UsageError(
            f"method is an object of type {type(method).__name__}; expected a method's name, a "
            "dictionary of settings, or tardygrad.methods.AsyncSGD(...)"
        )
    # Another method's settings mean nothing to this one.
    before = {"name": DEFAULT_METHOD, **recipe}
    name = str(section.get("name", before["name"]))
    kept = methods.switch(before, name) if name in methods.names() else {}
    return merge(kept, section)
