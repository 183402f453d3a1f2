"""Label smoothing against torch's own, and its place beside Mixup."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eventtrain import AvgStatsCallback, DataBunch, Learner, Runner
from eventtrain.callbacks import Checkpoint, LabelSmoothing, Mixup
from eventtrain.priorities import POLICY

Make = Callable[..., Learner]
cross_entropy = nn.functional.cross_entropy
WEIGHT = torch.tensor([1.0, 2.0, 0.5])

LOSSES: dict[str, tuple[Any, Any]] = {
    "function": (lambda: cross_entropy, nn.CrossEntropyLoss(label_smoothing=0.2)),
    "partial": (
        lambda: partial(cross_entropy, weight=WEIGHT, reduction="sum"),
        nn.CrossEntropyLoss(WEIGHT, reduction="sum", label_smoothing=0.2),
    ),
    "module": (lambda: nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.2)),
    "module with options": (
        lambda: nn.CrossEntropyLoss(WEIGHT, ignore_index=1, reduction="sum"),
        nn.CrossEntropyLoss(WEIGHT, ignore_index=1, reduction="sum", label_smoothing=0.2),
    ),
}


def same_weights(one: Learner, other: Learner) -> bool:
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def with_loss(learner: Learner, loss: Any) -> Learner:
    learner.loss_func = loss
    return learner


@pytest.mark.parametrize("name", LOSSES)
def test_training_is_that_with_torchs_smoothing(name: str, make_learner: Make) -> None:
    make, reference_loss = LOSSES[name]
    learner = with_loss(make_learner(), make())
    reference = with_loss(make_learner(), reference_loss)
    Runner(cbs=LabelSmoothing(0.2)).fit(2, learner)
    Runner().fit(2, reference)
    assert same_weights(learner, reference)


@pytest.mark.parametrize("name", LOSSES)
def test_validation_measures_the_plain_loss(name: str, make_learner: Make) -> None:
    loss = LOSSES[name][0]()
    learner = with_loss(make_learner(), loss)
    stats = AvgStatsCallback(report=None)
    history = Runner(cbs=[LabelSmoothing(0.2), stats]).fit(1, learner).history
    alone = Runner(cbs=AvgStatsCallback(report=None)).validate(learner).history
    assert history[0]["valid_loss"] == alone[0]["valid_loss"]
    assert learner.loss_func is loss


def test_the_smoothed_loss_follows_the_weight_to_where_it_is_moved() -> None:
    loss = nn.CrossEntropyLoss(WEIGHT)
    learner = Learner(nn.Linear(5, 3), None, loss, DataBunch([], None))
    callback, run = LabelSmoothing(0.2), Runner()
    run.learn = learner
    callback.begin_train(run)
    assert learner.loss_func is not loss
    loss.to(torch.float64)
    assert learner.loss_func.weight.dtype == torch.float64  # type: ignore[attr-defined]
    callback.after_train(run)
    assert learner.loss_func is loss
    assert loss.label_smoothing == 0.0


@pytest.mark.parametrize("order", [1, -1])
def test_with_mixup_the_smoothed_losses_are_mixed(order: int, make_learner: Make) -> None:
    learner, by_hand = make_learner(), make_learner()
    mixup = Mixup(generator=torch.Generator().manual_seed(1))
    run = Runner(cbs=[LabelSmoothing(0.2), mixup][::order])
    seen: list[tuple[float, Any]] = []
    run.on("after_loss", lambda run: seen.append((mixup.lam, mixup.permutation)), during="train")
    run.fit(2, learner)
    smoothed = nn.CrossEntropyLoss(label_smoothing=0.2)
    batches = list(by_hand.data.train_dl) * 2
    for (lam, rows), (xb, yb) in zip(seen, batches, strict=True):
        pred = by_hand.model(lam * xb + (1 - lam) * xb[rows])
        (lam * smoothed(pred, yb) + (1 - lam) * smoothed(pred, yb[rows])).backward()
        by_hand.opt.step()
        by_hand.opt.zero_grad()
    assert same_weights(learner, by_hand)
    assert learner.loss_func is cross_entropy


def test_code_of_ones_own_comes_before_it_and_reports_after(learner: Learner) -> None:
    smooths: dict[int, bool] = {}
    run = Runner(cbs=LabelSmoothing())
    for priority in (POLICY + 1, POLICY - 1):
        look = lambda run, p=priority: smooths.update({p: run.loss_func is not cross_entropy})  # noqa: E731
        run.on("begin_train", look, priority=priority)
    run.fit(1, learner)
    assert smooths == {POLICY + 1: False, POLICY - 1: True}


@pytest.mark.parametrize("eps", [0, 1])
def test_the_ends_of_the_range_are_taken(eps: float) -> None:
    assert LabelSmoothing(eps).eps == eps


@pytest.mark.parametrize("how", ["cancel batch", "cancel fit", "raise"])
def test_the_loss_function_is_put_back_whatever_happens(how: str, learner: Learner) -> None:
    run = Runner(cbs=LabelSmoothing())

    @run.on("after_loss", during="train")
    def spoil(run: Runner) -> None:
        if how == "raise":
            raise ArithmeticError
        run.token.cancel(how.split()[1])

    if how == "raise":
        with pytest.raises(ArithmeticError):
            run.fit(2, learner)
    else:
        run.fit(2, learner)
    assert learner.loss_func is cross_entropy


def test_a_training_that_is_cancelled_at_once_leaves_the_loss_function(learner: Learner) -> None:
    run = Runner(cbs=LabelSmoothing())
    run.on("begin_train", lambda run: run.token.cancel("train"), priority=100)
    assert run.fit(1, learner).steps == 0
    assert learner.loss_func is cross_entropy


def test_a_loss_function_that_somebody_sets_meanwhile_stays(learner: Learner) -> None:
    other = nn.CrossEntropyLoss()
    run = Runner(cbs=LabelSmoothing())

    @run.on("after_batch", once=True)
    def replace(run: Runner) -> None:
        assert run.learn is not None
        run.learn.loss_func = other

    run.fit(1, learner)
    assert learner.loss_func is other


def test_every_epoch_and_every_fit_is_smoothed(make_learner: Make) -> None:
    learner, reference = make_learner(), make_learner()
    run = Runner(cbs=LabelSmoothing(0.3))
    run.fit(2, learner)
    run.fit(1, learner)
    Runner().fit(3, with_loss(reference, nn.CrossEntropyLoss(label_smoothing=0.3)))
    assert same_weights(learner, reference)


def test_a_resumed_fit_ends_like_one_that_was_never_interrupted(
    make_learner: Make, tmp_path: Path
) -> None:
    whole, second = make_learner(), make_learner()
    Runner(cbs=LabelSmoothing()).fit(2, whole)
    run = Runner(cbs=[LabelSmoothing(), Checkpoint(tmp_path)])
    stop = {"when": lambda run: run.in_train and run.n_iter == 2}
    run.on("after_batch", lambda run: run.token.cancel("fit"), **stop)
    run.fit(2, make_learner())
    Runner(cbs=[LabelSmoothing(), Checkpoint(tmp_path)]).fit(2, second, resume=tmp_path)
    assert same_weights(second, whole)


def test_validation_and_prediction_alone_are_left_as_they_are(learner: Learner) -> None:
    learner.loss_func = nn.functional.l1_loss  # not one that could be smoothed
    learner.data = DataBunch([], [(torch.randn(2, 5), torch.randn(2, 3))])
    run = Runner(cbs=LabelSmoothing())
    assert run.validate(learner).outcome == "completed"
    assert len(run.predict(learner, learner.data.valid_dl)) == 2


def mean_squares(pred: Tensor, yb: Tensor) -> Tensor:
    return ((pred - yb) ** 2).mean()


@pytest.mark.parametrize(
    "loss", [nn.functional.nll_loss, nn.MSELoss(), mean_squares, partial(mean_squares)]
)
def test_another_loss_is_told_before_training(loss: Any, learner: Learner) -> None:
    run = Runner(cbs=LabelSmoothing())
    begun: list[int] = []
    run.on("begin_epoch", lambda run: begun.append(1))
    with pytest.raises(TypeError, match=r"needs torch\.nn\.functional\.cross_entropy"):
        run.fit(1, with_loss(learner, loss))
    assert begun == []


@pytest.mark.parametrize(
    "loss",
    [nn.CrossEntropyLoss(label_smoothing=0.1), partial(cross_entropy, label_smoothing=0.1)],
)
def test_a_loss_that_smooths_already_is_told(loss: Any, learner: Learner) -> None:
    with pytest.raises(ValueError, match=r"label_smoothing=0\.1 already"):
        Runner(cbs=LabelSmoothing()).fit(1, with_loss(learner, loss))


def test_nothing_is_read_from_the_device(learner: Learner, no_sync: Any) -> None:
    run = Runner(cbs=LabelSmoothing())
    with no_sync:
        assert run.fit(2, learner).outcome == "completed"


@pytest.mark.parametrize(
    ("eps", "error"),
    [(-0.1, ValueError), (1.1, ValueError), (float("nan"), ValueError), ("0.1", TypeError)],
)
def test_bad_arguments_are_refused(eps: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="eps"):
        LabelSmoothing(eps)
