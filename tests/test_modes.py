"""The mode of every module, before, in and after a run."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from eventtrain import DataBunch, Learner, Runner, TensorLoader


class Net(nn.Module):
    """A backbone with statistics of its own, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 1))

    def forward(self, xb: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(xb))


@pytest.fixture
def learn() -> Learner:
    model = Net()
    data = DataBunch(
        TensorLoader(torch.randn(8, 3), torch.randn(8, 1), 4),
        TensorLoader(torch.randn(4, 3), torch.randn(4, 1), 4),
    )
    opt = torch.optim.SGD(model.parameters(), 0.1)
    return Learner(model, opt, nn.functional.mse_loss, data)


def modes(learn: Learner) -> dict[str, bool]:
    return {name: module.training for name, module in learn.model.named_modules()}


@pytest.mark.parametrize("how", ["validate", "predict"])
@pytest.mark.parametrize("fails", [False, True])
def test_a_run_without_training_puts_every_module_back(
    learn: Learner, how: str, fails: bool
) -> None:
    learn.model.backbone.eval()
    before, run, inside = modes(learn), Runner(), []
    run.on("after_pred", lambda run: inside.append(any(modes(learn).values())))
    if fails:
        run.on("after_pred", lambda run: 1 / 0)
    arguments = (learn,) if how == "validate" else (learn, learn.data.valid_dl)
    try:
        getattr(run, how)(*arguments)
    except ZeroDivisionError:
        assert fails
    assert inside == [False]
    assert modes(learn) == before


def test_what_was_in_evaluation_mode_stays_so_while_it_trains(learn: Learner) -> None:
    learn.model.backbone.eval()
    seen: list[dict[str, bool]] = []
    mean = learn.model.backbone[1].running_mean.clone()
    run = Runner()
    run.on("after_loss", lambda run: seen.append(modes(learn)), during="train")
    run.fit(2, learn)
    assert all(not row["backbone"] and not row["backbone.1"] for row in seen)
    assert all(row["head"] and row["head.0"] and row[""] for row in seen)
    assert torch.equal(learn.model.backbone[1].running_mean, mean)


def test_it_stays_so_in_the_next_fit_of_the_model(learn: Learner) -> None:
    learn.model.backbone.eval()
    run, seen = Runner(), []
    run.fit(1, learn)
    run.on("after_loss", lambda run: seen.append(modes(learn)), during="train")
    run.fit(1, learn)
    assert all(not row["backbone"] and row["head.0"] for row in seen)


def test_it_stays_so_in_a_fit_of_another_runner(learn: Learner) -> None:
    learn.model.backbone.eval()
    mean = learn.model.backbone[1].running_mean.clone()
    Runner().fit(1, learn)
    Runner().fit(1, learn)
    assert torch.equal(learn.model.backbone[1].running_mean, mean)


def test_what_stays_so_does_not_keep_its_model_alive(learn: Learner) -> None:
    learn.model.backbone.eval()
    Runner().fit(1, learn)
    model = weakref.ref(learn.model)
    learn.model = learn.opt = None
    gc.collect()
    assert model() is None


def test_training_mode_for_the_whole_model_ends_that(learn: Learner) -> None:
    learn.model.backbone.eval()
    run, seen = Runner(), []
    run.fit(1, learn)
    learn.model.train()
    run.on("after_loss", lambda run: seen.append(modes(learn)), during="train")
    run.fit(1, learn)
    assert all(all(row.values()) for row in seen)


def test_a_model_that_is_in_evaluation_mode_as_a_whole_is_trained_as_a_whole(
    learn: Learner,
) -> None:
    learn.model.eval()
    run, seen = Runner(), []
    run.on("after_loss", lambda run: seen.append(modes(learn)), during="train")
    run.fit(1, learn)
    assert all(all(row.values()) for row in seen)


def test_another_model_of_the_same_runner_is_not_concerned(learn: Learner) -> None:
    learn.model.backbone.eval()
    run, seen = Runner(), []
    run.fit(1, learn)
    other = Net().eval()
    learn.model, learn.opt = other, torch.optim.SGD(other.parameters(), 0.1)
    run.on("after_loss", lambda run: seen.append(modes(learn)), during="train")
    run.fit(1, learn)
    assert all(all(row.values()) for row in seen)


def test_a_handler_that_puts_a_part_into_evaluation_mode_has_its_way(learn: Learner) -> None:
    run, seen = Runner(), []
    run.on("begin_train", lambda run: run.model.backbone.eval() and None)
    run.on("after_loss", lambda run: seen.append(modes(learn)), during="train")
    run.fit(1, learn)
    assert all(not row["backbone"] and row["head"] for row in seen)


def test_a_model_that_freezes_in_train_keeps_its_own_rule(learn: Learner) -> None:
    class Freezing(Net):
        def train(self, mode: bool = True) -> Any:
            super().train(mode)
            self.backbone.eval()
            return self

    model = Freezing()
    learn.model, learn.opt = model, torch.optim.SGD(model.parameters(), 0.1)
    run, seen = Runner(), []
    run.on("after_loss", lambda run: seen.append(modes(learn)), during="train")
    run.fit(1, learn)
    assert all(not row["backbone"] and row["head"] for row in seen)
