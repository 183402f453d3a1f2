"""Rates against torch's own schedulers in a loop written by hand."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rates import Make, WithoutGroups, WithoutRate, by_hand, interrupted, same_weights, watch
from torch.optim import lr_scheduler as torch_schedulers

from eventtrain import Learner, Runner
from eventtrain.callbacks import SWA, Checkpoint, LRScheduler, OneCycle, ReduceLROnPlateau

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


@pytest.mark.parametrize("step", ["batch", "epoch"])
def test_a_second_fit_begins_with_the_rate_that_its_scheduler_chooses(
    step: Any, learner: Learner
) -> None:
    make: Any = lambda opt: torch_schedulers.CyclicLR(opt, 0.001, 0.01, 4)  # noqa: E731
    run = Runner(cbs=LRScheduler(make, step=step))
    seen = watch(run)
    run.fit(2, learner)
    run.fit(2, learner)
    assert seen[0] == 0.001
    assert seen[6:] == seen[:6]


def test_a_second_fit_goes_through_the_schedule_again_when_others_put_rates_back(
    learner: Learner,
) -> None:
    scheduler = LRScheduler(lambda opt: torch_schedulers.MultiStepLR(opt, [1]), step="epoch")
    run = Runner(cbs=[scheduler, SWA(start=2, lr=0.05, anneal_epochs=1)])
    seen = watch(run)
    run.fit(4, learner)
    run.fit(4, learner)
    assert seen[12:] == seen[:12]


def test_a_second_fit_begins_with_rates_that_were_set_in_between(
    learner: Learner, make_learner: Make
) -> None:
    run = Runner(cbs=LRScheduler(SCHEDULERS["lambda"]))
    seen = watch(run)
    run.fit(1, learner)
    learner.opt.param_groups[0]["lr"] = 0.6
    run.fit(1, learner)
    assert seen[3:] == pytest.approx([0.6, 0.3, 0.2])


def test_a_second_fit_of_a_resumed_run_begins_where_its_first_did(
    make_learner: Make, tmp_path: Path
) -> None:
    def callbacks() -> list[Any]:
        return [LRScheduler(SCHEDULERS["exponential"]), Checkpoint(tmp_path)]

    run = Runner(callbacks())
    run.on("after_epoch", lambda run: run.token.cancel("fit"))
    run.fit(2, make_learner())
    learner, run = make_learner(), Runner(callbacks())
    learner.opt.param_groups[0]["lr"] = 0.7  # the checkpoint has another
    run.fit(2, learner, resume="auto")
    seen = watch(run)
    run.fit(1, learner)
    assert seen == pytest.approx([0.1, 0.09, 0.081])


@pytest.mark.parametrize("step", ["batch", "epoch"])
def test_reports_find_the_rate_of_what_comes_next(step: Any, learner: Learner) -> None:
    run = Runner(LRScheduler(SCHEDULERS["exponential"], step=step))
    event = "after_step" if step == "batch" else "after_epoch"
    found: list[float] = []
    run.on(event, lambda run: found.append(run.opt.param_groups[0]["lr"]), priority=-80)
    run.fit(1, learner)
    assert found[0] == pytest.approx(0.09)


def test_a_second_fit_keeps_the_rate_of_a_group_that_joined_in_the_first(learner: Learner) -> None:
    weight, bias = learner.model.parameters()
    learner.opt = torch.optim.SGD([weight], lr=0.1)
    run = Runner(cbs=LRScheduler(lambda opt: torch_schedulers.ExponentialLR(opt, 0.5), "epoch"))
    group = {"params": [bias], "lr": 0.8}
    run.on("begin_epoch", lambda run: run.opt.add_param_group(group), once=True)
    run.fit(1, learner)
    seen: list[list[float]] = []
    run.on("begin_epoch", lambda run: seen.append([g["lr"] for g in run.opt.param_groups]))
    run.fit(1, learner)
    assert seen == [[0.1, 0.4]]


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


SETTERS: dict[str, Callable[[], Any]] = {
    "LRScheduler": lambda: LRScheduler(SCHEDULERS["step"]),
    "OneCycle": lambda: OneCycle(0.1),
    "ReduceLROnPlateau": ReduceLROnPlateau,
}


@pytest.mark.parametrize("name", SETTERS)
def test_an_optimizer_without_a_rate_is_told_once(name: str, learner: Learner) -> None:
    learner.opt = WithoutRate(learner.model.parameters())
    told = rf"^{name} sets 'lr', but group 0 of WithoutRate has no such field \(there are: pace\)"
    with pytest.raises(ValueError, match=told) as caught:
        Runner(cbs=SETTERS[name]()).fit(1, learner)
    assert not any("as well" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("name", SETTERS)
def test_an_optimizer_without_groups_is_told_once(name: str, learner: Learner) -> None:
    learner.opt = WithoutGroups()
    with pytest.raises(TypeError, match=f"^{name} needs an optimizer with param_groups") as caught:
        Runner(cbs=SETTERS[name]()).fit(1, learner)
    assert not any("as well" in note for note in caught.value.__notes__)


def test_what_make_returns_must_be_a_scheduler(learner: Learner) -> None:
    with pytest.raises(TypeError, match="must return a torch"):
        Runner(cbs=LRScheduler(lambda opt: None)).fit(1, learner)


def test_a_plateau_scheduler_is_sent_to_its_own_callback(learner: Learner) -> None:
    with pytest.raises(TypeError, match="callback ReduceLROnPlateau"):
        Runner(cbs=LRScheduler(torch_schedulers.ReduceLROnPlateau)).fit(1, learner)


def test_a_scheduler_of_another_kind_is_told_how_it_is_stepped(learner: Learner) -> None:
    with pytest.raises(TypeError, match=r"run\.on\('after_step'"):
        Runner(cbs=LRScheduler(lambda opt: object())).fit(1, learner)


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


def test_nothing_is_read_from_the_device(learner: Learner, no_sync: Any) -> None:
    run = Runner(cbs=LRScheduler(SCHEDULERS["cosine"]))
    with no_sync:
        assert run.fit(2, learner).outcome == "completed"
