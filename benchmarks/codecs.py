"""What codecs save: bytes that workers push for a sample, and the accuracy that is left."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import tardygrad

EPOCHS, WORKERS = 2, 2


def document(codec: str) -> dict[str, Any]:
    """The MLP with batches of 64, each of which is pushed."""
    return {
        "name": "codec",
        "workers": WORKERS,
        "epochs": EPOCHS,
        "evaluation": {"every_epochs": 0},
        "method": {"name": "async_sgd", "codec": codec},
    }


def measure(codec: str) -> dict[str, Any]:
    """Train with a codec; bytes a sample, and the test accuracy in per cent."""
    with tempfile.TemporaryDirectory() as directory:
        result = tardygrad.train(
            recipe="mnist-mlp", out=Path(directory) / "run", quiet=True, **document(codec)
        )
    return {
        "value": result.summary["bytes_pushed"] / result.summary["samples"],
        "accuracy": 100 * result.metrics["accuracy"],
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
