"""Choosing parts of a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from eventtrain.submodules import choose_submodules, copies_of, set_tensors, tensors_of


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


def test_copies_are_tensors_of_their_own_cut_from_the_graph(model: Any) -> None:
    tensors = tensors_of(model)
    copies = copies_of(tensors)
    before = copies["0.weight"].clone()
    tensors["0.weight"].detach().zero_()
    assert torch.equal(copies["0.weight"], before) and not copies["0.weight"].requires_grad


def test_copies_lie_where_those_of_the_same_names_do() -> None:
    tensors = {"a": torch.ones(2), "b": torch.ones(2)}
    copies = copies_of(tensors, {"a": torch.ones(2, device="meta")})
    assert {name: copy.device.type for name, copy in copies.items()} == {"a": "meta", "b": "cpu"}


def test_what_both_hold_is_filled_in_place_and_the_rest_stays(model: Any) -> None:
    other = tensors_of(model)["1.1.bias"].clone()
    set_tensors(model, {"0.bias": torch.full((2,), 7.0), "gone": torch.ones(1)})
    assert torch.equal(model[0].bias, torch.full((2,), 7.0))
    assert torch.equal(model[1][1].bias, other)


def test_a_parameter_of_another_shape_is_refused_before_anything_is_changed(model: Any) -> None:
    before = model[0].bias.clone()
    values = {"0.bias": torch.full((2,), 7.0), "0.weight": torch.ones(2, 3)}
    with pytest.raises(ValueError, match=r"0\.weight has shape \[2, 2\].*\[2, 3\]"):
        set_tensors(model, values)
    assert torch.equal(model[0].bias, before)


@pytest.mark.parametrize("own", [None, torch.zeros(2)])
def test_a_buffer_of_another_shape_is_replaced_where_that_is_asked_for(
    model: Any, own: Any
) -> None:
    model.register_buffer("cache", own)
    set_tensors(model, {"cache": torch.ones(3)})
    assert model.cache is own
    value = torch.ones(3)
    set_tensors(model, {"cache": value}, replace_buffers=True)
    assert torch.equal(model.cache, value) and model.cache is not value


def test_a_compiled_part_has_the_names_that_it_had_before(model: Any) -> None:
    names = list(tensors_of(model))
    model[1] = torch.compile(model[1], backend="eager")
    assert list(tensors_of(torch.compile(model, backend="eager"))) == names


def test_what_is_yet_to_be_initialized_is_left_out_unless_it_is_asked_for() -> None:
    model = nn.LazyLinear(2)
    assert tensors_of(model) == {}
    assert list(tensors_of(model, lazy=True)) == ["weight", "bias"]


@pytest.mark.parametrize("name", ["1.1", "_orig_mod.1._orig_mod.1"])
def test_parts_of_a_compiled_model_are_chosen_by_the_names_that_they_had(
    model: Any, name: str
) -> None:
    inner = model[1]
    model[1] = torch.compile(inner, backend="eager")
    whole = torch.compile(model, backend="eager")
    assert choose_submodules(whole, name) == {"1.1": inner[1]}
    assert choose_submodules(whole, [model[1], inner]) == {"1": inner}
    assert list(choose_submodules(whole, lambda name, module: True)) == ["", "0", "1", "1.0", "1.1"]
