"""What of a module's state dict is in no flat vector: frozen parameters, counters, second names.

Theory of operation. Servers hold trainable parameters and floating buffers under the names of the
layout. The state dict has more: parameters that are not trained, buffers of integers, and one
tensor under several names where it is tied. None of that changes in a run, so it is kept once, and
with it any checkpoint becomes a state dict without the code of the model.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from tardygrad.layout import Layout

__all__ = ["FixedState", "fixed_state"]


@dataclass(frozen=True)
class FixedState:
    """The part of a state dict that a layout lacks.

    Attributes:
        tensors: entries that no server holds, by name.
        names: for each entry that a server holds, its name in the layout.
        left_out: entries that are no tensors.
    """

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def fixed_state(module: nn.Module, layout: Layout) -> FixedState:
    """Look through a module's state dict for what its layout lacks.

    Tensors are the module's own, not copies.
    """
    # An entry is known by the object that it is, since it may have any name.
    held = {f.name for f in layout.fields}
    own = {
        id(tensor): name
        for found in (module.named_parameters(), module.named_buffers())
        for name, tensor in found
        if name in held
    }
    state = FixedState()
    for name, value in module.state_dict(keep_vars=True).items():
        if not isinstance(value, torch.Tensor):
            state.left_out.append(name)
        elif id(value) in own:
            state.names[name] = own[id(value)]
        else:
            state.tensors[name] = value.detach()
    return state
