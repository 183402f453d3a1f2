"""Choosing parts of a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from eventtrain.submodules import choose_submodules, tensors_of


@pytest.fixture
def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Linear(2, 2)))


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("0", ["0"]),
        (["1.1", "0"], ["0", "1.1"]),
        ("", [""]),
        (lambda name, module: isinstance(module, nn.Linear), ["0", "1.1"]),
    ],
)
def test_parts_are_found_in_the_models_order(model: Any, choice: Any, names: list[str]) -> None:
    assert list(choose_submodules(model, choice)) == names


def test_modules_stand_for_themselves(model: Any) -> None:
    assert choose_submodules(model, model[1][1]) == {"1.1": model[1][1]}
    assert choose_submodules(model, [model[0], "0"]) == {"0": model[0]}


def test_an_unknown_name_gets_a_hint(model: Any) -> None:
    with pytest.raises(ValueError, match=r"no module '1\.2'\. Did you mean"):
        choose_submodules(model, "1.2")


def test_a_module_of_another_model_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="this ReLU is no part of the model"):
        choose_submodules(model, nn.ReLU())


@pytest.mark.parametrize("choice", [[], lambda name, module: False])
def test_choosing_nothing_is_an_error(model: Any, choice: Any) -> None:
    with pytest.raises(ValueError, match="no part of Sequential was chosen"):
        choose_submodules(model, choice)


def test_other_choices_and_models_are_refused(model: Any) -> None:
    with pytest.raises(TypeError, match="not 3"):
        choose_submodules(model, [3])
    with pytest.raises(TypeError, match="not of function"):
        choose_submodules(lambda x: x, "0")


def test_tensors_are_parameters_and_all_buffers_shared_ones_once(model: Any) -> None:
    model[1][1].weight = model[0].weight
    model.register_buffer("unsaved", torch.zeros(1), persistent=False)
    tensors = tensors_of(model)
    assert list(tensors) == ["0.weight", "0.bias", "1.1.bias", "unsaved"]
    assert tensors["0.weight"] is model[0].weight


def test_what_is_no_module_has_no_tensors() -> None:
    assert tensors_of(lambda x: x) == {}
