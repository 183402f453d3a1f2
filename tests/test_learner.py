"""The learner, and the model that examples train."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from eventtrain import DataBunch, DataError, Learner, TensorLoader, accuracy, get_model


def bunch(features: int = 6, c: int | None = 4) -> DataBunch:
    y = torch.tensor([0, 1, 2, 0])
    return DataBunch(TensorLoader(torch.zeros(4, features), y, bs=2), None, c)


def test_get_model_fits_the_data() -> None:
    model, opt = get_model(bunch(), lr=0.25, nh=7)
    assert [type(layer) for layer in model] == [nn.Linear, nn.ReLU, nn.Linear]
    assert model(torch.zeros(3, 6)).shape == (3, 4)
    assert model[0].out_features == 7
    assert isinstance(opt, torch.optim.SGD)
    assert opt.param_groups[0]["lr"] == 0.25


def test_get_model_has_the_seeds_defaults() -> None:
    model, opt = get_model(bunch())
    assert (model[0].out_features, opt.param_groups[0]["lr"]) == (50, 0.5)


def test_get_model_counts_classes_where_it_is_not_told() -> None:
    model, _ = get_model(bunch(c=None))
    assert model[2].out_features == 3


def test_get_model_says_what_shape_it_needs() -> None:
    data = DataBunch(TensorLoader(torch.zeros(4, 1, 8, 8), torch.zeros(4), bs=2), None, 3)
    with pytest.raises(DataError, match=r"\[n, features\], got \[4, 1, 8, 8\]"):
        get_model(data)


def test_a_learner_takes_its_parts_in_order_and_is_mutable() -> None:
    data = bunch()
    learner = Learner(*get_model(data), nn.functional.cross_entropy, data)
    learner.loss_func = nn.functional.mse_loss
    assert learner.loss_func is nn.functional.mse_loss
    assert learner.data is data


def test_a_learner_names_model_and_optimizer_in_short() -> None:
    data = bunch()
    learner = Learner(*get_model(data), nn.functional.cross_entropy, data)
    assert repr(learner) == "<Learner: Sequential with SGD>"


def test_accuracy_is_the_share_of_right_rows() -> None:
    out = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    result = accuracy(out, torch.tensor([1, 0, 0, 0]))
    assert (result.item(), result.dtype, result.ndim) == (0.75, torch.float32, 0)


@pytest.mark.parametrize(
    ("out", "yb", "message"),
    [
        (torch.zeros(2, 3), {"label": torch.zeros(2)}, "labels that are one tensor, got dict"),
        ([torch.zeros(2, 3)], torch.zeros(2), "logits that are one tensor, got list"),
    ],
)
def test_accuracy_says_what_it_needs_and_got(out: object, yb: object, message: str) -> None:
    with pytest.raises(TypeError, match=f"accuracy needs {message}"):
        accuracy(out, yb)  # type: ignore[arg-type]


def test_accuracy_refuses_labels_that_are_not_one_for_each_row() -> None:
    with pytest.raises(ValueError, match=r"labels of shape \[4\], and labels of shape \[4, 1\]"):
        accuracy(torch.zeros(4, 3), torch.zeros(4, 1))


def test_accuracy_of_pixels_counts_every_one() -> None:
    out = torch.stack([torch.zeros(2, 5, 5), torch.ones(2, 5, 5)], dim=1)
    assert accuracy(out, torch.ones(2, 5, 5)).item() == 1
