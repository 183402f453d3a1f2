"""Rates against torch's own schedulers in a loop written by hand."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as torch_schedulers

from eventtrain import AvgStatsCallback, Callback, DataBunch, Learner, Runner
from eventtrain.callbacks import (
    Checkpoint,
    GradientAccumulation,
    LRScheduler,
    OneCycle,
    ReduceLROnPlateau,
)

Make = Callable[..., Learner]
BATCHES = 3  # of the fixture's learner

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "step": lambda opt: torch_schedulers.StepLR(opt, 2),
    "multistep": lambda opt: torch_schedulers.MultiStepLR(opt, [2, 4, 4]),
    "exponential": lambda opt: torch_schedulers.ExponentialLR(opt, 0.9),
    "cosine": lambda opt: torch_schedulers.CosineAnnealingLR(opt, 9),
    "restarts": lambda opt: torch_schedulers.CosineAnnealingWarmRestarts(opt, 2),
    "polynomial": lambda opt: torch_schedulers.PolynomialLR(opt, 9),
    "lambda": lambda opt: torch_schedulers.LambdaLR(opt, lambda step: 1 / (1 + step)),
    "cyclic": lambda opt: torch_schedulers.CyclicLR(opt, 0.1, 0.4, cycle_momentum=False),
    "sequential": lambda opt: torch_schedulers.SequentialLR(
        opt,
        [
            torch_schedulers.LinearLR(opt, 0.1, total_iters=3),
            torch_schedulers.MultiStepLR(opt, [1, 2]),
        ],
        [8],
    ),
    "chained": lambda opt: torch_schedulers.ChainedScheduler(
        [torch_schedulers.LinearLR(opt, 0.1), torch_schedulers.MultiStepLR(opt, [2, 5])]
    ),
}


def watch(run: Runner, name: str = "lr") -> list[float]:
    """Return the list that gets the value that every step is taken with."""
    seen: list[float] = []
    run.on("begin_step", lambda run: seen.append(run.opt.param_groups[0][name]), priority=-900)
    return seen


def by_hand(learner: Learner, make: Any, epochs: int, step: str) -> list[float]:
    """Train with torch's scheduler, and return the rate of every step."""
    rates, scheduler = [], make(learner.opt)
    for _ in range(epochs):
        for xb, yb in learner.data.train_dl:
            rates.append(learner.opt.param_groups[0]["lr"])
            learner.loss_func(learner.model(xb), yb).backward()
            learner.opt.step()
            learner.opt.zero_grad()
            if step == "batch":
                scheduler.step()
        if step == "epoch":
            scheduler.step()
    return rates


def same_weights(one: Learner, other: Learner) -> bool:
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def interrupted(make: Make, callbacks: Callable[[], list[Any]], folder: Path, after: int) -> Any:
    """Fit 3 epochs, stop after some batches, go on with everything made anew."""
    run = Runner(cbs=[*callbacks(), Checkpoint(folder)])
    stop = {"when": lambda run: run.in_train and run.n_iter == after}
    run.on("after_batch", lambda run: run.token.cancel("fit"), **stop)
    run.fit(3, make())
    learner = make()
    run = Runner(cbs=[*callbacks(), Checkpoint(folder)])
    seen = watch(run)
    run.fit(3, learner, resume=folder)
    return learner, seen


# LRScheduler


@pytest.mark.parametrize("step", ["batch", "epoch"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_rates_and_weights_are_those_of_torch_by_hand(
    name: str, step: Any, make_learner: Make
) -> None:
    learner, reference = make_learner(), make_learner()
    run = Runner(cbs=LRScheduler(SCHEDULERS[name], step=step))
    seen = watch(run)
    run.fit(3, learner)
    assert seen == by_hand(reference, SCHEDULERS[name], 3, step)
    assert same_weights(learner, reference)


@pytest.mark.parametrize("after", [1, 3, 5, 8])
@pytest.mark.parametrize("step", ["batch", "epoch"])
@pytest.mark.parametrize("name", ["step", "cosine", "multistep"])
def test_a_resumed_fit_goes_on_with_the_same_rates(
    name: str, step: Any, after: int, make_learner: Make, tmp_path: Path
) -> None:
    reference = make_learner()
    rates = by_hand(reference, SCHEDULERS[name], 3, step)
    learner, seen = interrupted(
        make_learner, lambda: [LRScheduler(SCHEDULERS[name], step=step)], tmp_path, after
    )
    assert seen == rates[after:]
    assert same_weights(learner, reference)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_state_of_every_scheduler_survives_a_file_and_goes_on(
    name: str, make_learner: Make
) -> None:
    def fit(learner: Learner, load: dict[str, Any] | None) -> tuple[list[float], Any]:
        callback = LRScheduler(SCHEDULERS[name])
        run = Runner(cbs=callback)
        if load is not None:

            @run.on("begin_train", once=True)
            def go_on(run: Runner) -> None:
                run.opt.load_state_dict(load["opt"])
                callback.load_state_dict(load["callback"])

        seen = watch(run)
        run.fit(1, learner)
        return seen, callback

    learner = make_learner(6)
    expected = by_hand(make_learner(6), SCHEDULERS[name], 2, "batch")[6:]
    _, callback = fit(learner, None)
    file = io.BytesIO()
    torch.save({"opt": learner.opt.state_dict(), "callback": callback.state_dict()}, file)
    file.seek(0)
    seen, _ = fit(make_learner(6), torch.load(file, weights_only=True))
    assert seen == expected


def test_a_skipped_step_of_the_optimizer_is_none_of_the_scheduler(learner: Learner) -> None:
    run = Runner(cbs=LRScheduler(SCHEDULERS["exponential"]))
    seen = watch(run)
    run.on("begin_step", lambda run: run.token.cancel("step"), when=lambda r: r.batch_index == 1)
    run.fit(1, learner)
    assert seen == [0.1, 0.1 * 0.9]  # the handler that cancelled stood before the one that looks


def test_a_cancelled_batch_does_not_step_the_scheduler(learner: Learner) -> None:
    run = Runner(cbs=LRScheduler(SCHEDULERS["exponential"]))
    run.on("after_pred", lambda run: run.token.cancel("batch"), when=lambda r: r.batch_index == 0)
    run.fit(1, learner)
    assert run.lr_scheduler.scheduler.last_epoch == 2  # type: ignore[attr-defined]


def test_an_epoch_without_a_step_does_not_step_the_scheduler(learner: Learner) -> None:
    run = Runner(cbs=LRScheduler(SCHEDULERS["exponential"], step="epoch"))
    seen = watch(run)
    run.on("begin_epoch", lambda run: run.token.cancel("epoch"), when=lambda r: r.epoch == 0)
    run.fit(3, learner)
    assert seen == [0.1] * 3 + [pytest.approx(0.09)] * 3


def test_an_epoch_cut_short_counts_when_the_fit_goes_on(learner: Learner) -> None:
    run = Runner(cbs=LRScheduler(SCHEDULERS["exponential"], step="epoch"))
    seen = watch(run)
    run.on("after_step", lambda run: run.token.cancel("epoch"), when=lambda r: r.epoch == 0)
    run.fit(2, learner)
    assert seen == [0.1] + [pytest.approx(0.09)] * 3


@pytest.mark.parametrize("scope", ["fit", None])
def test_an_epoch_in_which_the_fit_ends_does_not_count(scope: str | None, learner: Learner) -> None:
    run = Runner(cbs=LRScheduler(SCHEDULERS["exponential"], step="epoch"))

    @run.on("after_step", when=lambda run: run.epoch == 1)
    def end(run: Runner) -> None:
        if scope is None:
            raise ArithmeticError
        run.token.cancel(scope)

    if scope is None:
        with pytest.raises(ArithmeticError):
            run.fit(3, learner)
    else:
        run.fit(3, learner)
    assert run.lr_scheduler.scheduler.last_epoch == 1  # type: ignore[attr-defined]


def test_the_rates_stay_after_the_fit(learner: Learner) -> None:
    Runner(cbs=LRScheduler(SCHEDULERS["exponential"])).fit(1, learner)
    assert learner.opt.param_groups[0]["lr"] == pytest.approx(0.1 * 0.9**3)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_second_fit_goes_through_the_schedule_again(name: str, learner: Learner) -> None:
    run = Runner(cbs=LRScheduler(SCHEDULERS[name]))
    seen = watch(run)
    run.fit(2, learner)
    run.fit(2, learner)
    assert seen[6:] == seen[:6]


def test_a_second_fit_begins_with_rates_that_were_set_in_between(
    learner: Learner, make_learner: Make
) -> None:
    run = Runner(cbs=LRScheduler(SCHEDULERS["lambda"]))
    seen = watch(run)
    run.fit(1, learner)
    learner.opt.param_groups[0]["lr"] = 0.6
    run.fit(1, learner)
    assert seen[3:] == pytest.approx([0.6, 0.3, 0.2])


def test_another_learner_begins_with_its_own_rates(make_learner: Make) -> None:
    first, other = make_learner(), make_learner()
    run = Runner(cbs=LRScheduler(SCHEDULERS["exponential"]))
    run.fit(1, first)
    seen = watch(run)
    left = first.opt.param_groups[0]["lr"]
    other.opt.param_groups[0]["lr"] = left
    run.fit(1, other)
    assert seen[0] == left


@pytest.mark.parametrize("fits", [1, 2])
def test_two_schedulers_on_one_optimizer_chain_as_torchs_do(fits: int, make_learner: Make) -> None:
    def warm_up(opt: Any) -> Any:
        return torch_schedulers.LinearLR(opt, 0.1, total_iters=4)

    second = LRScheduler(SCHEDULERS["exponential"])
    second.name = "second"
    run = Runner(cbs=[LRScheduler(warm_up), second])
    learner = make_learner()
    for _ in range(fits):
        seen = watch(run)
        run.fit(2, learner)
    reference = by_hand(
        make_learner(),
        lambda opt: torch_schedulers.ChainedScheduler(
            [warm_up(opt), SCHEDULERS["exponential"](opt)]
        ),
        2,
        "batch",
    )
    assert seen == pytest.approx(reference)


def test_validation_and_prediction_make_no_scheduler(learner: Learner) -> None:
    run = Runner(cbs=LRScheduler(SCHEDULERS["step"]))
    run.validate(learner)
    run.predict(learner, learner.data.valid_dl)
    assert run.lr_scheduler.scheduler is None  # type: ignore[attr-defined]
    assert "initial_lr" not in learner.opt.param_groups[0]


@pytest.mark.parametrize("step", ["batch", "epoch"])
def test_a_fit_of_no_epochs_changes_no_rate(step: Any, learner: Learner) -> None:
    Runner(cbs=LRScheduler(SCHEDULERS["exponential"], step=step)).fit(0, learner)
    assert learner.opt.param_groups[0]["lr"] == 0.1


def test_a_rate_that_is_a_tensor_stays_that_tensor(learner: Learner) -> None:
    rate = torch.tensor(0.1)
    learner.opt = torch.optim.SGD(learner.model.parameters(), lr=rate, foreach=False)
    run = Runner(cbs=LRScheduler(SCHEDULERS["exponential"]))
    run.fit(1, learner)
    run.fit(1, learner)
    assert learner.opt.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.1 * 0.9**3)


def test_what_make_returns_must_be_a_scheduler(learner: Learner) -> None:
    with pytest.raises(TypeError, match="must return a torch"):
        Runner(cbs=LRScheduler(lambda opt: None)).fit(1, learner)


def test_a_plateau_scheduler_is_sent_to_its_own_callback(learner: Learner) -> None:
    with pytest.raises(TypeError, match="callback ReduceLROnPlateau"):
        Runner(cbs=LRScheduler(torch_schedulers.ReduceLROnPlateau)).fit(1, learner)


def test_state_cannot_be_loaded_before_the_fit_begins(learner: Learner) -> None:
    run = Runner(cbs=LRScheduler(SCHEDULERS["step"]))
    run.fit(1, learner)
    state = run.lr_scheduler.state_dict()  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="begin_fit"):
        LRScheduler(SCHEDULERS["step"]).load_state_dict(state)


def test_bad_arguments_of_the_scheduler_are_refused() -> None:
    with pytest.raises(TypeError, match="make"):
        LRScheduler(0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'steps'"):
        LRScheduler(SCHEDULERS["step"], step="steps")  # type: ignore[arg-type]


# OneCycle


def one_cycle(opt: Any, total: int, **options: Any) -> Any:
    return torch_schedulers.OneCycleLR(opt, 0.5, total_steps=total, **options)


def test_one_cycle_is_torchs_over_the_whole_fit(make_learner: Make) -> None:
    learner, reference = make_learner(), make_learner()
    run = Runner(cbs=OneCycle(0.5, pct_start=0.4))
    seen = watch(run)
    run.fit(3, learner)
    make: Any = lambda opt: one_cycle(opt, 9, pct_start=0.4)  # noqa: E731
    assert seen == by_hand(reference, make, 3, "batch")
    assert same_weights(learner, reference)


def test_momentum_goes_the_other_way(learner: Learner) -> None:
    run = Runner(cbs=OneCycle(0.5))
    seen = watch(run, "momentum")
    run.fit(3, learner)
    assert seen[0] == 0.95
    assert min(seen) == pytest.approx(0.85, abs=0.01)


def test_accumulation_divides_the_steps_and_counts_what_is_left_over(make_learner: Make) -> None:
    run = Runner(cbs=[OneCycle(0.5, accumulate=2), GradientAccumulation(2)])
    result = run.fit(4, make_learner(5))
    scheduler = run.one_cycle.scheduler  # type: ignore[attr-defined]
    assert (result.steps, scheduler.total_steps) == (12, 12)
    assert scheduler.last_epoch == 11


def test_the_steps_can_be_told_where_the_loader_does_not_know(learner: Learner) -> None:
    learner.data = DataBunch(iter_only(learner.data.train_dl), None)
    with pytest.raises(ValueError, match="total_steps="):
        Runner(cbs=OneCycle(0.5)).fit(2, learner)
    run = Runner(cbs=OneCycle(0.5, total_steps=6))
    run.fit(2, learner)
    assert run.one_cycle.scheduler.last_epoch == 5  # type: ignore[attr-defined]


def iter_only(loader: Any) -> Any:
    class Stream:
        def __iter__(self) -> Any:
            return iter(loader)

    return Stream()


def test_when_more_steps_come_the_last_rate_is_kept(make_learner: Make) -> None:
    run = Runner(cbs=OneCycle(0.5, total_steps=4))
    seen = watch(run)
    assert run.fit(3, make_learner()).outcome == "completed"
    expected = by_hand(make_learner(4), lambda opt: one_cycle(opt, 4), 1, "batch")
    assert seen == expected + [expected[-1]] * 5


@pytest.mark.parametrize("after", [2, 3, 7])
def test_one_cycle_resumes(after: int, make_learner: Make, tmp_path: Path) -> None:
    reference = make_learner()
    rates = by_hand(reference, lambda opt: one_cycle(opt, 9), 3, "batch")
    learner, seen = interrupted(make_learner, lambda: [OneCycle(0.5)], tmp_path, after)
    assert seen == rates[after:]
    assert same_weights(learner, reference)


def test_a_second_fit_is_a_second_cycle(learner: Learner) -> None:
    run = Runner(cbs=OneCycle(0.5))
    seen = watch(run)
    run.fit(2, learner)
    run.fit(2, learner)
    assert seen[6:] == seen[:6]


def test_one_cycle_makes_nothing_of_a_fit_of_no_epochs(learner: Learner) -> None:
    run = Runner(cbs=OneCycle(0.5))
    assert run.fit(0, learner).outcome == "completed"
    assert learner.opt.param_groups[0]["lr"] == 0.1
    assert run.one_cycle.state_dict() == {}  # type: ignore[attr-defined]


def test_each_group_can_have_its_highest_rate(learner: Learner) -> None:
    groups = [{"params": [p]} for p in learner.model.parameters()]
    learner.opt = torch.optim.SGD(groups, lr=0.1)
    highest = [0.0, 0.0]
    run = Runner(cbs=OneCycle([0.2, 0.4], pct_start=0.5))

    @run.on("begin_step")
    def look(run: Runner) -> None:
        highest[:] = [max(h, g["lr"]) for h, g in zip(highest, run.opt.param_groups, strict=True)]

    run.fit(4, learner)
    assert highest == pytest.approx([0.2, 0.4])


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_lr": 0.0}, ValueError),
        ({"max_lr": []}, ValueError),
        ({"total_steps": 0}, ValueError),
        ({"total_steps": 2.0}, TypeError),
        ({"accumulate": 0}, ValueError),
        ({"accumulate": True}, TypeError),
        ({"accumulate": 2, "total_steps": 10}, ValueError),
        ({"pct_start": 2.0}, ValueError),
        ({"anneal_strategy": "sine"}, ValueError),
        ({"epochs": 3}, TypeError),
        ({"pct_begin": 0.1}, TypeError),
    ],
)
def test_bad_arguments_of_one_cycle_are_refused(options: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        OneCycle(**{"max_lr": 0.1, **options})


# ReduceLROnPlateau


class WriteLosses(Callback):
    """Writes a made-up loss into each epoch's row."""

    def __init__(self, values: list[float]) -> None:
        self.values = values

    def after_epoch(self, run: Runner) -> None:
        assert run.epoch is not None
        run.history[-1]["made_up"] = self.values[run.epoch]


VALUES = [3.0, 2.0, 2.0, 2.0, 1.0, 1.5, 1.4, 1.3]


def plateau_by_hand(opt: Any, values: list[float], **options: Any) -> list[float]:
    scheduler, rates = torch_schedulers.ReduceLROnPlateau(opt, **options), []
    for value in values:
        rates.append(opt.param_groups[0]["lr"])
        scheduler.step(value)
    return rates


def test_a_plateau_reduces_the_rate_as_torch_does(make_learner: Make) -> None:
    run = Runner(cbs=[ReduceLROnPlateau("made_up", patience=1, factor=0.5), WriteLosses(VALUES)])
    seen = watch(run)
    run.fit(len(VALUES), make_learner())
    expected = plateau_by_hand(make_learner().opt, VALUES, patience=1, factor=0.5)
    assert seen[::BATCHES] == expected
    assert len(set(expected)) == 3


def test_the_loss_of_the_validation_is_watched_by_default(learner: Learner) -> None:
    run = Runner(cbs=[AvgStatsCallback(report=None), ReduceLROnPlateau()])
    result = run.fit(2, learner)
    assert run.reduce_lr_on_plateau.scheduler.best == min(  # type: ignore[attr-defined]
        row["valid_loss"] for row in result.history
    )


@pytest.mark.parametrize("after", [4, 6, 7])
def test_a_plateau_resumes(after: int, make_learner: Make, tmp_path: Path) -> None:
    values = [1.0, 2.0, 3.0]

    def callbacks() -> list[Any]:
        return [ReduceLROnPlateau("made_up", patience=0), WriteLosses(values)]

    _, seen = interrupted(make_learner, callbacks, tmp_path, after)
    rates = plateau_by_hand(make_learner().opt, values, patience=0)
    assert seen == [rate for rate in rates for _ in range(BATCHES)][after:]


def test_a_missing_metric_is_told_with_those_that_there_are(learner: Learner) -> None:
    run = Runner(cbs=[AvgStatsCallback(report=None), ReduceLROnPlateau("val_loss")])
    with pytest.raises(ValueError, match=r"'val_loss'.*there are: train_loss, valid_loss"):
        run.fit(1, learner)


def test_a_missing_metric_is_told_where_nobody_measures(learner: Learner) -> None:
    with pytest.raises(ValueError, match="there are: none"):
        Runner(cbs=ReduceLROnPlateau()).fit(1, learner)


@pytest.mark.parametrize("scope", ["train", "validate", "epoch", "fit"])
def test_an_epoch_cut_short_may_lack_the_metric(scope: str, learner: Learner) -> None:
    run = Runner(cbs=ReduceLROnPlateau())
    event = "begin_train" if scope == "train" else "begin_validate"
    run.on(event, lambda run: run.token.cancel(scope))
    assert run.fit(1, learner).outcome == ("cancelled" if scope == "fit" else "completed")


def test_the_failure_of_an_epoch_is_not_hidden_by_a_missing_metric(learner: Learner) -> None:
    learner.loss_func = lambda pred, yb: 1 / 0
    with pytest.raises(ZeroDivisionError):
        Runner(cbs=ReduceLROnPlateau()).fit(1, learner)


def test_a_second_fit_begins_with_the_rate_of_the_first(learner: Learner) -> None:
    run = Runner(cbs=[ReduceLROnPlateau("made_up", patience=0), WriteLosses([1.0, 2.0, 3.0])])
    seen = watch(run)
    run.fit(3, learner)
    run.fit(3, learner)
    assert seen[9:] == seen[:9]
    assert len(set(seen)) == 2


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"monitor": 3}, TypeError),
        ({"factor": 1.5}, ValueError),
        ({"mode": "lowest"}, ValueError),
        ({"patient": 3}, TypeError),
    ],
)
def test_bad_arguments_of_a_plateau_are_refused(options: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        ReduceLROnPlateau(**options)


@pytest.mark.parametrize(
    "callback",
    [lambda: LRScheduler(SCHEDULERS["cosine"]), lambda: OneCycle(0.5)],
    ids=["LRScheduler", "OneCycle"],
)
def test_nothing_is_read_from_the_device(callback: Any, learner: Learner, no_sync: Any) -> None:
    run = Runner(cbs=callback())
    with no_sync:
        assert run.fit(2, learner).outcome == "completed"
