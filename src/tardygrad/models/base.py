"""What a worker needs of a model, whatever library computes it.

Theory of operation. The protocol and the engines know a model only as a flat float32 vector and a
handful of operations on it; a `ModelAdapter` gives them that. Everything that crosses this border
is a float32 tensor in host memory, laid out by `layout`, so that an engine can hand in a view of
shared memory or of a received frame and nothing is copied twice. Models on accelerators, in other
dtypes or in other libraries convert behind it. A step of a worker is, in this order:

    load(pulled) -> gradient(batch, seed) -> [decay] -> [clip] -> write_gradient(slot) or step(lr)

The mean over several batches: `gradient(batch, seed, weight, add)` for each, then `scale`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

    from tardygrad.data.sources import Source
    from tardygrad.layout import Layout

__all__ = ["ModelAdapter"]


@runtime_checkable
class ModelAdapter(Protocol):
    """A model as a flat vector: parameters in, gradients out.

    `P` is `layout.parameters_size`, `B` is `layout.buffers_size`. All tensors are float32, on the
    CPU, contiguous, one-dimensional.
    """

    @property
    def layout(self) -> Layout:
        """How the model's tensors lie in the flat vector."""
        ...

    @property
    def flat(self) -> torch.Tensor:
        """The model's own vector `[layout.size]`: parameters, then buffers. `read` refreshes it."""
        ...

    @property
    def adds(self) -> bool:
        """Whether it can add up the gradients of batches as well as a float32 vector does."""
        ...

    @property
    def in_place(self) -> bool:
        """Whether, unless it borrows, the model computes with `flat` itself: `step` changes it."""
        ...

    def read(self) -> torch.Tensor:
        """The parameters as they are now, `[P]`: a view of `flat`; clone it to keep it."""
        ...

    def load(self, flat: torch.Tensor) -> None:
        """Take the parameters from `flat` `[P]` (or longer: the rest is ignored)."""
        ...

    def borrow(self, flat: torch.Tensor) -> bool:
        """Compute with `flat` `[P]` itself as the parameters, without a copy.

        Whoever lends it leaves it as it is until the next `borrow` or `load`. Returns False, and
        changes nothing, if this model cannot.
        """
        ...

    def read_buffers(self, out: torch.Tensor) -> None:
        """Write the floating buffers into `out` `[B]`."""
        ...

    def load_buffers(self, values: torch.Tensor) -> None:
        """Take the floating buffers from `values` `[B]`."""
        ...

    def gradient(
        self, batch: tuple[torch.Tensor, ...], seed: int, weight: float = 1.0, add: bool = False
    ) -> float:
        """Compute the gradient of the mean loss over one batch and keep it; return that loss.

        Args:
            batch: The model's inputs, and the target last.
            seed: Decides all randomness of the step (dropout).
            weight: Factor on the gradient, but not on the loss that is returned.
            add: Add it to the gradient that is kept, instead of forgetting that one.
        """
        ...

    def scale(self, factor: float) -> None:
        """Multiply the gradient that is kept by `factor`."""
        ...

    def decay(self, weight_decay: float) -> None:
        """Add `weight_decay * parameter` to the gradient that is kept."""
        ...

    def clip_norm(self, maximum: float) -> float:
        """Scale the gradient so that its global norm is at most `maximum`; return the old norm."""
        ...

    def clip_value(self, maximum: float) -> None:
        """Clamp every element of the gradient to `[-maximum, maximum]`."""
        ...

    def write_gradient(self, out: torch.Tensor, add: bool) -> None:
        """Write the gradient into `out` `[P]`, or add it to what is there."""
        ...

    def step(self, learning_rate: float) -> None:
        """Take one local step of plain SGD: `parameter -= learning_rate * gradient`."""
        ...

    def blend(self, pulled: torch.Tensor, mixing: float) -> None:
        """Move towards `pulled` `[P]`: `local = (1 - mixing) * local + mixing * pulled`."""
        ...

    def evaluate(self, source: Source, batch_size: int) -> dict[str, float]:
        """The mean of "loss" and of every metric over all samples of `source`, without training."""
        ...

    def release(self) -> None:
        """Let go of every vector handed in before, so that its memory can be unmapped."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything the model knows, for its user: named tensors on the CPU."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take everything from what `state_dict` returned."""
        ...
