"""Schedulers of timm in ``LRScheduler``, beside a loop that steps them by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests_of_jobs import needs, same_weights
from torch import nn
from torch.nn.functional import mse_loss

from eventtrain import CheckpointError, DataBunch, Learner, Runner, TensorLoader
from eventtrain.callbacks import Checkpoint, GradientAccumulation, LRScheduler

needs("timm")

from timm import scheduler as timm_schedulers

MAKE: dict[str, Any] = {
    "cosine": lambda opt, **how: timm_schedulers.CosineLRScheduler(
        opt, 4, lr_min=1e-3, cycle_limit=2, warmup_t=2, warmup_lr_init=1e-4, **how
    ),
    "noisy": lambda opt, **how: timm_schedulers.CosineLRScheduler(
        opt, 9, noise_range_t=(2, 7), **how
    ),
    "steps": lambda opt, **how: timm_schedulers.MultiStepLRScheduler(opt, [2, 3], 0.3, **how),
    "poly": lambda opt, **how: timm_schedulers.PolyLRScheduler(opt, 9, warmup_t=1, **how),
    "step": lambda opt, **how: timm_schedulers.StepLRScheduler(opt, 2, 0.5, **how),
    "wsd": lambda opt, **how: timm_schedulers.WSDLRScheduler(opt, 9, decay_t=8, **how),
    "own": lambda opt, **how: timm_schedulers.WSDLRScheduler(
        opt, 9, decay_t=8, decay_fn=lambda share: 1 - share**2, **how
    ),
    "tanh": lambda opt, **how: timm_schedulers.TanhLRScheduler(opt, 9, **how),
}
X = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
Y = X.sum(1, keepdim=True)


def learner() -> Learner:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    return Learner(model, opt, mse_loss, DataBunch(TensorLoader(X, Y, bs=4)))


def made(name: str, step: str) -> LRScheduler:
    how = {"t_in_epochs": step == "epoch"}
    return LRScheduler(lambda opt: MAKE[name](opt, **how), step=step)  # type: ignore[arg-type]


def watch(run: Runner) -> list[float]:
    rates: list[float] = []
    run.on("begin_step", lambda run: rates.append(run.opt.param_groups[0]["lr"]))
    return rates


def by_hand(learn: Learner, name: str, step: str, epochs: int) -> list[float]:
    scheduler, rates, updates = MAKE[name](learn.opt, t_in_epochs=step == "epoch"), [], 0
    for epoch in range(epochs):
        for x, y in zip(X.split(4), Y.split(4), strict=True):
            rates.append(learn.opt.param_groups[0]["lr"])
            mse_loss(learn.model(x), y).backward()
            learn.opt.step()
            learn.opt.zero_grad()
            updates += 1
            scheduler.step_update(updates)
        scheduler.step(epoch + 1)
    return rates


@pytest.mark.parametrize("step", ["batch", "epoch"])
@pytest.mark.parametrize("name", MAKE)
def test_rates_and_weights_are_those_of_timm_by_hand(name: str, step: str) -> None:
    ours, theirs, run = learner(), learner(), Runner(made(name, step))
    rates = watch(run)
    run.fit(4, ours)
    assert rates == by_hand(theirs, name, step, 4)
    assert len(set(rates)) > 1
    assert same_weights(ours.model, theirs.model)


@pytest.mark.parametrize("after", [2, 5, 6])
@pytest.mark.parametrize("step", ["batch", "epoch"])
@pytest.mark.parametrize("name", MAKE)
def test_a_resumed_fit_goes_on_with_the_same_rates(
    name: str, step: str, after: int, tmp_path: Path
) -> None:
    expected = by_hand(learner(), name, step, 4)
    run = Runner([made(name, step), Checkpoint(tmp_path)])
    run.on("after_batch", lambda run: run.token.cancel("fit"), when=lambda r: r.n_iter == after)
    run.fit(4, learner())
    again = Runner([made(name, step), Checkpoint(tmp_path)])
    rates = watch(again)
    again.fit(4, learner(), resume="auto")
    assert rates == expected[-len(rates) :]
    assert len(rates) >= 12 - after - 1


def test_a_second_fit_goes_through_the_schedule_again() -> None:
    run, learn = Runner(made("cosine", "batch")), learner()
    rates = watch(run)
    run.fit(3, learn)
    run.fit(3, learn)
    assert rates[9:] == rates[:9]


def test_a_group_of_batches_is_one_update() -> None:
    run = Runner([made("poly", "batch"), GradientAccumulation(3)])
    rates = watch(run)
    run.fit(3, learner())
    assert rates == by_hand(learner(), "poly", "batch", 1)


def test_another_length_is_refused(tmp_path: Path) -> None:
    run = Runner([made("poly", "batch"), Checkpoint(tmp_path)])
    run.on("after_batch", lambda run: run.token.cancel("fit"), when=lambda r: r.n_iter == 5)
    run.fit(4, learner())
    longer = LRScheduler(
        lambda opt: timm_schedulers.PolyLRScheduler(opt, 90, warmup_t=1, t_in_epochs=False)
    )
    with pytest.raises(CheckpointError, match="'t_initial': 90"):
        Runner([longer, Checkpoint(tmp_path)]).fit(4, learner(), resume="auto")


def test_a_fit_that_has_become_longer_than_its_schedule_says_so(tmp_path: Path) -> None:
    run = Runner([made("tanh", "batch"), Checkpoint(tmp_path)])
    run.fit(3, learner())
    again = Runner([made("tanh", "batch"), Checkpoint(tmp_path)])
    with pytest.warns(RuntimeWarning, match="TanhLRScheduler ends after 9 steps"):
        again.fit(5, learner(), resume="auto")


@pytest.mark.parametrize(("step", "other"), [("batch", "epoch"), ("epoch", "batch")])
def test_what_would_never_change_a_rate_is_refused(step: Any, other: str) -> None:
    scheduler = LRScheduler(lambda opt: MAKE["poly"](opt, t_in_epochs=other == "epoch"), step)
    with pytest.raises(ValueError, match=f'write LRScheduler\\(..., step="{other}"\\)'):
        Runner(scheduler).fit(1, learner())


@pytest.mark.filterwarnings("ignore:PlateauLRScheduler is deprecated:FutureWarning")
def test_a_plateau_is_sent_to_its_own_callback() -> None:
    scheduler = LRScheduler(timm_schedulers.PlateauLRScheduler, step="epoch")
    with pytest.raises(TypeError, match="callback ReduceLROnPlateau"):
        Runner(scheduler).fit(1, learner())


def test_a_scheduler_in_place_of_a_function_is_told_how() -> None:
    with pytest.raises(TypeError, match=r"LRScheduler\(lambda opt: PolyLRScheduler\(opt"):
        LRScheduler(MAKE["poly"](learner().opt))


def test_a_group_that_is_added_is_an_error_that_says_what_to_do() -> None:
    learn = learner()
    weight, bias = learn.model.parameters()
    learn.opt = torch.optim.SGD([weight], lr=0.1)
    run = Runner(made("poly", "batch"))
    run.on("begin_epoch", lambda run: run.opt.add_param_group({"params": [bias]}), once=True)
    with pytest.raises(ValueError, match="its PolyLRScheduler was made for 1"):
        run.fit(1, learn)
