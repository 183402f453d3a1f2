"""Parameter groups with rates of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from eventtrain.discriminative import discriminative_groups


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 1))


def rates(groups: list[dict[str, Any]]) -> dict[str, float]:
    return {group["name"]: group["lr"] for group in groups}


def test_a_sequence_gives_every_block_its_rate(model: nn.Module) -> None:
    groups = discriminative_groups(model, [0.1, 0.2, 0.3])
    assert rates(groups) == {"0": 0.1, "2": 0.2, "3": 0.3}
    assert [len(group["params"]) for group in groups] == [2, 2, 2]


def test_a_slice_goes_from_low_to_high_by_equal_factors(model: nn.Module) -> None:
    groups = discriminative_groups(model, slice(1e-4, 1e-2))
    assert rates(groups) == pytest.approx({"0": 1e-4, "2": 1e-3, "3": 1e-2})


def test_a_single_block_gets_the_high_end() -> None:
    assert rates(discriminative_groups(nn.Sequential(nn.Linear(1, 1)), slice(0.1, 0.5))) == {
        "0": 0.5
    }


def test_two_blocks_get_the_two_ends() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    assert rates(discriminative_groups(model, slice(0.1, 0.5))) == {"0": 0.1, "1": 0.5}


def test_a_mapping_names_blocks_and_the_rest() -> None:
    model = nn.ModuleDict(
        {"body": nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)), "head": nn.Linear(1, 1)}
    )
    groups = discriminative_groups(model, {"": 0.1, "body": 0.2, "body.1": 0.3})
    owners = {
        name: group["name"]
        for group in groups
        for name, parameter in model.named_parameters()
        if any(parameter is each for each in group["params"])
    }
    assert owners == {
        "body.0.weight": "body",
        "body.0.bias": "body",
        "body.1.weight": "body.1",
        "body.1.bias": "body.1",
        "head.weight": "",
        "head.bias": "",
    }
    assert rates(groups) == {"": 0.1, "body": 0.2, "body.1": 0.3}


def test_an_optimizer_steps_every_block_at_its_rate(model: Any) -> None:
    before = [parameter.detach().clone() for parameter in model.parameters()]
    opt = torch.optim.SGD(discriminative_groups(model, [0.0, 0.5, 1.0]), lr=99)
    model(torch.ones(4, 2)).sum().backward()
    opt.step()
    for (name, parameter), old in zip(model.named_parameters(), before, strict=True):
        rate = {"0": 0.0, "2": 0.5, "3": 1.0}[name[0]]
        assert torch.equal(parameter, old - rate * parameter.grad)


def test_a_shared_parameter_is_in_one_group_only(model: Any) -> None:
    model[3].weight = nn.Parameter(torch.zeros(1, 3))
    model[2].extra = model[3].weight
    torch.optim.SGD(discriminative_groups(model, [0.1, 0.2, 0.3]), lr=0.1)


def test_parameters_without_a_rate_are_named(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"2\.weight, 2\.bias"):
        discriminative_groups(model, {"0": 0.1, "3": 0.1})


@pytest.mark.parametrize(
    ("lrs", "error", "words"),
    [
        ([0.1, 0.2], ValueError, "2 rates for the 3 blocks 0, 2, 3"),
        ([0.1, -0.2, 0.3], ValueError, "'2' must be 0 or more"),
        (slice(0, 0.1), ValueError, "both above 0"),
        (slice(0.1, 0), ValueError, "both above 0"),
        (slice(0.1), ValueError, "both above 0"),
        (slice(0.1, None), ValueError, "both above 0"),
        (slice(0.1, 0.2, 3), ValueError, "both above 0"),
        ("abc", TypeError, "got 'abc'"),
        (0.1, TypeError, "got 0.1"),
        ({"nine": 0.1}, ValueError, "no module 'nine'"),
    ],
)
def test_bad_rates_are_refused(
    model: nn.Module, lrs: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        discriminative_groups(model, lrs)
