"""Tokens that follow others, to any depth."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from eventtrain import CancellationToken, Learner, Runner
from eventtrain.cancellation import Scope


def test_a_child_of_a_child_follows(learner: Learner) -> None:
    root = CancellationToken()
    grandchild = CancellationToken.linked(CancellationToken.linked(root))
    run = Runner()
    run.on("after_loss", lambda run: root.cancel("fit", "from above"), once=True)
    result = run.fit(2, learner, token=grandchild)
    assert (result.outcome, result.reason) == ("cancelled", "from above")


def test_a_validation_alone_follows_too(learner: Learner) -> None:
    root, run = CancellationToken(), Runner()
    run.on("after_loss", lambda run: root.cancel("fit", "from above"), once=True)
    result = run.validate(learner, token=CancellationToken.linked(root))
    assert (result.outcome, result.reason) == ("cancelled", "from above")


def test_a_token_whose_run_has_ended_passes_on_what_it_hears(learner: Learner) -> None:
    root = CancellationToken()
    middle = CancellationToken.linked(root)
    leaf = CancellationToken.linked(middle)
    middle.finish()
    root.cancel("fit", "x")
    assert leaf.pending is not None


PARENTS = st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=3), min_size=1, max_size=12)


@given(PARENTS, st.integers(0, 12), st.integers(0, 12))
def test_exactly_the_tokens_below_follow_however_they_are_linked(
    parents: list[list[int]], asked: int, when: int
) -> None:
    tokens, above = [CancellationToken()], [{0}]
    asked %= len(parents) + 1
    when = max(when % (len(parents) + 1), asked)
    for number, chosen in enumerate(parents, 1):
        if number == when + 1 and asked < len(tokens):
            tokens[asked].cancel("fit", "x")
        indices = {index % number for index in chosen}
        tokens.append(CancellationToken.linked(*(tokens[index] for index in indices)))
        above.append({number}.union(*(above[index] for index in indices)))
    if when >= len(parents):
        tokens[asked].cancel("fit", "x")
    cancelled = {number for number, token in enumerate(tokens) if token.cancelled}
    assert cancelled == {number for number in range(len(tokens)) if asked in above[number]}


def test_two_ways_to_one_token_are_one_request() -> None:
    root = CancellationToken()
    left, right = CancellationToken.linked(root), CancellationToken.linked(root)
    leaf = CancellationToken.linked(left, right)
    root.cancel("fit", "x")
    assert len(leaf.history) == 1


def test_cancelling_a_child_leaves_those_above_alone() -> None:
    root = CancellationToken()
    middle = CancellationToken.linked(root)
    leaf = CancellationToken.linked(middle)
    leaf.cancel("fit", "x")
    assert not root.cancelled
    assert not middle.cancelled


@pytest.mark.parametrize("scope", ["epoch", "batch"])
def test_an_inner_scope_of_a_parent_is_the_parents_own(scope: str) -> None:
    root = CancellationToken()
    leaf = CancellationToken.linked(CancellationToken.linked(root))
    with Scope(root, "fit"), Scope(root, scope):
        root.cancel(scope, "x")
    assert not leaf.cancelled
