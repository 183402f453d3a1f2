"""Parts of a model that are called in pieces, each by itself, against their calls as a whole."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eventtrain.pieces import CannotBeCut
from eventtrain.split_call import Limit
from eventtrain.split_units import UnitCall, innermost_units, split_units


class Full:
    """Room for so many rows in the forward and the backward pass."""

    def __init__(self, forward: int = 99, backward: int = 99) -> None:
        self.forward, self.backward = forward, backward


class _Costly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, full: Full) -> Tensor:
        ctx.rows, ctx.full = len(x), full
        if len(x) > full.forward:
            raise torch.OutOfMemoryError("no room")
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        if ctx.rows > ctx.full.backward:
            raise torch.OutOfMemoryError("no room")
        return gradients[0], None


class Unit(nn.Module):
    def __init__(self, full: Full, dropout: float = 0.0, buffer: bool = False) -> None:
        super().__init__()
        self.full = full
        self.inner, self.outer = nn.Linear(6, 8), nn.Linear(8, 6)
        self.dropout = nn.Dropout(dropout)
        if buffer:
            self.register_buffer("mask", torch.ones(6))

    def forward(self, x: Tensor, other: Tensor | None = None, scale: float = 1.0) -> Tensor:
        inner = _Costly.apply(self.dropout(self.inner(x)).tanh(), self.full)
        more = 0 if other is None else other
        return x + scale * self.outer(inner) + more  # type: ignore[no-any-return]


def unit(full: Full | None = None, **options: Any) -> Unit:
    torch.manual_seed(0)
    return Unit(full or Full(), **options).double()


def called(made: Unit, rows: int | None = None) -> UnitCall:
    limit = Limit(lambda rows: None)
    limit.rows = rows
    return UnitCall("blocks.0", made, SimpleNamespace(in_train=True), limit)


def gradients(call: Callable[..., Tensor], made: Unit) -> list[Tensor]:
    """Of two inputs that come from something else, and of the parameters."""
    dice = torch.Generator().manual_seed(1)
    x, other, weight = (
        torch.randn(8, 6, dtype=torch.float64, generator=dice).requires_grad_() for _ in range(3)
    )
    (call(x * 2, other=other.sin(), scale=0.5) * weight.detach()).sum().backward()
    found = [x.grad, other.grad, *(p.grad for p in made.parameters())]
    assert all(gradient is not None for gradient in found)
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("full", [Full(), Full(forward=3), Full(backward=3), Full(5, 2)])
@pytest.mark.parametrize("rows", [None, 3])
def test_gradients_go_on_to_what_came_before(full: Full, rows: int | None) -> None:
    plain, split = unit(), unit(Full(full.forward, full.backward))
    expected, found = gradients(plain, plain), gradients(called(split, rows), split)
    for one, other in zip(expected, found, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-14)


def test_where_all_fits_nothing_changes_to_the_bit() -> None:
    plain, split = unit(dropout=0.5), unit(dropout=0.5)
    torch.manual_seed(5)
    expected = gradients(plain, plain)
    torch.manual_seed(5)
    assert all(map(torch.equal, expected, gradients(called(split), split)))


def test_random_numbers_are_drawn_once_more_as_they_were() -> None:
    from_start, split = unit(dropout=0.5), unit(Full(forward=2), dropout=0.5)
    torch.manual_seed(5)
    expected = gradients(called(from_start, 2), from_start)
    torch.manual_seed(5)
    found = gradients(called(split), split)
    assert all(map(torch.allclose, expected, found))


@pytest.mark.parametrize("options", [{"dropout": 0.5}, {"buffer": True}])
def test_what_pieces_would_compute_otherwise_is_the_error_that_it_was(options: Any) -> None:
    made = unit(Full(backward=3), **options)
    with pytest.raises(torch.OutOfMemoryError, match="no room") as caught:
        gradients(called(made), made)
    assert any("SplitOnOOM(rows=...) splits from the start" in n for n in caught.value.__notes__)


def test_what_others_have_drawn_since_is_not_drawn_again() -> None:
    made = unit(Full(backward=3))
    out = called(made)(torch.randn(8, 6, dtype=torch.float64).requires_grad_())
    drawn = torch.rand(3)  # as a part behind it does
    out.sum().backward()
    assert not torch.equal(torch.rand(3), drawn)


def test_a_part_that_is_called_without_gradients_is_split_too() -> None:
    made = unit(Full(forward=3))
    x = torch.randn(8, 6, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(called(made)(x), unit()(x))


def test_a_number_that_a_part_returns_is_no_part_of_pieces() -> None:
    made = unit()
    made.forward = lambda x: (x, x.mean())  # type: ignore[assignment, method-assign, misc]
    with pytest.raises(CannotBeCut, match="a part of the model returns a number"):
        called(made, 3)(torch.randn(8, 6, requires_grad=True))


def test_a_model_that_is_not_divided_has_no_such_parts() -> None:
    model = nn.Sequential(unit(), unit())
    assert innermost_units(model) == {}
    split_units(model, SimpleNamespace(in_train=True), Limit(lambda rows: None))()
    assert "forward" not in vars(model)
