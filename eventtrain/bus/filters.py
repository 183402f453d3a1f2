"""Filters: functions around a handler's, which let some of the calls through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Detachable(Protocol):
    """A handler, as far as those that it counts with know it."""

    detach: Callable[[], None]


class Tally:
    """What the handlers of one subscription count together.

    Attributes:
        handlers: Those of them that are subscribed.
        left: How many calls that ``during`` and ``when`` let through remain until
            ``every`` lets one through; it counts down.
        is_spent: Whether ``once`` has had its call.
    """

    __slots__ = ("handlers", "is_spent", "left")

    def __init__(self, every: int = 1) -> None:
        self.handlers: list[Detachable] = []
        self.left = every
        self.is_spent = False

    def __getstate__(self) -> dict[str, Any]:
        # A copy counts for handlers of its own.
        return {"left": self.left, "is_spent": self.is_spent}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.handlers, self.left, self.is_spent = [], state["left"], state["is_spent"]

    def detach(self) -> None:
        """Take all of them off their signals."""
        for handler in list(self.handlers):
            handler.detach()


# One small function a filter: a call that is filtered out costs little more than the call.


def during(call: Callable[[Any], object], phase: str) -> Callable[[Any], object]:
    """Let the calls of one phase through."""

    def filtered(sender: Any) -> object:
        return call(sender) if sender.phase == phase else None

    return filtered


def when(
    call: Callable[[Any], object], predicate: Callable[[Any], object]
) -> Callable[[Any], object]:
    """Let the calls through for which ``predicate`` is true."""

    def filtered(sender: object) -> object:
        return call(sender) if predicate(sender) else None

    return filtered


def every(call: Callable[[Any], object], n: int, tally: Tally) -> Callable[[Any], object]:
    """Let every ``n``-th call through."""

    def filtered(sender: object) -> object:
        tally.left = left = tally.left - 1
        if left:
            return None
        tally.left = n
        return call(sender)

    return filtered


def once(call: Callable[[Any], object], tally: Tally) -> Callable[[Any], object]:
    """Let the first call through, and take the handler off with it."""

    def filtered(sender: object) -> object:
        if tally.is_spent:  # an emission that began before it left
            return None
        tally.is_spent = True
        tally.detach()
        return call(sender)

    return filtered
