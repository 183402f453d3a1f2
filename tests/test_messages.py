"""What beginners write, and the remedy that the message names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

from eventtrain import AvgStatsCallback, Callback, DataBunch, Learner, Runner, accuracy
from eventtrain.callback import OTHER_HOOKS
from eventtrain.callbacks import EMA, EarlyStopping, GradientClip, LRScheduler, ToDevice
from eventtrain.events import event_names

MODEL = nn.Linear(2, 2)
OPT = torch.optim.SGD(MODEL.parameters(), 0.1)
DATA = DataBunch([])


def learner_of(**changed: Any) -> Learner:
    parts = {"model": MODEL, "opt": OPT, "loss_func": nn.CrossEntropyLoss(), "data": DATA}
    return Learner(**{**parts, **changed})


WRITTEN: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: Runner(EMA(), GradientClip(1.0)), TypeError, r"Runner\(\[first, second\]\)"),
    (lambda: Runner([EMA]), TypeError, r"got the class EMA: pass EMA\(\.\.\.\)"),
    (lambda: Runner([print]), TypeError, r"run\.on\(event, function\)"),
    (lambda: Runner().on(print), TypeError, r"on\('after_loss', print\).*@run\.on"),
    (lambda: Runner().fit(learner_of(), 1), TypeError, r"fit\(epochs, learn\)"),
    (lambda: Runner().fit(1, MODEL), TypeError, r"Learner\(model, opt, loss_func, data\)"),
    (lambda: Runner().fit(1, learner_of(), resume=True), TypeError, "path or 'auto', got True"),
    (lambda: learner_of(opt=torch.optim.SGD), TypeError, "opt is the class SGD"),
    (lambda: learner_of(loss_func=nn.MSELoss), TypeError, "loss_func is the class MSELoss"),
    (lambda: learner_of(model=nn.Linear), TypeError, "model is the class Linear"),
    (lambda: learner_of(model=OPT, opt=MODEL), TypeError, "model and opt are swapped"),
    (lambda: learner_of(loss_func=DATA, data=nn.MSELoss()), TypeError, "are swapped"),
    (
        lambda: learner_of(opt=torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)),
        ValueError,
        r"SGD has 2 parameters, and none of them is one of Linear.*SGD\(model\.parameters",
    ),
    (lambda: AvgStatsCallback(torch.tensor(0.5)), TypeError, "pass accuracy itself"),
    (lambda: AvgStatsCallback(nn.MSELoss), TypeError, "MSELoss is a class: pass an instance"),
    (lambda: LRScheduler(StepLR(OPT, 1)), TypeError, r"LRScheduler\(lambda opt: StepLR\(opt, "),
    (lambda: ToDevice("gpu"), ValueError, "'cuda'.*or leave it out"),
]  # fmt: skip


@pytest.mark.parametrize(("write", "kind", "message"), WRITTEN, ids=[w[2] for w in WRITTEN])
def test_the_message_names_the_remedy(
    write: Callable[[], object], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        write()


def test_early_stopping_without_metrics_says_who_writes_them(learner: Learner) -> None:
    with pytest.raises(ValueError, match=r"there are: none.*AvgStatsCallback"):
        Runner(EarlyStopping()).fit(1, learner)


@pytest.mark.parametrize("hook", sorted(OTHER_HOOKS))
def test_a_hook_of_another_framework_is_told_with_ours(hook: str) -> None:
    with pytest.raises(TypeError, match=f"Mine.{hook} is a hook of another framework") as caught:
        type("Mine", (Callback,), {hook: lambda self: None})
    ours = str(caught.value).split()
    assert set(event_names()) & set(ours) or "one_batch" in ours


def test_a_helper_of_such_a_name_in_a_class_above_is_left_alone() -> None:
    class Base:
        def training_step(self) -> None: ...

    class Mine(Callback, Base): ...

    assert Mine().name == "mine"


def test_an_optimizer_with_parameters_of_the_loss_function_is_taken() -> None:
    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

    loss = Loss()
    opt = torch.optim.SGD(loss.parameters(), 0.1)
    assert learner_of(loss_func=loss, opt=opt).opt is opt


def test_a_metric_function_is_taken() -> None:
    assert AvgStatsCallback(accuracy).train_stats.names == ["loss", "accuracy"]
