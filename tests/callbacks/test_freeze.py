"""Frozen parts stay as they are, and come back when their time has come."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eventtrain import Learner, Runner
from eventtrain.callbacks import Checkpoint, Freeze
from eventtrain.callbacks.freeze import freeze, unfreeze

Make = Callable[..., Learner]
Fit = Callable[[Runner, Learner], None]


def deep(learner: Learner) -> Learner:
    torch.manual_seed(1)
    learner.model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    learner.opt = torch.optim.SGD(
        learner.model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1
    )
    return learner


def by_epoch(run: Runner, index: int) -> list[Tensor]:
    """Collect the weight of a layer before the first and after every epoch."""
    seen: list[Tensor] = []
    run.on("begin_fit", lambda run: seen.append(run.model[index].weight.detach().clone()))
    run.on("after_epoch", lambda run: seen.append(run.model[index].weight.detach().clone()))
    return seen


@pytest.fixture
def model(learner: Learner) -> Any:
    return deep(learner).model


@pytest.mark.parametrize("how", ["name", "module", "rule"])
def test_frozen_parts_stay_as_they_are_until_their_epoch(learner: Learner, how: str) -> None:
    model = deep(learner).model
    chosen = {"name": "0", "module": model[0], "rule": lambda name, module: name == "0"}[how]
    run = Runner(Freeze(chosen, until_epoch=2))
    first, last = by_epoch(run, 0), by_epoch(run, 2)
    run.fit(3, learner)
    changed = [not torch.equal(a, b) for a, b in itertools.pairwise(first)]
    assert changed == [False, False, True]
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(last))


def test_the_rest_trains_as_if_the_frozen_part_had_no_gradient(make_learner: Make) -> None:
    ours, theirs = deep(make_learner()), deep(make_learner())
    Runner(Freeze("0", until_epoch=None)).fit(2, ours)
    theirs.model[0].requires_grad_(False)
    Runner().fit(2, theirs)
    assert torch.equal(ours.model[2].weight, theirs.model[2].weight)
    assert torch.equal(ours.model[0].weight, theirs.model[0].weight)


def test_a_schedule_lets_parts_in_one_after_the_other(learner: Learner) -> None:
    deep(learner)
    run = Runner(Freeze({1: ["1", "2"], 3: "0"}))
    first, last = by_epoch(run, 0), by_epoch(run, 2)
    run.on("begin_epoch", lambda run: run.token.cancel("epoch") if run.epoch == 0 else None)
    run.fit(4, learner)
    assert [not torch.equal(a, b) for a, b in itertools.pairwise(last)] == [
        False, True, True, True,
    ]  # fmt: skip
    assert [not torch.equal(a, b) for a, b in itertools.pairwise(first)] == [
        False, False, False, True,
    ]  # fmt: skip


def test_what_two_epochs_claim_comes_in_with_the_later_one(learner: Learner) -> None:
    deep(learner)
    run = Runner(Freeze({1: "0", 2: ["0", "1"]}))
    first = by_epoch(run, 0)
    run.fit(3, learner)
    changed = [not torch.equal(a, b) for a, b in itertools.pairwise(first)]
    assert changed == [False, False, True]


def test_requires_grad_is_put_back_however_the_fit_ends(
    learner: Learner, fit_however_it_ends: Fit
) -> None:
    model = deep(learner).model
    model[0].bias.requires_grad_(False)
    run = Runner(Freeze(["0", "1"], until_epoch=None))
    fit_however_it_ends(run, learner)
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["0.bias"]
    assert all(module.training == model.training for module in model.modules())


def test_frozen_batch_normalization_keeps_its_statistics(learner: Learner) -> None:
    model = deep(learner).model
    Runner(Freeze("1", until_epoch=None)).fit(2, learner)
    assert model[1].num_batches_tracked == 0
    assert torch.equal(model[1].running_mean, torch.zeros(4))


def test_batch_normalization_that_has_come_in_counts_again(learner: Learner) -> None:
    model = deep(learner).model
    Runner(Freeze("1", until_epoch=1)).fit(3, learner)
    assert model[1].num_batches_tracked == 6


def test_frozen_batch_normalization_may_go_on_counting(learner: Learner) -> None:
    model = deep(learner).model
    Runner(Freeze("1", until_epoch=None, batch_norm_eval=False)).fit(1, learner)
    assert model[1].num_batches_tracked == 3


def test_gradients_that_were_left_do_not_move_a_frozen_part(learner: Learner) -> None:
    model = deep(learner).model
    before = model[0].weight.detach().clone()
    model[0].weight.grad = torch.ones_like(before)
    Runner(Freeze("0", until_epoch=None)).fit(1, learner)
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("after", [2, 4, 6])
def test_a_resumed_fit_ends_with_the_same_weights(
    make_learner: Make, tmp_path: Path, after: int
) -> None:
    whole = deep(make_learner())
    Runner(Freeze(["0", "1"], until_epoch=1)).fit(3, whole)
    first = Runner([Freeze(["0", "1"], until_epoch=1), Checkpoint(tmp_path)])
    event = "after_epoch" if after % 3 == 0 else "after_batch"
    first.on(event, lambda run: run.token.cancel("fit") if run.n_iter == after else None)
    first.fit(3, deep(make_learner()))
    learner = deep(make_learner())
    second = Runner([Freeze(["0", "1"], until_epoch=1), Checkpoint(tmp_path)])
    second.fit(3, learner, resume="auto")
    for own, other in zip(learner.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(own, other)
    assert torch.equal(learner.model[1].running_mean, whole.model[1].running_mean)


def test_a_second_fit_freezes_again(learner: Learner) -> None:
    model = deep(learner).model
    run = Runner(Freeze("0", until_epoch=1))
    run.fit(2, learner)
    before = model[0].weight.detach().clone()
    run.fit(1, learner)
    assert torch.equal(model[0].weight, before)


def test_validation_prediction_and_no_epochs_are_fine(learner: Learner) -> None:
    run = Runner(Freeze("0"))
    deep(learner)
    assert run.fit(0, learner).outcome == "completed"
    assert run.validate(learner).outcome == "completed"
    assert len(run.predict(learner, learner.data.valid_dl)) == 8


def test_freeze_and_unfreeze_work_without_a_run(model: Any) -> None:
    model[0].weight.grad = torch.ones(4, 5)
    freeze(model, ["0", "1"])
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert model[0].weight.grad is None
    unfreeze(model, "0")
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["1.weight", "1.bias"]


def test_a_part_that_the_model_lacks_is_named(learner: Learner) -> None:
    with pytest.raises(ValueError, match="no module 'head'"):
        Runner(Freeze("head")).fit(1, deep(learner))


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        (("0", -1), ValueError, "until_epoch"),
        (("0", 1.5), TypeError, "until_epoch"),
        (({"first": "0"},), TypeError, "an epoch"),
    ],
)
def test_bad_epochs_are_refused(
    arguments: tuple[Any, ...], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=f"{named} must be"):
        Freeze(*arguments)
