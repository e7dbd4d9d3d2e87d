"""Scripts and notebooks: functions and data by value, and no guard around the call."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from real_runs import PATIENCE_S, assert_exact

SCRIPT = """
import sys
import numpy as np
import torch
import tardygrad

print("begin")  # a child that ran this script again would print it too
rng = np.random.default_rng(0)
x = rng.standard_normal((1024, 8), dtype=np.float32)
y = (x.sum(1) > 0).astype(np.int64)
WIDTH = 16


def hidden():
    return torch.nn.Linear(8, WIDTH)


def model():
    return torch.nn.Sequential(hidden(), torch.nn.ReLU(), torch.nn.Linear(WIDTH, 2))


class Half(torch.utils.data.Dataset):
    def __len__(self):
        return 512

    def __getitem__(self, index):
        return x[index], y[index]


def smooth(output, target):
    return torch.nn.functional.cross_entropy(output, target, label_smoothing=0.1)


result = tardygrad.train(
    model, Half(), test_data=(x, y), loss=smooth, workers=2, epochs=8, batch_size=32,
    metrics={"right": lambda output, target: (output.argmax(1) == target).float().mean()},
    method={"name": "async_sgd", "optimizer": {"class": "SGD", "arguments": {"lr": 0.5}}},
    out=sys.argv[1], quiet=True,
)
with torch.no_grad():
    guess = result.model(torch.from_numpy(x)).argmax(1).numpy()
right = float((guess == y).mean())
print(result.outcome, abs(right - result.metrics["right"]) < 1e-6, right > 0.8)
"""


@pytest.mark.parametrize("kind", ["file", "standard input"])
def test_a_script_needs_no_guard(tmp_path: Path, kind: str) -> None:
    # What happens to lie in the current directory must not be imported instead of the real one.
    (tmp_path / "msgpack.py").write_text("raise ImportError('the wrong msgpack')")
    script = tmp_path / "scripts" / "script.py"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    words = [str(script)] if kind == "file" else ["-P", "-"]
    process = subprocess.run(
        [sys.executable, *words, str(tmp_path / "run")],
        input=None if kind == "file" else SCRIPT,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        timeout=PATIENCE_S,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == ["begin", "done", "True", "True"]
    assert process.stderr == ""
    assert_exact(tmp_path / "run", epochs=8, samples=512)
