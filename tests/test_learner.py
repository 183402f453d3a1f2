"""The learner, and the model that examples train."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from eventtrain import (
    AvgStatsCallback,
    DataBunch,
    DataError,
    Dataset,
    Learner,
    Runner,
    TensorLoader,
    accuracy,
    get_model,
)
from eventtrain.callbacks import GradientClip, GradStats


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


@pytest.mark.parametrize(
    ("out", "yb", "said"),
    [
        ((4,), (4,), r"got \[4\]: of one alone take its sign"),
        ((4, 1), (4,), r"got \[4, 1\]: of one alone take its sign"),
        ((4, 3), (4, 3), r"yb\.argmax\(1\) are the labels"),
        ((4, 5, 3), (4, 5), r"classes come last.*flatten\(0, -2\)"),
    ],
)
def test_accuracy_says_what_to_do_about_shapes_that_do_not_fit(
    out: tuple[int, ...], yb: tuple[int, ...], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        accuracy(torch.zeros(out), torch.zeros(yb))


def test_accuracy_of_pixels_counts_every_one() -> None:
    out = torch.stack([torch.zeros(2, 5, 5), torch.ones(2, 5, 5)], dim=1)
    assert accuracy(out, torch.ones(2, 5, 5)).item() == 1


def parts() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(6, 4)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


NO_LOADER = {
    "a class": (DataLoader, "which is a class: pass an instance, DataLoader"),
    "a pair of loaders": ((bunch().train_dl, bunch().train_dl), "which holds loaders"),
    "a list of loaders": ([bunch().train_dl, None], "which holds loaders"),
    "a data set": (Dataset(torch.zeros(2, 6), torch.zeros(2)), "a data set, whose samples"),
    "a data set of torch": (TensorDataset(torch.zeros(2, 6)), "a data set, whose samples"),
    "a subset": (Subset(TensorDataset(torch.zeros(2, 6)), [0]), "a data set, whose samples"),
    "a tensor": (torch.zeros(2, 6), "whose rows are no batches: TensorLoader"),
    "an array": (
        torch.zeros(2, 6).numpy(),
        "whose rows are no batches: Tensor.*as_tensor",
    ),
    "a number": (64, "nothing to iterate over"),
    "text": ("train", "nothing to iterate over"),
    "a function": (lambda: iter([]), "nothing to iterate over: call it"),
}


@pytest.mark.parametrize("name", NO_LOADER)
@pytest.mark.parametrize("place", ["train_dl", "valid_dl"])
def test_what_is_no_loader_is_an_error_of_the_bunch(name: str, place: str) -> None:
    part, message = NO_LOADER[name]
    with pytest.raises(TypeError, match=f"{place} must be an iterable of batches, got .*{message}"):
        DataBunch(**{"train_dl": None, place: part})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NO_LOADER)
def test_what_is_no_loader_is_an_error_where_it_is_put_later(name: str) -> None:
    part, message = NO_LOADER[name]
    learn = Learner(*parts(), nn.functional.cross_entropy, bunch())
    learn.data.train_dl = part
    with pytest.raises(TypeError, match=message):
        Runner().fit(1, learn)


@pytest.mark.parametrize("name", NO_LOADER)
def test_predict_says_what_is_no_loader(name: str) -> None:
    part, message = NO_LOADER[name]
    learn = Learner(*parts(), nn.functional.cross_entropy, bunch())
    with pytest.raises(TypeError, match=message):
        Runner().predict(learn, part)


class Batches(torch.utils.data.Dataset[Any]):
    """A data set that is iterated over on purpose."""

    def __iter__(self) -> Iterator[Any]:
        return iter(bunch().train_dl)


class Indexed:
    """Batches by index, as Python iterates over what has no __iter__."""

    def __getitem__(self, index: int) -> Any:
        return list(bunch().train_dl)[index]


def test_a_mapping_of_loaders_is_none_to_train_on() -> None:
    with pytest.raises(TypeError, match="got dict, whose keys are no batches"):
        DataBunch({"a": bunch().train_dl})


@pytest.mark.parametrize("use", ["fit", "validate", "predict"])
def test_every_use_needs_a_learner(use: str) -> None:
    run, model = Runner(), nn.Linear(6, 4)
    calls: dict[str, Any] = {
        "fit": lambda: run.fit(1, model),  # type: ignore[arg-type]
        "validate": lambda: run.validate(model),  # type: ignore[arg-type]
        "predict": lambda: run.predict(model, bunch().train_dl),  # type: ignore[arg-type]
    }
    with pytest.raises(TypeError, match=f"{use} takes a Learner, got Linear"):
        calls[use]()


@pytest.mark.parametrize(
    "loader",
    [list(bunch().train_dl), tuple(bunch().train_dl), iter(bunch().train_dl), Batches(), Indexed(),
     (batch for batch in bunch().train_dl), map(tuple, bunch().train_dl)],
    ids=lambda loader: type(loader).__name__,
)  # fmt: skip
def test_anything_that_yields_batches_is_a_loader(loader: Any) -> None:
    learn = Learner(*parts(), nn.functional.cross_entropy, DataBunch(loader))
    assert Runner().fit(1, learn).steps == 2


@pytest.mark.parametrize(
    ("data", "name"),
    [((1, 2), "tuple"), ([], "list"), (bunch().train_dl, "TensorLoader"), ({}, "dict")],
)
def test_data_that_is_no_bunch_is_an_error(data: Any, name: str) -> None:
    with pytest.raises(TypeError, match=rf"data must be a DataBunch, got {name}: DataBunch\("):
        Learner(*parts(), nn.functional.cross_entropy, data)


MISSING = {
    "model": ("fit needs a function as model", "validate needs a function", "predict needs a"),
    "loss_func": ("there is no loss to train Linear with", None, None),
    "opt": ("fit needs an optimizer as opt", None, None),
    "data": ("fit needs a loader as data.train_dl", "there is no validation loader", None),
}


@pytest.mark.parametrize("part", MISSING)
@pytest.mark.parametrize("use", [0, 1, 2], ids=["fit", "validate", "predict"])
def test_a_part_is_missed_by_those_who_need_it_alone(part: str, use: int) -> None:
    data = bunch()
    data.valid_dl = data.train_dl
    learn = Learner(*parts(), nn.functional.cross_entropy, data)
    setattr(learn, part, None)
    dl = data.train_dl
    run = Runner()
    calls: list[Any] = [
        lambda: run.fit(1, learn), lambda: run.validate(learn), lambda: run.predict(learn, dl)
    ]  # fmt: skip
    message = MISSING[part][use]
    if message is None:
        calls[use]()
    else:
        with pytest.raises((TypeError, DataError), match=message):
            calls[use]()
        assert not run.is_running


def test_a_part_that_was_replaced_is_looked_at_when_the_next_run_begins() -> None:
    learn = Learner(*parts(), nn.functional.cross_entropy, bunch())
    learn.model = nn.Linear(6, 4)
    with pytest.raises(ValueError, match="none of them is one of Linear"):
        Runner().fit(1, learn)
    learn.opt = torch.optim.SGD(learn.model.parameters(), lr=0.1)
    assert Runner().fit(1, learn).outcome == "completed"
    learn.loss_func = nn.CrossEntropyLoss
    with pytest.raises(TypeError, match=r"pass an instance of it, CrossEntropyLoss\(...\)"):
        Runner().fit(1, learn)


class OfSomething(nn.Module):
    """A loss with parameters of its own, as a network that compares features has."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Linear(4, 4).requires_grad_(False)

    def forward(self, pred: torch.Tensor, yb: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(self.features(pred), yb)


def test_an_optimizer_of_what_a_function_calls_is_taken() -> None:
    model, opt = parts()
    before = model.bias.clone()
    learn = Learner(lambda xb: model(xb), opt, OfSomething(), bunch())
    assert Runner().fit(1, learn).steps == 2
    assert not torch.equal(model.bias, before)


def test_an_optimizer_over_a_part_of_the_model_is_taken() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    model[0].requires_grad_(False)
    opt = torch.optim.SGD(model[1].parameters(), lr=0.1)
    before = model[0].weight.clone(), model[1].weight.clone()
    assert Runner().fit(1, Learner(model, opt, nn.functional.cross_entropy, bunch())).steps == 2
    assert torch.equal(model[0].weight, before[0])
    assert not torch.equal(model[1].bias, torch.zeros(4)) or not torch.equal(
        model[1].weight, before[1]
    )


def test_a_model_that_finds_its_sizes_in_the_first_batch_is_trained() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Lazy modules are a new feature")
        model = nn.Sequential(nn.LazyLinear(5), nn.ReLU(), nn.LazyLinear(4))
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    learn = Learner(model, opt, nn.functional.cross_entropy, bunch())
    run = Runner([AvgStatsCallback(accuracy, report=None), GradientClip(1.0), GradStats()])
    assert run.fit(2, learn).outcome == "completed"
    assert model[0].weight.shape == (5, 6) and model[0].weight.grad is None


def test_a_factory_makes_the_optimizer_when_the_first_fit_begins(make_learner: Any) -> None:
    learn = make_learner()
    learn.opt = lambda params: torch.optim.SGD(params, lr=0.1)
    assert Runner().fit(1, learn).steps > 0
    first = learn.opt
    assert isinstance(first, torch.optim.SGD)
    Runner().fit(1, learn)
    assert learn.opt is first


def test_a_factory_that_returns_no_optimizer_is_named(make_learner: Any) -> None:
    learn = make_learner()
    learn.opt = lambda params: list(params)
    with pytest.raises(TypeError, match="must return an optimizer"):
        Runner().fit(1, learn)


def test_the_loop_calls_what_is_put_around_the_model(make_learner: Any) -> None:
    learn, calls = make_learner(), []
    learn.wrap_model(lambda model: lambda xb: calls.append(model) or model(xb))
    Runner().fit(1, learn)
    assert calls
    assert all(model is learn.model for model in calls)
    other = learn.model = torch.nn.Sequential(learn.model)
    Runner().validate(learn)
    assert calls[-1] is other
    learn.wrap_model(None)
    assert learn.model_wrapped is other
