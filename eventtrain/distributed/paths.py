"""Where a rank stands: a path, one number for each scope that is open, compared as tuples are.

The outermost scope is ``()``. A scope inside of another has the other's path and one number more:
how many have opened there before it. So ``(2, 0, 7)`` is the eighth batch of the first phase of the
third epoch, and a validation in the middle of that batch is ``(2, 0, 7, 0)``. On every rank a path
means the same, and later ones are greater, which is all that the agreement asks of a position.
"""

from __future__ import annotations

Path = tuple[int, ...]

END = 2**62
"""The number after all others: a scope has come to its end, and is about to close."""


def next_inside(scope: Path, position: Path) -> Path:
    """Return where the next scope inside of ``scope`` opens, after ``position`` was begun in it."""
    depth = len(scope)
    return (*scope, position[depth] + 1 if len(position) > depth else 0)


def end_of(scope: Path) -> Path:
    """Return the last position of a scope."""
    return (*scope, END)
