"""Numbers on their way to the host."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from eventtrain.callbacks.shared.readings import (
    detached_mean,
    hyperparameters,
    numbers_of,
    plain_value,
    stack_where_possible,
    to_host,
)


def test_tensors_in_any_nest_are_read_and_the_rest_stays() -> None:
    nest = {
        "a": [torch.tensor(1.5), 2, "text", None],
        "b": (torch.tensor([[1, 2], [3, 4]]), torch.tensor(True)),
        "c": torch.ones((), dtype=torch.float64) / 3,
        "empty": torch.zeros(0),
    }
    assert to_host(nest) == {
        "a": [1.5, 2, "text", None],
        "b": ([[1, 2], [3, 4]], True),
        "c": 1 / 3,
        "empty": [],
    }


def test_one_device_and_dtype_is_one_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: calls.append(self.numel()) or cpu(self))
    losses = [torch.tensor(float(i), requires_grad=True) for i in range(5)]
    assert to_host(losses) == [0, 1, 2, 3, 4]
    assert calls == [5]


def test_without_tensors_the_nest_itself_comes_back() -> None:
    nest = [1, {"a": (2.0,)}]
    assert to_host(nest) is nest


def test_tensors_of_one_place_are_stacked_and_others_stay_apart() -> None:
    one, two = torch.tensor(1.0), torch.tensor(2.0)
    assert torch.equal(stack_where_possible([one, two]), torch.tensor([1.0, 2.0]))  # type: ignore[arg-type]
    apart = [one, two.to("meta")]
    assert stack_where_possible(apart) is apart


def test_what_is_kept_is_a_copy_cut_from_the_graph() -> None:
    loss = torch.tensor(2.0, requires_grad=True) * 1
    value = detached_mean(loss)
    loss.detach().zero_()
    assert value.item() == 2.0 and not value.requires_grad
    assert detached_mean(torch.tensor([1.0, 3.0])).item() == 2.0
    assert detached_mean(7) == 7


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.tensor(2.5), 2.5),
        (torch.tensor([3]), 3),
        (np.float32(0.5), 0.5),
        (np.int64(4), 4),
        (True, True),
        (None, None),
        ("text", "text"),
        ([1, 2], "[1, 2]"),
        (np.array([1, 2]), "[1 2]"),
        (torch.tensor([1, 2]), "tensor([1, 2])"),
    ],
)
def test_values_become_plain_value(value: Any, expected: Any) -> None:
    assert plain_value(value) == expected
    assert type(plain_value(value)) is type(expected)


def test_what_is_not_finite_stays_so() -> None:
    assert math.isnan(plain_value(torch.tensor(math.nan)))  # type: ignore[arg-type]


def test_the_numbers_of_a_row_are_floats_without_the_epoch() -> None:
    row = {"epoch": 3, "loss": torch.tensor(0.5), "best": True, "note": "text", "none": None}
    assert numbers_of(row) == {"loss": 0.5, "best": 1.0}


def test_fields_of_an_optimizer_without_groups_are_none() -> None:
    assert hyperparameters(object(), "lr") == []


def test_fields_are_copies_in_tuples_too() -> None:
    beta = torch.tensor(0.9)
    opt = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    opt.param_groups[0]["betas"] = (beta, 0.99)
    ((first, second),) = hyperparameters(opt, "betas")
    beta.zero_()
    assert (first.item(), second) == (pytest.approx(0.9), 0.99)
