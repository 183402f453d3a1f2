"""The order in which handlers of one event run.

Higher priority first, ties in order of subscription. A handler that declares
``before=``/``after=`` moves next to the handler it names when its priority puts
it on the wrong side; the handler it names stays where it is.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Protocol, TypeVar

from .errors import OrderError, did_you_mean

Position = tuple[float, ...]
"""A sort key. Positions next to a handler extend that handler's own."""


class Ordered(Protocol):
    """What the order is computed from."""

    name: str
    priority: float
    before: tuple[str, ...]
    after: tuple[str, ...]


T = TypeVar("T", bound=Ordered)


def in_order(handlers: Sequence[T], event: str) -> list[T]:
    """Sort handlers, given in order of subscription, into the order of dispatch.

    Names that nobody bears are ignored here: a handler may have left since
    (see ``require_names``).

    Args:
        handlers: The handlers of one event, in order of subscription.
        event: The event's name, for the error message.

    Returns:
        The same handlers in the order in which they run.

    Raises:
        OrderError: The constraints form a cycle; the message prints it.
    """
    if not any(handler.before or handler.after for handler in handlers):
        return sorted(handlers, key=lambda handler: -handler.priority)
    predecessors = _predecessors(handlers)
    positions = _Positions(handlers).all()
    successors: list[list[int]] = [[] for _ in handlers]
    waiting = [len(before) for before in predecessors]
    for index, before in enumerate(predecessors):
        for other in before:
            successors[other].append(index)
    ready = [(positions[i], i) for i, count in enumerate(waiting) if not count]
    heapq.heapify(ready)
    result: list[int] = []
    while ready:
        _, index = heapq.heappop(ready)
        result.append(index)
        for successor in successors[index]:
            waiting[successor] -= 1
            if not waiting[successor]:
                heapq.heappush(ready, (positions[successor], successor))
    if len(result) < len(handlers):
        raise OrderError(_cycle_message(handlers, predecessors, waiting, event))
    return [handlers[index] for index in result]


def require_names(new: Sequence[T], handlers: Sequence[T], event: str) -> None:
    """Check that every name in the constraints of ``new`` is borne by another handler.

    Raises:
        OrderError: A name is unknown; the message lists the names there are.
    """
    for handler in new:
        others = sorted({other.name for other in handlers if other is not handler})
        for name in (*handler.before, *handler.after):
            if name not in others:
                known = ", ".join(map(repr, others)) if others else "none"
                raise OrderError(
                    f"handler {handler.name!r} of event {event!r} names {name!r} in before= or "
                    f"after=, but no other handler of that event has that name (there are: "
                    f"{known}).{did_you_mean(name, others)}"
                )


def _named(handlers: Sequence[T], names: tuple[str, ...], asking: int) -> list[int]:
    return [i for i, other in enumerate(handlers) if other.name in names and i != asking]


def _predecessors(handlers: Sequence[T]) -> list[set[int]]:
    """For each handler the indices of those that must run before it."""
    result: list[set[int]] = [set() for _ in handlers]
    for index, handler in enumerate(handlers):
        result[index].update(_named(handlers, handler.after, index))
        for other in _named(handlers, handler.before, index):
            result[other].add(index)
    return result


class _Positions:
    """Computes where each handler wants to stand."""

    def __init__(self, handlers: Sequence[Ordered]) -> None:
        self.handlers = handlers
        self.found: dict[int, Position] = {}
        self.visiting: set[int] = set()

    def all(self) -> list[Position]:
        return [self.of(index) for index in range(len(self.handlers))]

    def of(self, index: int) -> Position:
        if index in self.found:
            return self.found[index]
        handler = self.handlers[index]
        own: Position = (-handler.priority, index, 0)
        if index in self.visiting:
            # Two handlers name each other; in_order() reports it if they disagree.
            return own
        self.visiting.add(index)
        lowest = max((self.of(i) for i in _named(self.handlers, handler.after, index)), default=own)
        highest = min(
            (self.of(i) for i in _named(self.handlers, handler.before, index)), default=own
        )
        self.visiting.discard(index)
        position = own
        if position < lowest:
            position = (*lowest[:-1], 1, *own)
        elif position > highest:
            position = (*highest[:-1], -1, *own)
        self.found[index] = position
        return position


def _cycle_message(
    handlers: Sequence[T], predecessors: list[set[int]], waiting: list[int], event: str
) -> str:
    stuck = {index for index, count in enumerate(waiting) if count}
    path = [min(stuck)]
    while True:
        step = min(predecessors[path[-1]] & stuck)
        if step in path:
            path = [*path[path.index(step) :], step]
            break
        path.append(step)
    chain = " before ".join(repr(handlers[index].name) for index in reversed(path))
    return (
        f"the order of the handlers of event {event!r} contradicts itself: {chain}. "
        "Drop one of these before= or after= constraints."
    )
