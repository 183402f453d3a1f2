"""Optimizers that compute the loss anew in their step, against loops written by hand."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eventtrain import AvgStatsCallback, Learner, Runner
from eventtrain.callbacks import (
    EMA,
    Checkpoint,
    GradientAccumulation,
    GradientClip,
    LabelSmoothing,
    LRFinder,
    LRScheduler,
    MixedPrecision,
    Mixup,
    Recorder,
)

Make = Callable[..., Learner]


def lbfgs(parameters: Any, **options: Any) -> torch.optim.LBFGS:
    return torch.optim.LBFGS(parameters, lr=0.5, max_iter=4, history_size=5, **options)


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3)
    )


def closing(learn: Learner, **options: Any) -> Learner:
    learn.model = net()
    learn.opt = lbfgs(learn.model.parameters(), **options)
    return learn


def by_hand(
    learn: Learner, epochs: int, loss_of: Callable[[Tensor, Tensor], Tensor] | None = None
) -> list[float]:
    """Train as torch's documentation does; return what each step returned: the first loss."""
    model, opt, firsts = learn.model, learn.opt, []
    loss_of = loss_of or (lambda x, y: learn.loss_func(model(x), y))
    for _ in range(epochs):
        model.train()
        for x, y in learn.data.train_dl:

            def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
                opt.zero_grad()
                loss = loss_of(x, y)
                loss.backward()
                return loss

            firsts.append(opt.step(closure).item())
        model.eval()
    return firsts


def same(one: Any, other: Any) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in ours.items())


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_a_fit_is_that_of_a_loop_by_hand(line_search: str | None, make_learner: Make) -> None:
    ours, theirs = (closing(make_learner(), line_search_fn=line_search) for _ in range(2))
    torch.manual_seed(7)
    run = Runner([AvgStatsCallback(), recorder := Recorder()])
    result = run.fit(3, ours)
    torch.manual_seed(7)
    firsts = by_hand(theirs, 3)
    assert same(ours.model, theirs.model)
    assert recorder.losses == firsts
    assert result.steps == 9
    means = [sum(firsts[i : i + 3]) / 3 for i in (0, 3, 6)]
    assert [row["train_loss"] for row in result.history] == pytest.approx(means)


def test_further_evaluations_fire_no_events_and_leave_the_loss_of_the_batch(
    make_learner: Make,
) -> None:
    learn, run = closing(make_learner(train=1, valid=0)), Runner()
    calls: list[str] = []
    losses: list[Tensor] = []
    learn.model.register_forward_hook(lambda *_: calls.append("model"))
    events = ["begin_batch", "after_pred", "after_loss", "after_backward", "begin_step"]
    for event in [*events, "after_step", "after_batch"]:
        run.on(event, lambda run, event=event: calls.append(event))
    run.on(["after_loss", "after_step", "after_batch"], lambda run: losses.append(run.loss))
    run.fit(1, learn)
    assert calls[:6] == ["begin_batch", "model", *events[1:]]
    assert calls[6:] == ["model"] * 3 + ["after_step", "after_batch"]
    assert losses[0] is losses[1] is losses[2]


def test_gradients_are_zeroed_after_the_step(make_learner: Make) -> None:
    learn = closing(make_learner())
    Runner().fit(1, learn)
    assert all(p.grad is None for p in learn.model.parameters())


def test_bfloat16_is_that_of_a_loop_by_hand(make_learner: Make) -> None:
    ours, theirs = closing(make_learner()), closing(make_learner())
    torch.manual_seed(7)
    Runner(MixedPrecision("bf16")).fit(2, ours)

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return theirs.loss_func(theirs.model(x), y)  # type: ignore[misc,no-any-return]

    torch.manual_seed(7)
    by_hand(theirs, 2, loss_of)
    assert same(ours.model, theirs.model)


def test_a_loss_of_parts_tells_those_of_the_batch(make_learner: Make) -> None:
    ours, theirs = closing(make_learner()), closing(make_learner())
    plain, parts = theirs.loss_func, []

    def loss_func(pred: Tensor, yb: Tensor) -> dict[str, Tensor]:
        loss = plain(pred, yb)  # type: ignore[misc]
        return {"loss": loss, "half": loss / 2}

    ours.loss_func = loss_func
    run = Runner()
    run.on("after_step", lambda run: parts.append(run.losses["half"].item()))
    torch.manual_seed(7)
    run.fit(1, ours)
    torch.manual_seed(7)
    firsts = by_hand(theirs, 1)
    assert same(ours.model, theirs.model)
    assert parts == [first / 2 for first in firsts]


def test_a_model_that_computes_its_loss_does_so_in_each_evaluation(make_learner: Make) -> None:
    ours, theirs = closing(make_learner()), closing(make_learner())
    own = ours.model

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = own

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"loss": nn.functional.cross_entropy(self.own(x), y)}

    ours.model, ours.loss_func = WithLoss(), None
    ours.forward = lambda model, batch: model(*batch)
    torch.manual_seed(7)
    Runner().fit(2, ours)
    torch.manual_seed(7)
    by_hand(theirs, 2)
    assert same(own, theirs.model)


def test_a_smoothed_loss_is_smoothed_in_each_evaluation(make_learner: Make) -> None:
    ours, theirs = closing(make_learner()), closing(make_learner())
    torch.manual_seed(7)
    Runner(LabelSmoothing(0.2)).fit(1, ours)
    torch.manual_seed(7)
    smooth = nn.CrossEntropyLoss(label_smoothing=0.2)
    by_hand(theirs, 1, lambda x, y: smooth(theirs.model(x), y))
    assert same(ours.model, theirs.model)


def test_rates_and_averages_go_by_its_steps(make_learner: Make) -> None:
    learn, ema = closing(make_learner()), EMA(0.5)
    schedule = LRScheduler(lambda opt: torch.optim.lr_scheduler.ExponentialLR(opt, 0.5))
    Runner([schedule, ema]).fit(1, learn)
    assert learn.opt.param_groups[0]["lr"] == pytest.approx(0.0625)
    assert ema.updates == 3


def test_a_range_test_leaves_no_trace(make_learner: Make) -> None:
    learn = closing(make_learner())
    Runner().fit(1, learn)
    before = copy.deepcopy((learn.model.state_dict(), learn.opt.state_dict()))
    Runner(LRFinder(0.01, 0.1, steps=3)).fit(1, learn)
    assert str(before) == str((learn.model.state_dict(), learn.opt.state_dict()))


@pytest.mark.parametrize(
    ("callback", "text"),
    [
        (lambda: GradientClip(1.0), "GradientClip cannot be used with LBFGS.*first of these"),
        (lambda: GradientAccumulation(2), "GradientAccumulation .*LBFGS.*n times as large"),
        (lambda: MixedPrecision("fp16"), r"float16 .*LBFGS.*MixedPrecision\('bf16'\)"),
    ],
)
def test_what_cannot_be_right_is_refused_when_the_fit_begins(
    callback: Callable[[], Any], text: str, make_learner: Make
) -> None:
    learn = closing(make_learner())
    before = copy.deepcopy(learn.model.state_dict())
    with pytest.raises(TypeError, match=text):
        Runner(callback()).fit(1, learn)
    assert all(torch.equal(value, before[key]) for key, value in learn.model.state_dict().items())


def penalize(run: Any) -> None:
    run.loss = run.loss + run.model[0].weight.square().sum()


def test_a_loss_that_a_handler_has_replaced_is_refused(make_learner: Make) -> None:
    run, before = Runner(), net()
    run.on("after_loss", penalize, during="train")
    learn = closing(make_learner())
    with pytest.raises(RuntimeError, match=r"run\.loss is another one: a handler has replaced it"):
        run.fit(1, learn)
    assert torch.equal(learn.model[0].weight, before[0].weight)


def test_a_loss_function_that_was_another_for_a_while_is_refused(make_learner: Make) -> None:
    with pytest.raises(RuntimeError, match="Mixup and CutMix exchange it"):
        Runner(Mixup(0.4)).fit(1, closing(make_learner()))


def test_a_batch_of_ones_own_is_refused_unless_the_step_is_ones_own_too(
    make_learner: Make,
) -> None:
    class Own(Runner):
        def one_batch(self) -> None:
            super().one_batch()

    with pytest.raises(TypeError, match="Own has a one_batch of its own: override optimizer_step"):
        Own().fit(1, closing(make_learner()))

    class OwnStep(Own):
        def optimizer_step(self, name: str | None = None) -> None:
            def closure() -> Tensor:
                self.opt.zero_grad()
                loss = self.loss_func(self.model(self.xb), self.yb)
                loss.backward()
                return loss  # type: ignore[no-any-return]

            with self.scope.step:
                self.emit.begin_step()
                self.opt.step(closure)

    learn = closing(make_learner())
    OwnStep().fit(1, learn)
    assert not torch.equal(learn.model[0].weight, net()[0].weight)


class Restless(torch.optim.SGD):
    """Needs a closure, by its signature alone."""

    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        first = closure()
        super().step()
        closure()
        super().step()
        return first


def test_any_optimizer_that_requires_a_closure_gets_one(make_learner: Make) -> None:
    ours, theirs = make_learner(), make_learner()
    for learn in (ours, theirs):
        learn.opt = Restless(learn.model.parameters(), lr=0.1)
    Runner().fit(2, ours)
    by_hand(theirs, 2)
    assert same(ours.model, theirs.model)


def test_a_step_that_was_cancelled_is_not_taken(make_learner: Make) -> None:
    learn, run = closing(make_learner(valid=0)), Runner()
    run.on("begin_step", lambda run: run.token.cancel("step"))
    assert run.fit(1, learn).steps == 0
    assert torch.equal(learn.model[0].weight, net()[0].weight)


@pytest.mark.parametrize(
    ("event", "at"), [("after_step", 2), ("begin_step", 2), ("after_epoch", 1), ("after_loss", 4)]
)
def test_a_fit_goes_on_bit_for_bit_wherever_it_was_ended(
    event: str, at: int, make_learner: Make, tmp_path: Path
) -> None:
    whole, ended, resumed = (closing(make_learner()) for _ in range(3))
    torch.manual_seed(7)
    Runner(Checkpoint(tmp_path / "whole")).fit(3, whole)
    run, calls = Runner(Checkpoint(tmp_path / "cut")), []

    def stop(run: Any) -> None:
        calls.append(1)
        if len(calls) == at:
            run.token.cancel("fit", "enough")

    run.on(event, stop, during="train" if event != "after_epoch" else None)
    torch.manual_seed(7)
    run.fit(3, ended)
    torch.manual_seed(8)
    Runner(Checkpoint(tmp_path / "cut")).fit(3, resumed, resume="auto")
    assert same(resumed.model, whole.model)


def test_the_loss_of_a_batch_is_let_go_with_the_batch(make_learner: Make) -> None:
    learn, run = closing(make_learner()), Runner()
    losses: list[weakref.ref[Tensor]] = []
    alive: list[bool] = []
    run.on("begin_batch", lambda run: alive.append(any(each() is not None for each in losses)))
    run.on("after_loss", lambda run: losses.append(weakref.ref(run.loss)))
    run.fit(1, learn)
    assert len(alive) == 5
    assert not any(alive)
