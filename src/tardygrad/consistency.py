"""Who may go on: how far a worker may run ahead of the slowest one.

A worker's clock counts its exchanges. Before exchange ``clock`` begins, the worker reads the
parameters; the rule says how far the slowest member's clock must have come for that read.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from tardygrad.sections import Section, named

NO_NEED = -1
"""No clock is waited for."""


class ASP(Section):
    """Asynchronous parallel: nobody waits for anybody."""

    name: Literal["asp"] = "asp"

    @property
    def uses_clocks(self) -> bool:
        """Whether servers must keep track of clocks."""
        return False

    def need(self, clock: int) -> int:
        """The clock that the slowest member must have reached before exchange ``clock``."""
        return NO_NEED


class SSP(Section):
    """Stale-synchronous parallel (Ho et al., NIPS 2013): at most ``bound`` clocks ahead.

    A worker at clock c waits while the slowest member's clock is below ``c - bound``; ``bound=0``
    is bulk-synchronous. A read includes the worker's own writes.
    """

    name: Literal["ssp"] = "ssp"
    bound: int = Field(default=3, ge=0)

    @property
    def uses_clocks(self) -> bool:
        """Whether servers must keep track of clocks."""
        return True

    def need(self, clock: int) -> int:
        """The clock that the slowest member must have reached before exchange ``clock``."""
        return max(clock - self.bound, 0)


Consistency = Annotated[ASP | SSP, Field(discriminator="name"), BeforeValidator(named)]
