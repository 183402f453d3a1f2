from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings, strategies as st

from eventtrain.bus.ordering import in_order, require_names
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


@settings(max_examples=2000)
@given(constrained())
def test_the_result_holds_every_handler_once(items: list[Item]) -> None:
    result = in_order(items, "e")
    assert len(result) == len(items)
    assert set(result) == set(items)


@settings(max_examples=2000)
@given(constrained())
def test_the_result_satisfies_every_constraint(items: list[Item]) -> None:
    order = names(items)
    for item in items:
        for other in item.before:
            assert order.index(item.name) < order.index(other)
        for other in item.after:
            assert order.index(other) < order.index(item.name)


@settings(max_examples=2000)
@given(constrained())
def test_handlers_without_a_part_in_any_constraint_keep_their_order(items: list[Item]) -> None:
    part = taking_part(items)
    expected = [item.name for item in sorted(items, key=lambda item: -item.priority)]
    assert [n for n in names(items) if n not in part] == [n for n in expected if n not in part]


@settings(max_examples=1000)
@given(constrained())
def test_constraints_that_priority_satisfies_already_change_nothing(items: list[Item]) -> None:
    plain = sorted(items, key=lambda item: -item.priority)
    place = {item.name: i for i, item in enumerate(plain)}
    for item in items:
        item.before = tuple(name for name in item.before if place[item.name] < place[name])
        item.after = tuple(name for name in item.after if place[name] < place[item.name])
    assert in_order(items, "e") == plain


@settings(max_examples=1000)
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


@settings(max_examples=1000)
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
