"""The order in which handlers of one event run.

Higher priority first, ties in order of subscription. A handler that declares
``before=``/``after=`` moves next to the handler it names when its priority puts
it on the wrong side; the handler it names stays where it is.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Protocol, TypeVar

from ..errors import OrderError, did_you_mean

SortKey = tuple[float, ...]
"""Handlers run in order of their keys, as far as the constraints let them. The key of one
that moves next to another extends that one's own."""


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
    bearers = _bearers(handlers)
    before = [_named(bearers, handler.before, i) for i, handler in enumerate(handlers)]
    after = [_named(bearers, handler.after, i) for i, handler in enumerate(handlers)]
    predecessors = _predecessors(before, after)
    sorter = TopologicalSorter(predecessors)
    try:
        sorter.prepare()
    except CycleError:
        raise OrderError(_cycle_message(handlers, predecessors, sorter, event)) from None
    keys = _sort_keys(handlers, before, after)
    ready: list[tuple[SortKey, int]] = []
    result: list[T] = []
    while sorter.is_active():
        for index in sorter.get_ready():
            heapq.heappush(ready, (keys[index], index))
        _, index = heapq.heappop(ready)
        result.append(handlers[index])
        sorter.done(index)
    return result


def require_names(new: Sequence[T], handlers: Sequence[T], event: str) -> None:
    """Check that every name in the constraints of ``new`` is borne by another handler.

    Raises:
        OrderError: A name is unknown; the message lists the names there are.
    """
    if not any(handler.before or handler.after for handler in new):
        return
    bearers = _bearers(handlers)
    for handler in new:
        for name in (*handler.before, *handler.after):
            if all(handlers[index] is handler for index in bearers.get(name, ())):
                others = sorted({other.name for other in handlers if other is not handler})
                known = ", ".join(map(repr, others)) if others else "none"
                raise OrderError(
                    f"handler {handler.name!r} of event {event!r} names {name!r} in before= or "
                    f"after=, but no other handler of that event has that name (there are: "
                    f"{known}).{did_you_mean(name, others)} Subscribe it first, or subscribe "
                    f"it with {'after' if name in handler.before else 'before'}={handler.name!r}.",
                    missing=name,
                )


def require_no_cycle(new: Sequence[T], standing: Sequence[T], event: str) -> None:
    """Check that ``new`` close no cycle in the constraints, where ``standing`` have none.

    Cheaper than ``in_order``: most new handlers cannot, and then nothing is sorted.

    Args:
        new: The handlers that are to be subscribed.
        standing: Those that are, in order of subscription.
        event: The event's name, for the error message.

    Raises:
        OrderError: There is a cycle; the message prints it.
    """
    if _closes_cycle(new, standing):
        # Raises, with the message that follows from the order until now.
        in_order([*in_order(standing, event), *new], event)


def _closes_cycle(new: Sequence[T], standing: Sequence[T]) -> bool:
    handlers = [*standing, *new]
    # A cycle leads through new handlers: it comes to them from others and goes on to others.
    names = {handler.name for handler in new}
    goes_on = any(h.before for h in new) or any(not names.isdisjoint(h.after) for h in handlers)
    comes_in = any(h.after for h in new) or any(not names.isdisjoint(h.before) for h in handlers)
    if not (goes_on and comes_in):
        return False
    bearers = _bearers(handlers)
    followers: dict[str, list[int]] = defaultdict(list)
    for index, handler in enumerate(handlers):
        for name in handler.after:
            followers[name].append(index)
    successors: dict[int, set[int]] = {}
    reached = list(range(len(standing), len(handlers)))
    while reached:
        index = reached.pop()
        if index not in successors:
            handler = handlers[index]
            named = _named(bearers, handler.before, index)
            successors[index] = {*named, *followers.get(handler.name, ())} - {index}
            reached.extend(successors[index])
    try:
        TopologicalSorter(successors).prepare()  # a cycle is one in either direction
    except CycleError:
        return True
    return False


def _bearers(handlers: Sequence[T]) -> Mapping[str, Sequence[int]]:
    """For each name the indices of the handlers that bear it, in their order."""
    result: dict[str, list[int]] = defaultdict(list)
    for index, handler in enumerate(handlers):
        result[handler.name].append(index)
    return result


def _named(bearers: Mapping[str, Sequence[int]], names: tuple[str, ...], asking: int) -> list[int]:
    return sorted({i for name in names for i in bearers.get(name, ()) if i != asking})


def _predecessors(before: list[list[int]], after: list[list[int]]) -> dict[int, set[int]]:
    """For each handler those that must run before it, from those that each one names."""
    result = {index: set(named) for index, named in enumerate(after)}
    for index, named in enumerate(before):
        for other in named:
            result[other].add(index)
    return result


def _sort_keys(
    handlers: Sequence[T], before: list[list[int]], after: list[list[int]]
) -> list[SortKey]:
    """Where each handler wants to stand: by its priority, or next to one that it names."""
    own: list[SortKey] = [(-handler.priority, i, 0) for i, handler in enumerate(handlers)]
    found: dict[int, SortKey] = {}

    def sort_key(index: int) -> SortKey:
        # One without a key yet is one that names this one back, itself or through others.
        lowest = max((found.get(i, own[i]) for i in after[index]), default=own[index])
        highest = min((found.get(i, own[i]) for i in before[index]), default=own[index])
        if own[index] < lowest:
            return (*lowest[:-1], 1, *own[index])
        if own[index] > highest:
            return (*highest[:-1], -1, *own[index])
        return own[index]

    for start in range(len(handlers)):
        # No recursion: a chain of names may be longer than Python's stack.
        path = {} if start in found else {start: iter((*after[start], *before[start]))}
        while path:
            index, named = next(reversed(path.items()))
            missing = next((i for i in named if i not in found and i not in path), None)
            if missing is not None:
                path[missing] = iter((*after[missing], *before[missing]))
            else:
                found[index] = sort_key(index)
                del path[index]
    return [found[index] for index in range(len(handlers))]


def _cycle_message(
    handlers: Sequence[T],
    predecessors: Mapping[int, set[int]],
    sorter: TopologicalSorter[int],
    event: str,
) -> str:
    stuck = set(predecessors)
    while ready := sorter.get_ready():
        stuck.difference_update(ready)
        sorter.done(*ready)
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
