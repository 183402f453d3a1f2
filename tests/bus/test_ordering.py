from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import assume, given, settings, strategies as st

from eventtrain import EventBus
from eventtrain.bus.ordering import in_order, require_names, require_no_cycle
from eventtrain.errors import OrderError

PRIORITIES = st.one_of(st.integers(-3, 3), st.sampled_from([float("inf"), float("-inf"), 0.5]))


@dataclass(eq=False)
class Item:
    name: str
    priority: float = 0
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


def names(items: list[Item]) -> list[str]:
    return [item.name for item in in_order(items, "after_loss")]


@st.composite
def constrained(draw: st.DrawFn) -> list[Item]:
    """Handlers with distinct names whose constraints all agree with one hidden order."""
    n = draw(st.integers(1, 9))
    items = [Item(f"h{i}", draw(PRIORITIES)) for i in range(n)]
    hidden = draw(st.permutations(items))
    for _ in range(draw(st.integers(0, 8))):
        i, j = draw(st.integers(0, n - 1)), draw(st.integers(0, n - 1))
        if i == j:
            continue
        first, second = hidden[min(i, j)], hidden[max(i, j)]
        if draw(st.booleans()):
            first.before = (*first.before, second.name)
        else:
            second.after = (*second.after, first.name)
    return items


def taking_part(items: list[Item]) -> set[str]:
    """Names of the handlers that name one or are named."""
    found: set[str] = set()
    for item in items:
        if item.before or item.after:
            found |= {item.name, *item.before, *item.after}
    return found


def test_no_handlers_have_an_order() -> None:
    assert in_order([], "after_loss") == []


def test_higher_priority_comes_first_and_ties_keep_their_order() -> None:
    assert names([Item("a"), Item("b", 1), Item("c"), Item("d", -1), Item("e", 1)]) == list("beacd")


def test_an_int_too_large_for_a_float_is_compared_exactly() -> None:
    assert names([Item("a", 10**400), Item("b", float("inf")), Item("c", 10**400 + 1)]) == list(
        "bca"
    )


def test_a_handler_moves_next_to_the_one_it_must_precede() -> None:
    items = [Item("x", 20), Item("a", 10), Item("y", 5), Item("h", 0, before=("a",))]
    assert names(items) == ["x", "h", "a", "y"]


def test_a_handler_moves_next_to_the_one_it_must_follow() -> None:
    items = [Item("x", 20, after=("a",)), Item("a", 0), Item("y", 5), Item("z", -5)]
    assert names(items) == ["y", "a", "x", "z"]


def test_a_handler_on_the_right_side_already_stays_where_its_priority_puts_it() -> None:
    items = [Item("h", 20, before=("a",)), Item("y", 5), Item("a", 0)]
    assert names(items) == ["h", "y", "a"]


def test_a_handler_follows_one_that_moved_itself() -> None:
    items = [
        Item("c", 30, after=("b",)),
        Item("b", 20, after=("a",)),
        Item("x", 5),
        Item("a", 0),
        Item("y", -5),
    ]
    assert names(items) == ["x", "a", "b", "c", "y"]


def test_several_that_move_next_to_one_keep_their_order_by_priority() -> None:
    items = [Item("p", 1, after=("a",)), Item("q", 2, after=("a",)), Item("a", 0)]
    assert names(items) == ["a", "q", "p"]


def test_a_handler_between_two_that_stand_the_wrong_way_turns_them_round() -> None:
    items = [Item("b", 10), Item("a", 0), Item("h", 5, after=("a",), before=("b",))]
    assert names(items) == ["a", "h", "b"]


def test_two_that_name_each_other_and_agree_are_no_cycle() -> None:
    items = [Item("b", 10, after=("a",)), Item("a", 0, before=("b",))]
    assert names(items) == ["a", "b"]


def test_a_name_that_nobody_bears_is_ignored() -> None:
    assert names([Item("a", 0, before=("gone",)), Item("b", 1)]) == ["b", "a"]


def test_a_handler_does_not_constrain_itself_by_its_own_name() -> None:
    items = [Item("a", 1, after=("a",)), Item("b", 0)]
    assert names(items) == ["a", "b"]


def test_two_of_one_name_that_both_want_to_be_first_are_a_cycle() -> None:
    with pytest.raises(OrderError, match="'a' before 'a'"):
        names([Item("a", before=("a",)), Item("a", before=("a",))])


@pytest.mark.parametrize("backward", [False, True])
def test_a_chain_may_be_longer_than_pythons_stack(backward: bool) -> None:
    n = 1500
    items = [Item(f"h{i}", i, after=(f"h{i - 1}",) if i else ()) for i in range(n)]
    given = items[::-1] if backward else items
    assert in_order(given, "after_loss") == items


def test_the_message_of_a_cycle_prints_the_way_round_and_nothing_else() -> None:
    items = [
        Item("x", before=("a",)),
        Item("a", before=("b",)),
        Item("b", before=("c",)),
        Item("c", before=("a", "y")),
        Item("y"),
    ]
    with pytest.raises(OrderError) as caught:
        names(items)
    assert "contradicts itself: 'a' before 'b' before 'c' before 'a'." in str(caught.value)


def test_require_names_accepts_a_name_that_another_bears() -> None:
    new = Item("a", before=("b",))
    require_names([new], [Item("b"), new], "after_loss")


def test_require_names_prints_the_names_there_are() -> None:
    new = Item("a", after=("clap",))
    with pytest.raises(OrderError, match=r"'a' of event 'e' names 'clap'.*'clip', 'z'.*'clip'\?"):
        require_names([new], [Item("z"), Item("clip"), new], "e")


def test_require_names_looks_at_the_new_handlers_only() -> None:
    old = Item("old", after=("gone",))
    require_names([Item("new")], [old], "after_loss")


@given(st.lists(PRIORITIES, max_size=12))
def test_without_constraints_the_order_is_the_stable_sort(priorities: list[float]) -> None:
    items = [Item(f"h{i}", priority) for i, priority in enumerate(priorities)]
    assert in_order(items, "e") == sorted(items, key=lambda item: -item.priority)


@settings(max_examples=600)
@given(constrained())
def test_the_result_holds_every_handler_once(items: list[Item]) -> None:
    result = in_order(items, "e")
    assert len(result) == len(items)
    assert set(result) == set(items)


@settings(max_examples=600)
@given(constrained())
def test_the_result_satisfies_every_constraint(items: list[Item]) -> None:
    order = names(items)
    for item in items:
        for other in item.before:
            assert order.index(item.name) < order.index(other)
        for other in item.after:
            assert order.index(other) < order.index(item.name)


@settings(max_examples=600)
@given(constrained())
def test_handlers_without_a_part_in_any_constraint_keep_their_order(items: list[Item]) -> None:
    part = taking_part(items)
    expected = [item.name for item in sorted(items, key=lambda item: -item.priority)]
    assert [n for n in names(items) if n not in part] == [n for n in expected if n not in part]


@settings(max_examples=400)
@given(constrained())
def test_constraints_that_priority_satisfies_already_change_nothing(items: list[Item]) -> None:
    plain = sorted(items, key=lambda item: -item.priority)
    place = {item.name: i for i, item in enumerate(plain)}
    for item in items:
        item.before = tuple(name for name in item.before if place[item.name] < place[name])
        item.after = tuple(name for name in item.after if place[name] < place[item.name])
    assert in_order(items, "e") == plain


@settings(max_examples=400)
@given(st.lists(PRIORITIES, min_size=2, max_size=8), st.data())
def test_one_handler_with_one_constraint_is_all_that_moves(
    priorities: list[float], data: st.DataObject
) -> None:
    items = [Item(f"h{i}", priority) for i, priority in enumerate(priorities)]
    mover, target = data.draw(st.permutations(items))[:2]
    before = data.draw(st.booleans())
    plain = sorted(items, key=lambda item: -item.priority)
    if before:
        mover.before = (target.name,)
        wrong = plain.index(mover) > plain.index(target)
    else:
        mover.after = (target.name,)
        wrong = plain.index(mover) < plain.index(target)
    if wrong:
        plain.remove(mover)
        plain.insert(plain.index(target) + (not before), mover)
    assert in_order(items, "e") == plain


@settings(max_examples=400)
@given(constrained(), st.data())
def test_a_cycle_raises_and_names_handlers_that_lie_on_it(
    items: list[Item], data: st.DataObject
) -> None:
    assume(len(items) >= 2)
    ring = data.draw(st.permutations(items))[: data.draw(st.integers(2, len(items)))]
    for first, second in zip(ring, [*ring[1:], ring[0]], strict=True):
        if data.draw(st.booleans()):
            first.before = (*first.before, second.name)
        else:
            second.after = (*second.after, first.name)
    with pytest.raises(OrderError) as caught:
        in_order(items, "e")
    chain = re.findall(r"'(h\d+)'", str(caught.value))
    by_name = {item.name: item for item in items}
    assert len(chain) >= 3
    assert chain[0] == chain[-1]
    for first, second in pairwise(chain):
        assert second in by_name[first].before or first in by_name[second].after


# The order of the first version, which scanned all handlers for every name


def plain_in_order(handlers: Sequence[Item], event: str) -> list[Item]:
    if not any(handler.before or handler.after for handler in handlers):
        return sorted(handlers, key=lambda handler: -handler.priority)
    predecessors = plain_predecessors(handlers)
    positions = plain_positions(handlers)
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
        raise OrderError(plain_cycle_message(handlers, predecessors, waiting, event))
    return [handlers[index] for index in result]


def plain_named(handlers: Sequence[Item], names: tuple[str, ...], asking: int) -> list[int]:
    return [i for i, other in enumerate(handlers) if other.name in names and i != asking]


def plain_predecessors(handlers: Sequence[Item]) -> list[set[int]]:
    """For each handler the indices of those that must run before it."""
    result: list[set[int]] = [set() for _ in handlers]
    for index, handler in enumerate(handlers):
        result[index].update(plain_named(handlers, handler.after, index))
        for other in plain_named(handlers, handler.before, index):
            result[other].add(index)
    return result


def plain_positions(handlers: Sequence[Item]) -> list[tuple[float, ...]]:
    """Where each handler wants to stand: by its priority, or next to one that it names."""
    own: list[tuple[float, ...]] = [(-handler.priority, i, 0) for i, handler in enumerate(handlers)]
    after = [plain_named(handlers, handler.after, i) for i, handler in enumerate(handlers)]
    before = [plain_named(handlers, handler.before, i) for i, handler in enumerate(handlers)]
    found: dict[int, tuple[float, ...]] = {}

    def position(index: int) -> tuple[float, ...]:
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


def plain_cycle_message(
    handlers: Sequence[Item], predecessors: list[set[int]], waiting: list[int], event: str
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


@st.composite
def arbitrary(draw: st.DrawFn) -> list[Item]:
    """Handlers that may share names, name nobody, name themselves and contradict each other."""
    name = st.sampled_from("abcdefgh"[: draw(st.integers(2, 8))])
    named = st.lists(name, max_size=draw(st.integers(0, 2))).map(tuple)
    return draw(st.lists(st.builds(Item, name, PRIORITIES, named, named), max_size=9))


def outcome(sort: Callable[[], object]) -> object:
    try:
        return sort()
    except OrderError as error:
        return str(error)


@settings(max_examples=600)
@given(st.one_of(arbitrary(), constrained()))
def test_order_and_message_are_those_of_the_first_version(items: list[Item]) -> None:
    assert outcome(lambda: in_order(items, "e")) == outcome(lambda: plain_in_order(items, "e"))


@settings(max_examples=400)
@given(arbitrary(), st.integers(1, 3))
def test_the_check_of_new_handlers_finds_the_cycles_that_sorting_all_finds(
    items: list[Item], at_once: int
) -> None:
    standing: list[Item] = []
    for start in range(0, len(items), at_once):
        new = items[start : start + at_once]
        together = [*plain_in_order(standing, "e"), *new]
        expected = outcome(partial(plain_in_order, together, "e"))
        found = outcome(partial(require_no_cycle, new, standing, "e"))
        if isinstance(expected, str):
            assert found == expected
        else:
            assert found is None
            standing += new


# What it costs


class Counted(Item):
    """Counts how often the sort looks at one of its attributes."""

    reads = 0

    def __getattribute__(self, name: str) -> Any:
        Counted.reads += 1
        return super().__getattribute__(name)


def reads(function: Callable[[], object]) -> int:
    before = Counted.reads
    function()
    return Counted.reads - before


def followers(n: int) -> list[Item]:
    return [Counted(f"h{i}", i, after=(f"h{i - 1}",) if i else ()) for i in range(n)]


def forerunners(n: int) -> list[Item]:
    return [Counted(f"h{i}", before=(f"h{i - 1}",) if i else ()) for i in range(n)]


def followers_of_one(n: int) -> list[Item]:
    return [Counted(f"h{i}", i, after=("h0",) if i else ()) for i in range(n)]


def a_follower_of_all(n: int) -> list[Item]:
    return [*(Counted(f"h{i}") for i in range(n - 1)), Counted("last", 1, after=names_of(n - 1))]


def names_of(n: int) -> tuple[str, ...]:
    return tuple(f"h{i}" for i in range(n))


SHAPES = pytest.mark.parametrize(
    "shape", [followers, forerunners, followers_of_one, a_follower_of_all]
)


@SHAPES
def test_twice_as_many_handlers_are_looked_at_twice_as_often(
    shape: Callable[[int], list[Item]],
) -> None:
    once, twice = (reads(partial(in_order, shape(n), "e")) for n in (100, 200))
    assert twice <= 2.1 * once


@SHAPES
def test_to_check_the_names_of_new_handlers_each_handler_is_looked_at_a_few_times(
    shape: Callable[[int], list[Item]],
) -> None:
    items = shape(200)
    assert reads(lambda: require_names(items, items, "e")) <= 10 * len(items)


@SHAPES
def test_to_check_a_new_handler_for_cycles_each_other_is_looked_at_a_few_times(
    shape: Callable[[int], list[Item]],
) -> None:
    *standing, new = shape(200)
    assert reads(lambda: require_no_cycle([new], standing, "e")) <= 10 * len(standing)


def test_to_check_a_new_handler_between_two_others_costs_little_more() -> None:
    items = [Counted("first"), *forerunners(200)]
    new = Counted("new", after=("first",), before=("h199",))
    assert reads(lambda: require_no_cycle([new], items, "e")) <= 10 * len(items)


def test_subscribing_sorts_nothing_until_an_emission_asks_for_the_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sort = Mock(side_effect=in_order)
    monkeypatch.setattr("eventtrain.bus.connections.in_order", sort)
    bus, calls = EventBus(), []
    for name, after in [("a", ()), ("b", "a"), ("c", "b")]:
        bus.on("after_loss", calls.append, name=name, after=after)
    bus["after_loss"].connect(calls.append, weak=False)
    assert sort.call_count == 0
    bus.emit("after_loss", "x")
    assert sort.call_count == 1
    assert calls == ["x"] * 4
