"""The order in which handlers of one event run.

Higher priority first, ties in order of subscription. A handler that declares
``before=``/``after=`` moves next to the handler it names when its priority puts
it on the wrong side; the handler it names stays where it is.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Protocol, TypeVar

from ..errors import OrderError, did_you_mean

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
    positions = _positions(handlers)
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
                    f"{known}).{did_you_mean(name, others)}",
                    missing=name,
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


def _positions(handlers: Sequence[T]) -> list[Position]:
    """Where each handler wants to stand: by its priority, or next to one that it names."""
    own: list[Position] = [(-handler.priority, i, 0) for i, handler in enumerate(handlers)]
    after = [_named(handlers, handler.after, i) for i, handler in enumerate(handlers)]
    before = [_named(handlers, handler.before, i) for i, handler in enumerate(handlers)]
    found: dict[int, Position] = {}

    def position(index: int) -> Position:
        # One without a position yet is one that names this one back; in_order()
        # reports it if the two disagree.
        lowest = max((found.get(i, own[i]) for i in after[index]), default=own[index])
        highest = min((found.get(i, own[i]) for i in before[index]), default=own[index])
        if own[index] < lowest:
            return (*lowest[:-1], 1, *own[index])
        if own[index] > highest:
            return (*highest[:-1], -1, *own[index])
        return own[index]

    for start in range(len(handlers)):
        # No recursion: a chain of names may be longer than Python's stack.
        path = {} if start in found else {start: None}
        while path:
            index = next(reversed(path))
            named = (*after[index], *before[index])
            missing = next((i for i in named if i not in found and i not in path), None)
            if missing is not None:
                path[missing] = None
            else:
                found[index] = position(index)
                del path[index]
    return [found[index] for index in range(len(handlers))]


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
