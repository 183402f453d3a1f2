"""Cutting what a model takes by rows, and joining what it returns, against slices by hand."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from eventtrain.pieces import CannotBeCut, Joined, cut, leaves_of, ranges, rows_of, with_leaves

Pair = namedtuple("Pair", "one other")


@dataclass
class Out:
    logits: torch.Tensor
    loss: torch.Tensor | None


x = torch.arange(12.0).view(6, 2)


@pytest.mark.parametrize(
    "given",
    [
        x,
        [x, None],
        ([torch.ones(3, 2) for _ in range(6)], x),
        ([x, x], x),
        (x, None),
        {"a": x, "b": torch.ones(6), "n": 3},
        Pair(x, x[:, 0]),
        [torch.ones(i, 2) for i in range(6)],
    ],
)
def test_rows_are_what_all_tensors_have_in_common(given: Any) -> None:
    assert rows_of(given) == 6
    assert rows_of(cut(given, (1, 5))) == 4


@pytest.mark.parametrize(
    "given",
    [torch.ones(()), (x, torch.ones(5)), "text", (), {"a": object()}, x.to_sparse(), [x, x]],
)
def test_what_has_no_rows_is_an_error(given: Any) -> None:
    with pytest.raises(CannotBeCut):
        rows_of(given)


@pytest.mark.parametrize(
    ("rows", "most", "expected"),
    [(6, 3, [3, 3]), (7, 3, [2, 2, 3]), (8, 3, [2, 3, 3]), (5, 9, [5]), (3, 1, [1, 1, 1])],
)
def test_pieces_are_as_few_and_as_alike_as_can_be(
    rows: int, most: int, expected: list[int]
) -> None:
    pieces = ranges(rows, most)
    assert [end - first for first, end in pieces] == expected
    assert pieces[0][0] == 0 and pieces[-1][1] == rows


@pytest.mark.parametrize(
    "out", [x, {"a": x, "b": [x * 2, x * 3]}, (x, None), Out(x, None), Pair(x, x)]
)
def test_what_is_cut_and_joined_is_the_whole(out: Any) -> None:
    pieces = ranges(6, 2)
    joined = Joined([_each(out, piece) for piece in pieces], pieces, lambda: [1 / 3] * 3)
    whole = joined.with_leaves(joined.leaves)
    assert type(whole) is type(out)
    for one, other in zip(leaves_of(whole), leaves_of(out), strict=True):
        assert torch.equal(one, other)


def _each(out: Any, piece: tuple[int, int]) -> Any:
    return with_leaves(out, [leaf[slice(*piece)] for leaf in leaves_of(out)])


def test_means_are_weighted_and_those_of_nothing_count_for_nothing() -> None:
    outs = [{"loss": torch.tensor(value)} for value in (1.0, float("nan"), 5.0)]
    joined = Joined(outs, ranges(6, 2), lambda: [0.25, 0.0, torch.tensor(0.75)])
    assert joined.leaves[0] == 0.25 + 3.75


def test_gradients_of_the_whole_are_given_to_the_pieces() -> None:
    outs = [{"loss": torch.tensor(1.0), "x": x[:2]}, {"loss": torch.tensor(3.0), "x": x[2:]}]
    joined = Joined(outs, [(0, 2), (2, 6)], lambda: [0.25, 0.75])
    loss, rows = joined.part_of([torch.tensor(2.0), x], 1)
    assert loss == 1.5
    assert rows is not None
    assert torch.equal(rows, x[2:])
    assert joined.part_of([None, None], 0) == [None, None]


@pytest.mark.parametrize("outs", [[x.T, x.T], [x[:3], {"a": x[3:], "b": x[3:]}]])
def test_what_cannot_be_joined_is_an_error(outs: Any) -> None:
    with pytest.raises(CannotBeCut):
        Joined(outs, [(0, 3), (3, 6)], lambda: [0.5, 0.5])
