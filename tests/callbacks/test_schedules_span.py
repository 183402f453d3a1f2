"""Everything that spans a fit, in fits that end elsewhere than after their epochs."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rates import Make, watch
from torch.optim import lr_scheduler as torch_schedulers

from eventtrain import CheckpointError, DataBunch, Learner, Runner
from eventtrain.callbacks import (
    SWA,
    Checkpoint,
    GradientAccumulation,
    LRScheduler,
    MaxSteps,
    OneCycle,
    ParamScheduler,
    Progress,
    ReduceLROnPlateau,
    sched_cos,
    sched_lin,
)

SPANNING: dict[str, Callable[..., Any]] = {
    "OneCycle": lambda **options: OneCycle(0.5, **options),
    "ParamScheduler": lambda **options: ParamScheduler("lr", sched_lin(0.5, 0.0), **options),
}


class Stream:
    """A loader that does not know its length."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> Any:
        return iter(self.loader)


def unsized(learner: Learner) -> Learner:
    learner.data = DataBunch(Stream(learner.data.train_dl), None)
    return learner


def rates_of(callbacks: list[Any], epochs: int, learner: Learner, **options: Any) -> list[float]:
    run = Runner(callbacks)
    seen = watch(run)
    run.fit(epochs, learner, **options)
    return seen


@pytest.fixture(params=SPANNING)
def spanning(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return SPANNING[request.param]


@pytest.mark.parametrize("steps", [1, 4, 6, 8])
def test_it_ends_where_max_steps_ends_the_fit(
    spanning: Any, steps: int, make_learner: Make
) -> None:
    # A loader of as many batches is a fit of as many steps.
    expected = rates_of([spanning()], 1, make_learner(train=steps))
    seen = rates_of([spanning(), MaxSteps(steps)], 1000, make_learner(train=3))
    assert seen == pytest.approx(expected)


def test_max_steps_behind_the_last_epoch_changes_nothing(spanning: Any, make_learner: Make) -> None:
    expected = rates_of([spanning()], 2, make_learner())
    assert rates_of([spanning(), MaxSteps(50)], 2, make_learner()) == pytest.approx(expected)


def test_with_max_steps_the_loader_need_not_know_its_length(
    spanning: Any, make_learner: Make
) -> None:
    expected = rates_of([spanning()], 1, make_learner(train=5))
    seen = rates_of([spanning(), MaxSteps(5)], 9, unsized(make_learner()))
    assert seen == pytest.approx(expected)


def test_the_steps_can_be_told(spanning: Any, make_learner: Make) -> None:
    expected = rates_of([spanning()], 1, make_learner(train=6))
    seen = rates_of([spanning(total_steps=6)], 2, unsized(make_learner()))
    assert seen == pytest.approx(expected)


def test_without_an_end_it_is_an_error_as_the_fit_begins(spanning: Any, make_learner: Make) -> None:
    with pytest.raises(ValueError, match=r"does not know its length\. Pass .*total_steps="):
        Runner(spanning()).fit(2, unsized(make_learner()))


def test_accumulation_makes_fewer_steps(make_learner: Make) -> None:
    expected = rates_of([OneCycle(0.5)], 1, make_learner(train=4))
    seen = rates_of([OneCycle(0.5), GradientAccumulation(2)], 2, make_learner(train=3))
    assert seen == pytest.approx(expected)


def test_another_number_of_batches_to_a_step_than_the_callbacks_is_refused(
    make_learner: Make,
) -> None:
    callbacks = [OneCycle(0.5, accumulate=2), GradientAccumulation(3)]
    with pytest.raises(ValueError, match=r"accumulate=2.*gradient_accumulation makes one of 3"):
        Runner(callbacks).fit(1, make_learner())


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_fit_of_another_length_is_not_gone_on_with_unless_told(
    spanning: Any, epochs: int, make_learner: Make, tmp_path: Path
) -> None:
    run = Runner([spanning(), Checkpoint(tmp_path)])
    run.on("after_epoch", lambda run: run.token.cancel("fit"))
    run.fit(2, make_learner())
    learner = make_learner()
    before = [p.detach().clone() for p in learner.model.parameters()]
    with pytest.raises(CheckpointError, match=rf"over the 6 steps.* total_steps={3 * epochs} goes"):
        Runner([spanning(), Checkpoint(tmp_path)]).fit(epochs, learner, resume="auto")
    assert all(torch.equal(*pair) for pair in zip(before, learner.model.parameters(), strict=True))


def test_told_its_steps_it_goes_on_in_a_schedule_over_these(
    spanning: Any, make_learner: Make, tmp_path: Path
) -> None:
    rates_of([spanning(), Checkpoint(tmp_path)], 2, make_learner())
    expected = rates_of([spanning()], 4, make_learner())
    again = [spanning(total_steps=12), Checkpoint(tmp_path)]
    seen = rates_of(again, 4, make_learner(), resume="auto")
    assert seen == pytest.approx(expected[6:])


def test_the_same_length_by_other_means_is_gone_on_with(
    spanning: Any, make_learner: Make, tmp_path: Path
) -> None:
    run = Runner([spanning(), Checkpoint(tmp_path)])
    run.on("after_epoch", lambda run: run.token.cancel("fit"))
    run.fit(2, make_learner())
    expected = rates_of([spanning()], 2, make_learner())
    again = [spanning(), MaxSteps(6), Checkpoint(tmp_path / "again")]
    seen = rates_of([again[0], again[2]], 2, make_learner(), resume=tmp_path)
    assert seen == pytest.approx(expected[3:])


def test_a_cycle_that_ends_before_the_resumed_fit_says_so(
    make_learner: Make, tmp_path: Path
) -> None:
    def callbacks() -> list[Any]:
        return [OneCycle(0.5, total_steps=6), Checkpoint(tmp_path)]

    rates_of(callbacks(), 2, make_learner())
    with pytest.warns(RuntimeWarning, match=r"total_steps=6.*fit of 12 steps.*total_steps=12"):
        rates_of(callbacks(), 4, make_learner(), resume="auto")


Schedule = Callable[[Any], Any]
ENDING: dict[str, Schedule] = {
    "cosine": lambda opt: torch_schedulers.CosineAnnealingLR(opt, 6),
    "polynomial": lambda opt: torch_schedulers.PolynomialLR(opt, 6),
    "linear": lambda opt: torch_schedulers.LinearLR(opt, total_iters=6),
    "sequence": lambda opt: torch_schedulers.SequentialLR(
        opt,
        [torch_schedulers.LinearLR(opt, total_iters=2), torch_schedulers.PolynomialLR(opt, 4)],
        milestones=[2],
    ),
    "chain": lambda opt: torch_schedulers.ChainedScheduler(
        [torch_schedulers.LinearLR(opt, total_iters=6), torch_schedulers.StepLR(opt, 2)]
    ),
}
ENDLESS: dict[str, Schedule] = {
    "step": lambda opt: torch_schedulers.StepLR(opt, 2),
    "exponential": lambda opt: torch_schedulers.ExponentialLR(opt, 0.9),
    "restarts": lambda opt: torch_schedulers.CosineAnnealingWarmRestarts(opt, 3),
}


@pytest.mark.parametrize("name", ENDING)
def test_a_scheduler_of_torchs_that_ends_before_the_resumed_fit_says_so(
    name: str, make_learner: Make, tmp_path: Path
) -> None:
    rates_of([LRScheduler(ENDING[name]), Checkpoint(tmp_path)], 2, make_learner())
    again = [LRScheduler(ENDING[name]), Checkpoint(tmp_path)]
    with pytest.warns(RuntimeWarning, match=r"ends after 6 steps.*had 6 when.*has 12"):
        rates_of(again, 4, make_learner(), resume="auto")


@pytest.mark.parametrize("name", ENDLESS)
def test_one_that_does_not_end_goes_on(name: str, make_learner: Make, tmp_path: Path) -> None:
    expected = rates_of([LRScheduler(ENDLESS[name])], 4, make_learner())
    rates_of([LRScheduler(ENDLESS[name]), Checkpoint(tmp_path)], 2, make_learner())
    again = [LRScheduler(ENDLESS[name]), Checkpoint(tmp_path)]
    assert rates_of(again, 4, make_learner(), resume="auto") == pytest.approx(expected[6:])


def test_torchs_one_cycle_does_not_begin_what_it_would_refuse_to_end(
    make_learner: Make, tmp_path: Path
) -> None:
    def callbacks() -> list[Any]:
        make = lambda opt: torch_schedulers.OneCycleLR(opt, 0.5, total_steps=6)  # noqa: E731
        return [LRScheduler(make), Checkpoint(tmp_path)]

    rates_of(callbacks(), 2, make_learner())
    with pytest.raises(CheckpointError, match=r"ends after 6 steps, and this fit has 12"):
        Runner(callbacks()).fit(4, make_learner(), resume="auto")


OTHERS: dict[str, tuple[Schedule, Schedule]] = {
    "cosine": (ENDING["cosine"], lambda opt: torch_schedulers.CosineAnnealingLR(opt, 12)),
    "step": (ENDLESS["step"], lambda opt: torch_schedulers.StepLR(opt, 4)),
    "milestones": (
        lambda opt: torch_schedulers.MultiStepLR(opt, [2, 4]),
        lambda opt: torch_schedulers.MultiStepLR(opt, [2, 8]),
    ),
    "sequence": (
        ENDING["sequence"],
        lambda opt: torch_schedulers.SequentialLR(
            opt,
            [torch_schedulers.LinearLR(opt, total_iters=2), torch_schedulers.PolynomialLR(opt, 9)],
            milestones=[2],
        ),
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_scheduler_that_was_made_longer_is_not_replaced_by_the_saved_one(
    name: str, make_learner: Make, tmp_path: Path
) -> None:
    one, other = OTHERS[name]
    rates_of([LRScheduler(one), Checkpoint(tmp_path)], 2, make_learner())
    again = [LRScheduler(other), Checkpoint(tmp_path)]
    with pytest.raises(CheckpointError, match=r"which would replace it. Make it as it was"):
        Runner(again).fit(4, make_learner(), resume="auto")


# Groups that are added during a fit

JOINING: dict[str, Callable[[], Any]] = {
    "OneCycle": lambda: OneCycle(0.5),
    "ParamScheduler": lambda: ParamScheduler("lr", sched_cos(0.5, 0.0)),
    "LambdaLR": lambda: LRScheduler(lambda opt: torch_schedulers.LambdaLR(opt, lambda n: 0.9**n)),
    "MultiplicativeLR": lambda: LRScheduler(
        lambda opt: torch_schedulers.MultiplicativeLR(opt, lambda n: 0.9)
    ),
    "CosineAnnealingWarmRestarts": lambda: LRScheduler(ENDLESS["restarts"]),
    "ReduceLROnPlateau": lambda: ReduceLROnPlateau("score", patience=0, threshold=0),
    **{name: lambda name=name: LRScheduler(ENDING[name]) for name in ENDING},
    **{f"endless {n}": lambda n=n: LRScheduler(ENDLESS[n]) for n in ENDLESS},
}


def joined(callback: Any, learner: Learner, **group: Any) -> list[list[float]]:
    """Fit with a group that is added in the second of three epochs; return all rates."""
    learner.opt = torch.optim.SGD([learner.model.weight], lr=0.1, momentum=0.9)
    run = Runner([callback])
    run.on("after_epoch", lambda run: run.history[-1].update(score=run.epoch))
    rates: list[list[float]] = []

    @run.on("begin_epoch", when=lambda run: run.epoch == 1)
    def add(run: Runner) -> None:
        run.opt.add_param_group({"params": [learner.model.bias], **group})

    run.on("begin_epoch", lambda run: rates.append([g["lr"] for g in run.opt.param_groups]))
    assert run.fit(3, learner).outcome == "completed"
    return [*rates, [g["lr"] for g in learner.opt.param_groups]]


@pytest.mark.parametrize("name", JOINING)
def test_a_group_that_is_added_follows_the_schedule(name: str, make_learner: Make) -> None:
    before = make_learner().model.bias.clone()
    learner = make_learner()
    rates = joined(JOINING[name](), learner)
    assert [len(each) for each in rates] == [1, 2, 2, 2]
    assert rates[-1][1] != rates[1][1] or rates[-1][0] == rates[1][0]
    assert not torch.equal(learner.model.bias, before)


@pytest.mark.parametrize("name", ["OneCycle", "ParamScheduler"])
def test_one_value_for_all_groups_is_that_of_a_group_that_is_added(
    name: str, make_learner: Make
) -> None:
    rates = joined(JOINING[name](), make_learner(), lr=7.0)
    assert rates[2][0] == rates[2][1] and rates[3][0] == rates[3][1]


def test_the_rate_that_an_added_group_has_is_its_base_rate(make_learner: Make) -> None:
    rates = joined(JOINING["LambdaLR"](), make_learner(), lr=1.0)
    assert rates[3][1] == pytest.approx(10 * rates[3][0])


@pytest.mark.parametrize("steps_before", [1, 4, 7])
@pytest.mark.parametrize("name", JOINING)
def test_a_resumed_schedule_knows_the_groups_that_were_added(
    name: str, steps_before: int, make_learner: Make, tmp_path: Path
) -> None:
    def fit(steps: int | None, resume: str | None = None) -> tuple[list[list[float]], Learner]:
        learner = make_learner()
        learner.opt = torch.optim.SGD([learner.model.weight], lr=0.1, momentum=0.9)
        run = Runner([JOINING[name](), *([Checkpoint(tmp_path)] if steps or resume else [])])
        run.on("after_epoch", lambda run: run.history[-1].update(score=run.epoch))
        rates: list[list[float]] = []

        @run.on("begin_epoch", when=lambda run: run.epoch > 0 and len(run.opt.param_groups) == 1)
        def add(run: Runner) -> None:
            run.opt.add_param_group({"params": [learner.model.bias], "lr": 0.05})

        run.on("after_batch", lambda run: rates.append([g["lr"] for g in run.opt.param_groups]))
        if steps:
            stop = lambda run: run.token.cancel("fit")  # noqa: E731
            run.on("after_step", stop, when=lambda run: run.steps == steps)
        run.fit(3, learner, resume=resume)
        return rates, learner

    expected, whole = fit(None)
    fit(steps_before)
    rates, resumed = fit(None, "auto")
    assert rates == expected[-len(rates) :]
    assert torch.equal(resumed.model.weight, whole.model.weight)
    assert torch.equal(resumed.model.bias, whole.model.bias)


EACH: dict[str, Callable[[], Any]] = {
    "OneCycle": lambda: OneCycle([0.5]),
    "OneCycle's momenta": lambda: OneCycle(0.5, max_momentum=[0.9]),
    "ParamScheduler": lambda: ParamScheduler("lr", [sched_lin(0.5, 0.0)]),
    "CyclicLR": lambda: LRScheduler(lambda opt: torch_schedulers.CyclicLR(opt, 0.1, 0.5)),
    "torch's OneCycleLR": lambda: LRScheduler(
        lambda opt: torch_schedulers.OneCycleLR(opt, 0.5, total_steps=9)
    ),
    "ReduceLROnPlateau": lambda: ReduceLROnPlateau("score", patience=0, min_lr=[0.0]),
    "SWA": lambda: SWA(0, [0.1]),
}


@pytest.mark.parametrize("name", EACH)
def test_a_group_for_which_there_is_no_setting_is_an_error(name: str, make_learner: Make) -> None:
    with pytest.raises(ValueError, match=r"group"):
        joined(EACH[name](), make_learner())


def test_a_group_beside_several_functions_is_an_error(make_learner: Make) -> None:
    learner = make_learner()
    learner.opt = torch.optim.SGD([{"params": [p]} for p in learner.model.parameters()], lr=0.1)
    functions = [lambda n: 0.9**n, lambda n: 0.8**n]
    run = Runner(LRScheduler(lambda opt: torch_schedulers.LambdaLR(opt, functions)))
    extra = {"params": [torch.nn.Parameter(torch.ones(1))]}
    run.on("begin_epoch", lambda run: run.opt.add_param_group(extra))
    with pytest.raises(ValueError, match=r"has 3 parameter groups.*LambdaLR was made for 2"):
        run.fit(1, learner)


# Bars


def test_the_bar_over_the_epochs_ends_with_max_steps(make_learner: Make) -> None:
    out = io.StringIO()
    Runner([Progress(disable=False, file=out, every=0), MaxSteps(7)]).fit(1000, make_learner())
    assert "/3 [" in out.getvalue() and "1000" not in out.getvalue()


def test_the_last_bar_over_the_batches_ends_with_max_steps(make_learner: Make) -> None:
    out = io.StringIO()
    Runner([Progress(disable=False, file=out, every=0), MaxSteps(8)]).fit(1000, make_learner())
    totals = [
        line.split("/")[1].split()[0] for line in out.getvalue().split("\r") if "train" in line
    ]
    assert totals[-1] == "2"


def test_a_schedule_spans_a_fit_by_steps_as_one_by_epochs(
    make_learner: Make, spanning: Callable[..., Any]
) -> None:
    run = Runner([spanning()])
    seen = watch(run)
    run.fit(steps=6, learn=unsized(make_learner()))
    assert seen == pytest.approx(rates_of([spanning()], 2, make_learner()))
