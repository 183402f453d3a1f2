"""What is said of a batch that failed: its inputs, its loss, and what to write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eventtrain import AvgStatsCallback, Learner, Runner
from eventtrain.callbacks import (
    GradientAccumulation,
    History,
    MixedPrecision,
    Recorder,
    TerminateOnNaN,
)


def reduced(pred: Tensor, yb: Tensor) -> Tensor:
    return nn.functional.cross_entropy(pred, yb)


BAD_LOSSES: dict[str, tuple[Callable[..., Any], str]] = {
    "nothing": (lambda pred, yb: None, "the loss is None: loss_func lacks a return"),
    "a float": (lambda pred, yb: reduced(pred, yb).item(), "a plain number, which has no gradient"),
    "a tuple": (
        lambda pred, yb: (reduced(pred, yb), 1),
        "the loss is a tuple of 2: have loss_func",
    ),
    "text": (lambda pred, yb: "0.3", "the loss is a str: have loss_func return one tensor"),
    "not reduced": (
        lambda pred, yb: nn.functional.cross_entropy(pred, yb, reduction="none"),
        r"of shape \[4\] on cpu: .*reduction='mean'",
    ),
    "integers": (
        lambda pred, yb: (pred.argmax(1) != yb).sum(),
        "has no gradient: its dtype is torch.int64",
    ),
    "detached": (
        lambda pred, yb: reduced(pred, yb).detach(),
        "has no gradient: pred has one, so something in loss_func cuts it",
    ),
}


@pytest.mark.parametrize("name", BAD_LOSSES)
@pytest.mark.parametrize(
    "make",
    [
        lambda: None,
        lambda: GradientAccumulation(2),
        Recorder,
        lambda: History(batches=True),
        TerminateOnNaN,
        lambda: MixedPrecision("fp16", torch.amp.GradScaler("cpu")),
    ],
    ids=["alone", "accumulated", "recorded", "kept", "watched", "scaled"],
)
def test_a_loss_that_backward_cannot_take_is_named(name: str, make: Any, learner: Learner) -> None:
    learner.loss_func, message = BAD_LOSSES[name]
    run = Runner(make())
    with pytest.raises((AttributeError, RuntimeError, TypeError), match=message):
        run.fit(1, learner)
    assert run.result is not None and run.result.outcome == "failed"


def test_frozen_parameters_are_the_reason_where_they_are(learner: Learner) -> None:
    learner.model.requires_grad_(False)
    with pytest.raises(RuntimeError, match="all 2 parameters of Linear are frozen"):
        Runner().fit(1, learner)


def test_a_model_that_cuts_the_graph_is_the_reason_where_it_does(learner: Learner) -> None:
    learner.model.register_forward_hook(lambda module, x, out: out.detach())
    with pytest.raises(RuntimeError, match="pred has none either, so something in the model"):
        Runner().fit(1, learner)


def test_gradients_that_are_switched_off_are_the_reason_where_they_are(learner: Learner) -> None:
    with torch.no_grad(), pytest.raises(RuntimeError, match="gradients are switched off"):
        Runner().fit(1, learner)


def test_a_model_that_returns_nothing_is_named(learner: Learner) -> None:
    learner.model.register_forward_hook(lambda module, x, out: ())

    class Silent(nn.Linear):
        def forward(self, x: Tensor) -> Any: ...

    learner.model = Silent(5, 3)
    learner.opt = torch.optim.SGD(learner.model.parameters(), lr=0.1)
    with pytest.raises(
        (TypeError, AttributeError), match=r"model Silent returned None: its forward"
    ):
        Runner().fit(1, learner)


def test_a_loss_function_that_somebody_took_away_is_named(learner: Learner) -> None:
    run = Runner()
    run.on("begin_batch", lambda run: setattr(run.learn, "loss_func", None))
    with pytest.raises(TypeError, match="there is no loss to train Linear with"):
        run.fit(1, learner)


def test_an_error_of_the_loss_function_arrives_as_it_is_and_says_what_it_was_given(
    learner: Learner,
) -> None:
    learner.model.register_forward_hook(lambda module, x, out: {"logits": out})
    with pytest.raises(
        TypeError, match=r"pred, a dict with the keys 'logits', and yb, a int64 ten"
    ):
        Runner().fit(1, learner)


def test_an_error_behind_a_loss_that_is_right_is_left_alone(learner: Learner) -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Tensor:
            raise KeyError("mine")

    learner.loss_func = lambda pred, yb: Broken.apply(reduced(pred, yb))  # type: ignore[no-untyped-call]
    with pytest.raises(KeyError, match="mine") as caught:
        Runner().fit(1, learner)
    assert not hasattr(caught.value, "__notes__")


def test_a_loss_that_is_not_a_number_is_trained_on(learner: Learner) -> None:
    learner.loss_func = lambda pred, yb: reduced(pred, yb) * float("nan")
    assert Runner(AvgStatsCallback(report=None)).fit(1, learner).outcome == "completed"


@pytest.mark.parametrize("name", ["nothing", "a tuple", "text"])
def test_averages_name_the_loss_function(name: str, learner: Learner) -> None:
    learner.loss_func = BAD_LOSSES[name][0]
    with pytest.raises(TypeError, match="loss_func returned no single number but") as caught:
        Runner(AvgStatsCallback(report=None)).fit(1, learner)
    assert "epoch 0, batch 0" in caught.value.__notes__[0]


class WithoutLoss(Runner):
    """Keeps its loss for itself."""

    def one_batch(self) -> None:
        self.pred = self.learn.call_model(self.xb)
        self.emit.after_pred()
        loss = self.learn.compute_loss(self.pred, self.yb)
        self.emit.after_loss()
        if self.in_train:
            loss.backward()


class InValidation(Runner):
    """Trains on the validation batches, too."""

    def one_batch(self) -> None:
        self.pred = self.learn.call_model(self.xb)
        self.emit.after_pred()
        self.loss = self.learn.compute_loss(self.pred, self.yb)
        self.emit.after_loss()
        self.loss.backward()
        self.emit.after_backward()
        self.optimizer_step()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (WithoutLoss, "one_batch of WithoutLoss sets self.loss before it fires after_loss"),
        (InValidation, "in validation: return behind after_loss, unless self.in_train"),
    ],
)
def test_a_one_batch_of_ones_own_is_told_what_it_lacks(
    kind: type[Runner], said: str, learner: Learner
) -> None:
    with pytest.raises((RuntimeError, TypeError), match=said):
        kind(AvgStatsCallback(report=None)).fit(1, learner)
