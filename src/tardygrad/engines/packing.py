"""A worker's side of a codec: what its pushes left out so far, and how the next one is packed.

Theory of operation. For each push, per shard (Seide et al., INTERSPEECH 2014; Karimireddy et al.,
arXiv 1901.09847)::

    p <- delta + e;   send C(p);   e <- p - C(p)                e: the residual, at first 0

so what was sent, plus the residual, is always what was computed. A push that a shard does not take
is trained again, or dropped by policy: then ``C(p) - delta`` goes back into the residual, and the
sum holds for the updates that were taken. That is done when the next push is packed, and written
down first: a replay does the same at the same place.

The residual outlives sessions: it is made of updates that count. It ends with the process, unless
that leaves in good order; then a checkpoint keeps it (``state``), and the slot's next process goes
on with it (``take_over``). What is not finite leaves no residual behind.

Memory: the residual, and for each push in flight what would go back, each as large as the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from tardygrad.codecs.pushes import PushFormat
from tardygrad.protocol.residuals import Inherited, Residual, Returned

__all__ = ["Packer"]

_RESIDUAL = "residual"


class Packer:
    """Packs one worker's pushes.

    Args:
        form: how a push lies in bytes.
        worker: whose.
        log: keeps what happens to the residual; it is durable once that returns.
    """

    def __init__(self, form: PushFormat, worker: int, log: Callable[[Residual], None]) -> None:
        self._form, self._worker, self._log = form, worker, log
        self._newest = 0
        self._coders = form.coders()
        self._residual: torch.Tensor | None = None
        if form.codec.feeds_back:
            self._residual = torch.zeros(form.parameters_size)
        self._undo: dict[int, torch.Tensor] = {}
        self._lost: list[tuple[int, tuple[int, ...]]] = []

    @property
    def residual(self) -> torch.Tensor | None:
        """What pushes have left out so far, float32 ``[parameters_size]``; None if it is lost."""
        return self._residual

    def pack(
        self,
        seq: int,
        update: torch.Tensor,
        out: torch.Tensor,
        shards: Sequence[int] | None = None,
    ) -> None:
        """Encode an update.

        Args:
            seq: the push's number.
            update: float32 ``[layout.size]``: the update, then the buffers.
            out: uint8 ``[form.nbytes]``, beginning at a multiple of 64 bytes.
            shards: those that it is for, if not all; the others' residual stays.
        """
        self._settle(seq)
        self._newest = seq
        form, size = self._form, self._form.parameters_size
        form.buffers(out).copy_(update[size:])
        residual = self._residual
        if residual is None:
            for shard in self._all(shards):
                self._coders[shard].encode(update[form.owned[shard]], form.part(out, shard))
            return
        before = residual.clone()
        for shard in self._all(shards):
            coder, owned = self._coders[shard], form.owned[shard]
            part, mine = form.part(out, shard), residual[owned]
            mine.add_(update[owned])
            coder.encode(mine, part)
            mine.sub_(coder.decode(part))
        residual.nan_to_num_(0.0, 0.0, 0.0)
        self._undo[seq] = before.sub_(residual)

    def answered(self, seq: int, lost: tuple[int, ...]) -> None:
        """A push is done with; the shards in ``lost`` have not taken it."""
        if seq not in self._undo:
            return
        if lost:
            self._lost.append((seq, lost))
        else:
            del self._undo[seq]

    def _settle(self, at: int) -> None:
        """Take back, before push ``at``, what lost pushes did to the residual."""
        lost, self._lost = self._lost, []
        for seq, shards in lost:
            self._log(Returned(self._worker, at, seq, shards))
            undo = self._undo.pop(seq)
            assert self._residual is not None
            for shard in shards:
                owned = self._form.owned[shard]
                self._residual[owned].add_(undo[owned])

    def unpack(
        self, push: torch.Tensor, out: torch.Tensor, shards: Sequence[int] | None = None
    ) -> None:
        """Decode a push (uint8 ``[form.nbytes]``) into ``out``, float32 ``[layout.size]``.

        With ``shards``, what it has for these alone.
        """
        form = self._form
        for shard in self._all(shards):
            out[form.owned[shard]] = self._coders[shard].decode(form.part(push, shard))
        out[form.parameters_size :] = form.buffers(push)

    def _all(self, shards: Sequence[int] | None) -> Sequence[int]:
        return range(len(self._coders)) if shards is None else shards

    def leave(self) -> dict[str, torch.Tensor]:
        """Copies of the residual and of what the coders remember, every push being answered."""
        self._settle(self._newest + 1)
        found = {} if self._residual is None else {_RESIDUAL: self._residual.clone()}
        for shard, coder in enumerate(self._coders):
            found |= {f"shard{shard}.{key}": value for key, value in coder.state().items()}
        return found

    def take_over(
        self, state: dict[str, torch.Tensor], entry: Inherited, *, same_codec: bool
    ) -> None:
        """Go on from what another's :meth:`leave` returned; of another codec the residual alone."""
        self._log(entry)
        if self._residual is not None and _RESIDUAL in state:
            self._residual.copy_(state[_RESIDUAL])
        for shard, coder in enumerate(self._coders):
            prefix = f"shard{shard}."
            own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            if same_codec and own:
                coder.load_state(own)
