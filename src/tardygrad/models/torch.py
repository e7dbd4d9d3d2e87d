"""Any `torch.nn.Module` as a flat vector.

Theory of operation. In the common case, a float32 model on the CPU, the data of every trainable
parameter become views into one vector, `flat`, at the offsets of the layout: taking pulled
parameters is then one memory copy. In all other cases (half precision, an accelerator, a memory
format such as channels_last) `flat` is a float32 copy in host memory that `read` and `load`
convert from and to.

Gradients are *not* bound to a vector. Autograd hands its own result over as `p.grad` if that is
None, but adds to it if it is not, so views would cost one pass to clear and one to add where
`write_gradient` needs one to copy, and that copy goes straight to where the engine wants it.

Numerics are torch's, operation by operation: `decay`, `step` and clipping do exactly what
`torch.optim.SGD` and `torch.nn.utils.clip_grad_*` do, so that a single worker gives the bits of a
loop written by hand. Which modules are in training mode is left as the model came (a frozen
BatchNorm stays frozen), and frozen parameters are in no vector at all.

Buffers: the floating ones that the state dict holds (running statistics) are in the vector behind
the parameters, always copied, as modules may rebind them. Others (counters, caches that the model
can make again) stay with the process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from tardygrad.data.sources import Source
from tardygrad.errors import ModelError
from tardygrad.layout import Field, Layout

__all__ = ["LossFunction", "MetricFunction", "TorchAdapter"]

LossFunction: TypeAlias = Callable[[Any, torch.Tensor], torch.Tensor]
"""Of (output, target); returns the batch's mean loss, a tensor of one element."""

MetricFunction: TypeAlias = Callable[[Any, torch.Tensor], "float | torch.Tensor"]
"""Of (output, target); returns the batch's mean."""

_TRAINABLE = (torch.float32, torch.bfloat16, torch.float16)
_VIEWS_KEPT = 8


class TorchAdapter:
    """A torch module, its loss and its metrics as a `ModelAdapter`.

    `P` is `layout.parameters_size`, `B` is `layout.buffers_size`. All flat tensors are float32 in
    host memory, contiguous, one-dimensional.

    Args:
        module: The model; its parameters are bound to this adapter, so give each adapter its own.
        loss: Function of (output, target) that returns the mean loss of the batch.
        metrics: Name to function of (output, target); for `evaluate`.
        device: Where to compute: "cpu", "cuda" or "cuda:N".

    Attributes:
        module: The model, usable as any other.
        layout: How its tensors lie in the flat vector.
        flat: The flat vector `[layout.size]`; current after `read`.
        adds: Whether all gradients are float32, so that autograd may add up those of batches.
        in_place: Whether the parameters are views of `flat`.

    Raises:
        ModelError: If nothing in it can be trained, or something of a dtype that cannot.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: LossFunction,
        metrics: Mapping[str, MetricFunction] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        names = _trainable(module)
        _check_loss(loss)
        self.device = torch.device(device)
        self.module = module.to(self.device)
        if not module.training:  # it came in evaluation mode as a whole, as pretrained models do
            module.train()
        self.loss = loss.to(self.device) if isinstance(loss, nn.Module) else loss
        self.metrics = dict(metrics or {})
        by_name = dict(module.named_parameters())
        self._parameters = [by_name[name] for name in names]
        self._buffer_homes = _floating_buffers(module)
        self.layout = Layout.of(
            [_spec(name, p) for name, p in zip(names, self._parameters, strict=True)],
            [_spec(name, owner._buffers[key]) for name, owner, key in self._buffer_homes],
        )
        self.flat = torch.zeros(self.layout.size)
        self._own = self.flat[: self.layout.parameters_size]
        self._on_cpu = self.device.type == "cpu"
        # What `flat` looks like on the device; transfers go through it as one block.
        self._staging = self._own if self._on_cpu else torch.zeros_like(self._own, device=device)
        self._staging_views = _views(self._staging, self.layout.parameters)
        # Strides and not is_contiguous(), which takes channels_last with one channel for both.
        self.in_place = self._on_cpu and all(
            parameter.dtype == torch.float32 and parameter.stride() == view.stride()
            for parameter, view in zip(self._parameters, self._staging_views, strict=True)
        )
        self.adds = all(parameter.dtype == torch.float32 for parameter in self._parameters)
        self._data = [p.detach() for p in self._parameters]
        torch._foreach_copy_(self._staging_views, self._data)
        if self.in_place:
            for parameter, view in zip(self._parameters, self._staging_views, strict=True):
                parameter.data = view
            self._data = self._staging_views
        self._views: dict[tuple[int, int], list[torch.Tensor]] = {}
        self._lent: dict[int, list[torch.Tensor]] = {}
        self._borrows = False
        self._one = torch.ones(())
        # What `gradient` found, so that the other operations need not look again: the gradients,
        # the data of their parameters, and which parameters have one and which have none.
        self._gradients: list[torch.Tensor] = []
        self._data_now: list[torch.Tensor] = []
        self._present: list[int] = []
        self._absent = list(range(len(names)))
        self.read()
        self.read_buffers(self.flat[self.layout.parameters_size :])

    def read(self) -> torch.Tensor:
        """The parameters as they are now, `[P]`: a view of `flat`; clone it to keep it."""
        self._give_back(keep=True)
        if not self.in_place:
            torch._foreach_copy_(self._staging_views, self._data)
            if not self._on_cpu:
                self._own.copy_(self._staging)
        return self._own

    def load(self, flat: torch.Tensor) -> None:
        """Take the parameters from `flat` `[P]` (or longer: the rest is ignored).

        `flat` may be this adapter's own vector, written in place before.
        """
        self._give_back(keep=False)
        if flat.data_ptr() != self._staging.data_ptr():  # else it was written in place
            self._staging.copy_(flat[: self.layout.parameters_size])
        self._store()

    def borrow(self, flat: torch.Tensor) -> bool:
        """Compute with `flat` `[P]` itself as the parameters, without a copy.

        Whoever lends it leaves it as it is until the next `borrow` or `load`; `step`, `blend` and
        `read` work on a copy. Returns False, and changes nothing, if the parameters are no views.
        """
        if not self.in_place:
            return False
        views = self._lent.get(flat.data_ptr())
        if views is None:
            views = self._lent[flat.data_ptr()] = _views(flat, self.layout.parameters)
        for parameter, view in zip(self._parameters, views, strict=True):
            parameter.data = view
        self._data = views
        self._borrows = True
        return True

    def _give_back(self, *, keep: bool) -> None:
        """Own the parameters again, with the values of what was borrowed if `keep`."""
        if not self._borrows:
            return
        self._borrows = False
        if keep:
            torch._foreach_copy_(self._staging_views, self._data)
        for parameter, view in zip(self._parameters, self._staging_views, strict=True):
            parameter.data = view
        self._data = self._staging_views

    def read_buffers(self, out: torch.Tensor) -> None:
        """Write the floating buffers into `out` `[B]`."""
        if self._buffer_homes:
            torch._foreach_copy_(self._buffer_views(out), self._buffers())

    def load_buffers(self, values: torch.Tensor) -> None:
        """Take the floating buffers from `values` `[B]`."""
        if self._buffer_homes:
            torch._foreach_copy_(self._buffers(), self._buffer_views(values))

    def gradient(
        self, batch: tuple[torch.Tensor, ...], seed: int, weight: float = 1.0, add: bool = False
    ) -> float:
        """Compute the gradient of the mean loss over one batch and keep it; return that loss.

        A loss that is not finite is returned as it is.

        Args:
            batch: The model's inputs, and the target last.
            seed: Set as the seed of torch's default generators first, so dropout depends on the
                step and not on the process that computes it.
            weight: Factor on the gradient, but not on the loss that is returned.
            add: Add it to the gradient that is kept: autograd does so at no cost of its own.

        Raises:
            ModelError: If the loss is not a tensor of one element that depends on a parameter.
        """
        torch.default_generator.manual_seed(seed)
        if not self._on_cpu:
            with torch.cuda.device(self.device):
                torch.cuda.manual_seed(seed)
            batch = tuple([part.to(self.device, non_blocking=True) for part in batch])
        if not add:
            self._gradients = []  # lets go of the old ones, so that their memory is used again
            for parameter in self._parameters:
                parameter.grad = None
        *inputs, target = batch
        loss = self.loss(self.module(*inputs), target)
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise ModelError(_loss_problem(loss))
        one = self._one
        if one.dtype != loss.dtype or one.shape != loss.shape or one.device != loss.device:
            one = self._one = torch.ones_like(loss)
        # With what backward() would make anew for every batch.
        torch.autograd.backward(loss, one if weight == 1.0 else one * weight)
        self._collect()
        return loss.item()

    def scale(self, factor: float) -> None:
        """Multiply the gradient that is kept by `factor`."""
        if self._gradients:
            torch._foreach_mul_(self._gradients, factor)

    def decay(self, weight_decay: float) -> None:
        """Add `weight_decay * parameter` to the gradients: the weight decay of `torch.optim.SGD`.

        A parameter without a gradient in this step does not decay either, as there.
        """
        if self._gradients:
            torch._foreach_add_(self._gradients, self._data_now, alpha=weight_decay)

    def clip_norm(self, maximum: float) -> float:
        """Scale the gradients so that their global norm is at most `maximum`; return the old one.

        `torch.nn.utils.clip_grad_norm_`.
        """
        return nn.utils.clip_grad_norm_(self._parameters, maximum).item()

    def clip_value(self, maximum: float) -> None:
        """Clamp every element of the gradients to `[-maximum, maximum]`.

        `torch.nn.utils.clip_grad_value_`.
        """
        nn.utils.clip_grad_value_(self._parameters, maximum)

    def write_gradient(self, out: torch.Tensor, add: bool) -> None:
        """Write the gradients into `out` `[P]`, or add them to what is there.

        Zero is written for a parameter that has no gradient. Views of the last few vectors handed
        in are kept, for speed, until `release`. The gaps between fields are cleared when a vector
        is first seen, and left alone afterwards.
        """
        if not self._on_cpu:
            self._write(self._staging_views, add=False)
            (out.add_ if add else out.copy_)(self._staging.cpu())
            return
        key = (out.data_ptr(), out.numel())
        views = self._views.get(key)
        if views is None:
            views = self._views[key] = _views(out, self.layout.parameters)
            if len(self._views) > _VIEWS_KEPT:
                del self._views[next(iter(self._views))]
            if not add:
                out.zero_()
        self._write(views, add)

    def step(self, learning_rate: float) -> None:
        """Take one local step, as `torch.optim.SGD` without momentum does it."""
        if self._borrows:
            self._give_back(keep=True)
            self._data_now = [self._data[index] for index in self._present]
        if self._gradients:
            torch._foreach_add_(self._data_now, self._gradients, alpha=-learning_rate)

    def blend(self, pulled: torch.Tensor, mixing: float) -> None:
        """Move towards `pulled` `[P]`: `local = (1 - mixing) * local + mixing * pulled`.

        A mixing of 1 takes `pulled` exactly, 0 changes nothing, and where both agree nothing moves.
        """
        self._give_back(keep=True)
        if mixing == 1.0:
            self.load(pulled)
        elif mixing != 0.0:
            if not self.in_place:
                torch._foreach_copy_(self._staging_views, self._data)
            pulled = pulled[: self.layout.parameters_size].to(self.device)
            self._staging.lerp_(pulled, mixing)
            self._store()

    def evaluate(self, source: Source, batch_size: int) -> dict[str, float]:
        """The mean of "loss" and of every metric over all samples of `source`.

        In evaluation mode and without gradients; the mode of every module is put back.

        Args:
            source: Samples; the last tensor of a batch is the target.
            batch_size: Samples at a time; each batch counts by its samples.
        """
        functions: dict[str, MetricFunction] = {"loss": self.loss, **self.metrics}
        totals = dict.fromkeys(functions, 0.0)
        in_evaluation = [module for module in self.module.modules() if not module.training]
        self.module.eval()
        try:
            with torch.no_grad():
                for start in range(0, len(source), batch_size):
                    stop = min(start + batch_size, len(source))
                    batch = source.batch(np.arange(start, stop, dtype=np.int64))
                    *inputs, target = [part.to(self.device) for part in batch]
                    output = self.module(*inputs)
                    for name, function in functions.items():
                        value = _number(name, function(output, target))
                        totals[name] += value * (stop - start)
        finally:
            self.module.train()
            for module in in_evaluation:
                module.training = False
        return {name: total / len(source) for name, total in totals.items()}

    def release(self) -> None:
        """Let go of every vector handed in before, so that its memory can be unmapped."""
        self._give_back(keep=True)
        self._views.clear()
        self._lent.clear()

    def state_dict(self) -> dict[str, Any]:
        """The module's state dict, copied to the CPU: no tensor shares memory with another."""
        return {
            name: value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value
            for name, value in self.module.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take everything from a state dict of the same model.

        Raises:
            ModelError: If names or shapes differ.
        """
        self._give_back(keep=False)
        try:
            self.module.load_state_dict(state)
        except (RuntimeError, AttributeError, TypeError) as error:
            lines = " ".join(str(error).split())
            raise ModelError(f"the state is not of this model: {lines}") from error
        self.read()
        self.read_buffers(self.flat[self.layout.parameters_size :])

    def _store(self) -> None:
        """Make the parameters what `_staging` says."""
        if not self.in_place:
            torch._foreach_copy_(self._data, self._staging_views)

    def _collect(self) -> None:
        """Look which parameters have a gradient after a backward pass."""
        gradients, present, absent = [], [], []
        for index, parameter in enumerate(self._parameters):
            gradient = parameter.grad
            if gradient is None:
                absent.append(index)
                continue
            if gradient.layout is not torch.strided:  # nn.Embedding(sparse=True)
                gradient = parameter.grad = gradient.to_dense()
            gradients.append(gradient)
            present.append(index)
        self._gradients, self._present, self._absent = gradients, present, absent
        self._data_now = [self._data[index] for index in present] if absent else self._data

    def _write(self, views: list[torch.Tensor], add: bool) -> None:
        if self._absent:
            if not add:
                torch._foreach_zero_([views[index] for index in self._absent])
            views = [views[index] for index in self._present]
        if views:
            (torch._foreach_add_ if add else torch._foreach_copy_)(views, self._gradients)

    def _buffers(self) -> list[torch.Tensor]:
        """The buffers as they are now: modules may put a new tensor in the place of an old one."""
        return [_tensor(owner._buffers[key]) for _, owner, key in self._buffer_homes]

    def _buffer_views(self, vector: torch.Tensor) -> list[torch.Tensor]:
        return _views(vector, self.layout.buffers, self.layout.parameters_size)


def _views(vector: torch.Tensor, fields: Sequence[Field], start: int = 0) -> list[torch.Tensor]:
    """Each field's part of a vector whose first element is element `start` of the flat vector."""
    return [vector[f.offset - start : f.stop - start].view(f.shape) for f in fields]


def _trainable(module: nn.Module) -> list[str]:
    """Names of the parameters to train, tied ones once, checked."""
    names: list[str] = []
    memory: dict[int, str] = {}
    for name, parameter in module.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ModelError(
                f"parameter {name!r} has no shape yet; run a lazy model once on a batch, in its "
                "factory, before you return it"
            )
        if not parameter.requires_grad:
            continue
        if parameter.dtype not in _TRAINABLE:
            raise ModelError(
                f"parameter {name!r} has dtype {_dtype(parameter)}; expected float32, bfloat16 or "
                "float16: convert the model (module.float()) or freeze it (requires_grad_(False))"
            )
        if parameter.is_meta or parameter.layout is not torch.strided:
            raise ModelError(
                f"parameter {name!r} is on device {parameter.device} with layout "
                f"{parameter.layout}; expected a dense tensor with data"
            )
        if parameter.numel():
            other = memory.setdefault(parameter.data_ptr(), name)
            if other != name:
                raise ModelError(
                    f"parameters {other!r} and {name!r} are two that share memory; to tie them, "
                    "assign one nn.Parameter to both places"
                )
        names.append(name)
    if not names:
        raise ModelError(
            f"{type(module).__name__} has no trainable parameter; expected at least one "
            "nn.Parameter with requires_grad=True"
        )
    return names


def _floating_buffers(module: nn.Module) -> list[tuple[str, nn.Module, str]]:
    """Name, owner and key of each floating buffer that belongs to the model's state."""
    return [
        (f"{prefix}.{key}" if prefix else key, owner, key)
        for prefix, owner in module.named_modules()
        for key, buffer in owner._buffers.items()
        if buffer is not None
        and buffer.is_floating_point()
        and key not in owner._non_persistent_buffers_set
    ]


def _spec(name: str, tensor: torch.Tensor | None) -> tuple[str, tuple[int, ...], str]:
    present = _tensor(tensor)
    return name, tuple(present.shape), _dtype(present)


def _tensor(buffer: torch.Tensor | None) -> torch.Tensor:
    if buffer is None:
        raise ModelError("a buffer that the model had when it was built has been set to None")
    return buffer


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _check_loss(loss: LossFunction) -> None:
    if isinstance(loss, nn.Module) and any(p.requires_grad for p in loss.parameters()):
        raise ModelError(
            f"the loss {type(loss).__name__} has trainable parameters, which nothing would train; "
            "make it a part of the model, which may return what the loss function needs"
        )


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        found = f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
        raise ModelError(
            f"{name!r} of a test batch is {found}, expected one number: the batch's mean"
        ) from None


def _loss_problem(loss: Any) -> str:
    if not isinstance(loss, torch.Tensor):
        return f"the loss is an object of type {type(loss).__name__}, expected a tensor"
    if loss.numel() != 1:
        return (
            f"the loss has shape {tuple(loss.shape)}, expected a scalar: the mean over the batch "
            "(reduction='mean')"
        )
    return (
        "the loss depends on no trainable parameter, so it has no gradient; check for detach(), "
        "no_grad() or item() in the model and the loss"
    )
