"""Your own model, data and callback in a script: no guard, no module, no files to prepare.

python examples/own_model.py
"""

import torch
from torch import nn

import tardygrad as tg

generator = torch.Generator().manual_seed(0)
x = torch.randn(8192, 20, generator=generator)
y = (x[:, :10].sum(1) > x[:, 10:].sum(1)).long()


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))


class UntilGood(tg.Callback):
    def on_evaluate(self, logs: dict) -> None:
        self.stop_training = logs["accuracy"] > 0.98


result = tg.train(
    model,
    (x[:7168], y[:7168]),
    test_data=(x[7168:], y[7168:]),
    method=tg.methods.AsyncSGD(optimizer={"class": "Adam", "arguments": {"lr": 0.003}}),
    workers=2,
    epochs=20,
    callbacks=[UntilGood()],
)
print(f"accuracy {result.metrics['accuracy']:.3f}, everything else in {result.run_directory}")
print(f"{result.outcome}: {result.reason}")
