"""Cutting what a model is called with into pieces by rows, and joining what it returns for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .data.batch import convert_parts
from .data.weights import are_of_one_kind, form_of, possible_counts
from .errors import DataError

Range = tuple[int, int]


class CannotBeCut(DataError):
    """What a model takes, or returns, has no rows by which to cut or join it."""


def rows_of(given: Any) -> int:
    """Return the number of rows that all tensors in ``given`` have.

    Raises:
        CannotBeCut: They have other numbers, or there is none.
    """
    found: list[frozenset[int]] = []
    _count(given, found)
    counts = frozenset.intersection(*found) if found else frozenset()
    if len(counts) != 1:
        told = " or ".join(map(str, sorted(frozenset().union(*found)))) or "no"
        raise CannotBeCut(f"the model is called with {form_of(given, 4)}, and has {told} rows")
    return next(iter(counts))


def _count(part: Any, found: list[frozenset[int]]) -> Any:
    if isinstance(part, Tensor):
        if part.is_nested or part.layout is not torch.strided:
            raise CannotBeCut(f"a tensor of layout {part.layout} has no rows to cut by")
        if part.ndim:
            found.append(frozenset(part.shape[:1]))
    elif _may_list_samples(part):
        counts = possible_counts(part)
        if len(counts) == 1 and possible_counts(part[0]) == counts:
            raise CannotBeCut(f"{form_of(part)} can be a sample an element, and can be fields")
        found.append(counts)
    elif isinstance(part, (Mapping, list, tuple)) or is_dataclass(part):
        convert_parts(part, lambda inner: _count(inner, found))
    elif not isinstance(part, (int, float, str, bool, type(None))):
        raise CannotBeCut(f"nobody knows how to cut a {type(part).__name__}")
    return part


def cut(given: Any, piece: Range) -> Any:
    """Return the rows of one piece, of what ``rows_of`` has counted."""
    return _cut(given, slice(*piece), rows_of(given))


def _cut(part: Any, piece: slice, rows: int) -> Any:
    if isinstance(part, Tensor):
        return part[piece] if part.ndim else part
    if _may_list_samples(part) and len(part) == rows:
        return part[piece]
    return convert_parts(part, lambda inner: _cut(inner, piece, rows))


def ranges(rows: int, most: int) -> list[Range]:
    """Cut ``rows`` into as few pieces of at most ``most`` as will do, as alike as can be."""
    count = math.ceil(rows / most)
    ends = [rows * index // count for index in range(count + 1)]
    return list(pairwise(ends))


class Joined:
    """What a model has returned for each piece, as one.

    Args:
        outs: Of each piece.
        pieces: Their rows.
        shares: How much of the whole the mean over each of them is, as numbers or tensors.

    Attributes:
        leaves: The tensors in it: with all rows; and the means of what is a mean in each piece.

    Raises:
        CannotBeCut: A part has neither rows nor is a number.
    """

    def __init__(
        self, outs: Sequence[Any], pieces: Sequence[Range], shares: Callable[[], Sequence[Any]]
    ) -> None:
        self._pieces = pieces
        self._form = outs[0]
        found = [leaves_of(out) for out in outs]
        if len({len(each) for each in found}) != 1:
            raise CannotBeCut("the model returns other parts for one piece than for another")
        columns: list[tuple[Tensor, ...]] = list(zip(*found, strict=True))
        self._is_mean = [not column[0].ndim for column in columns]
        self._shares = shares() if any(self._is_mean) else ()
        self.leaves = [
            self._mean(column) if is_mean else self._whole(column)
            for column, is_mean in zip(columns, self._is_mean, strict=True)
        ]

    def _whole(self, column: Sequence[Tensor]) -> Tensor:
        for part, (first, end) in zip(column, self._pieces, strict=True):
            if not part.ndim or part.shape[0] != end - first:
                raise CannotBeCut(
                    f"for {end - first} rows the model returns a part of {form_of(part)}, which "
                    "has no row for each of them"
                )
        return torch.cat(list(column))

    def _mean(self, column: Sequence[Tensor]) -> Tensor:
        parts = [
            torch.where(_like(share, part) == 0, 0.0, part * _like(share, part))
            for part, share in zip(column, self._shares, strict=True)
        ]
        return torch.stack(parts).sum(0).to(column[0].dtype)

    def with_leaves(self, leaves: Sequence[Tensor]) -> Any:
        """Return what the model would have returned for the whole, made of ``leaves``."""
        return with_leaves(self._form, leaves)

    def part_of(self, gradients: Sequence[Tensor | None], index: int) -> list[Tensor | None]:
        """Return the gradients of one piece's leaves, of those of the whole."""
        return [
            None
            if gradient is None
            else gradient * _like(self._shares[index], gradient)
            if is_mean
            else gradient[slice(*self._pieces[index])]
            for gradient, is_mean in zip(gradients, self._is_mean, strict=True)
        ]


def leaves_of(out: Any) -> list[Tensor]:
    """Return the tensors in what a model returns, in order."""
    found: list[Tensor] = []
    _collect(out, found)
    return found


# No functions that call themselves by a closure: that is a circle, which would hold on to tensors.
def _collect(part: Any, found: list[Tensor]) -> Any:
    if isinstance(part, Tensor):
        found.append(part)
        return part
    return convert_parts(part, lambda inner: _collect(inner, found))


def with_leaves(form: Any, leaves: Sequence[Tensor]) -> Any:
    """Return what a model returns with other tensors in the places of its own."""
    return _put(form, iter(leaves))


def _put(part: Any, rest: Iterator[Tensor]) -> Any:
    if isinstance(part, Tensor):
        return next(rest)
    return convert_parts(part, lambda inner: _put(inner, rest))


def _like(share: Any, part: Tensor) -> Tensor:
    here: Tensor = share if isinstance(share, Tensor) else part.new_full((), share)
    return here.to(part.device, part.dtype)


def _may_list_samples(part: Any) -> bool:
    """Whether it can have a sample an element, as detectors take them."""
    return isinstance(part, list) and len(part) > 0 and are_of_one_kind(part)
