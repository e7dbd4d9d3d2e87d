"""What the batteries say when something does not hold."""

from __future__ import annotations


def require(ok: bool, what: str) -> None:
    """Raise an AssertionError that says ``what`` is wrong, also where ``assert`` is compiled away.

    Raises:
        AssertionError: it does not hold.
    """
    if not ok:
        raise AssertionError(what)
