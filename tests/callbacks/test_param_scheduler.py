"""Schedules against their formulas, and the values that the optimizer steps with."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from eventtrain import DataBunch, Learner, Runner
from eventtrain.callbacks import (
    Checkpoint,
    ParamScheduler,
    combine_scheds,
    cos_1cycle_anneal,
    sched_cos,
    sched_exp,
    sched_lin,
    sched_none,
)
from eventtrain.priorities import POLICY

Make = Callable[..., Learner]


class Stream:
    """A loader of unknown length."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> Any:
        return iter(self.loader)


def watch(run: Runner, name: str = "lr") -> list[Any]:
    """Return the list that gets the field's value in every step, of all groups."""
    seen: list[Any] = []
    run.on("begin_step", lambda run: seen.append([g[name] for g in run.opt.param_groups]))
    return seen


def two_groups(learner: Learner, **options: Any) -> Learner:
    groups = [{"params": [p]} for p in learner.model.parameters()]
    learner.opt = torch.optim.SGD(groups, lr=0.1, **options)
    return learner


# Schedules


def test_a_straight_line_has_its_ends_and_its_middle() -> None:
    schedule = sched_lin(2.0, 4.0)
    assert [schedule(p) for p in (0.0, 0.5, 1.0)] == [2.0, 3.0, 4.0]


def test_ends_may_be_tensors() -> None:
    schedule = sched_lin(torch.tensor(1.0), torch.tensor(3.0))  # type: ignore[arg-type]
    assert schedule(0.5) == 2.0


@pytest.mark.parametrize("position", [0.0, 0.1, 0.25, 0.5, 0.9, 1.0])
def test_the_cosine_is_that_of_torchs_annealing(position: float) -> None:
    expected = torch.optim.lr_scheduler.OneCycleLR._annealing_cos(0.3, 0.01, position)
    assert sched_cos(0.3, 0.01)(position) == pytest.approx(expected, rel=1e-12)


def test_the_exponential_goes_by_equal_factors() -> None:
    schedule = sched_exp(1e-4, 1.0)
    assert [schedule(i / 4) for i in range(5)] == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1.0])


@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0)])
def test_the_exponential_refuses_ends_that_no_factor_joins(ends: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="sched_exp"):
        sched_exp(*ends)


def test_none_stays_at_its_start() -> None:
    assert [sched_none(0.3, 9)(p) for p in (0.0, 0.5, 1.0)] == [0.3] * 3


def test_a_cycle_has_its_low_high_and_end_where_they_belong() -> None:
    schedule = combine_scheds([0.3, 0.7], cos_1cycle_anneal(0.2, 0.6, 0.06))
    values = [schedule(p) for p in (0.0, 0.15, 0.3, 0.65, 1.0)]
    assert values == pytest.approx([0.2, 0.4, 0.6, 0.33, 0.06])


def test_combined_schedules_are_each_given_the_whole_way() -> None:
    def own_position(p: float) -> float:
        return p

    schedule = combine_scheds([0.25, 0.25, 0.5], [own_position] * 3)
    positions = [0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0]
    assert [schedule(p) for p in positions] == pytest.approx([0, 0.5, 0, 0.5, 0, 0.5, 1])


SCHEDULES = {
    "lin": sched_lin(0.1, 0.9),
    "cos": sched_cos(0.1, 0.9),
    "exp": sched_exp(0.1, 0.9),
    "none": sched_none(0.5),
    "combined": combine_scheds(
        [0.2, 0.3, 0.5], [sched_none(0.1), sched_exp(0.1, 0.9), sched_cos(0.9, 0.2)]
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_take_tensors_as_they_take_floats(name: str) -> None:
    schedule = SCHEDULES[name]
    positions = torch.linspace(0, 1, 21, dtype=torch.float64)
    expected = torch.tensor([schedule(float(p)) for p in positions], dtype=torch.float64)
    together = torch.as_tensor(schedule(positions), dtype=torch.float64).expand(21)
    torch.testing.assert_close(together, expected)
    torch.testing.assert_close(
        torch.as_tensor(schedule(positions[7]), dtype=torch.float64), expected[7]
    )


@pytest.mark.parametrize("pcts", [[0.3, 0.6], [0.5, 0.6], [1.2, -0.2], [1.0, 0.0]])
def test_shares_that_do_not_add_up_are_refused(pcts: list[float]) -> None:
    with pytest.raises(ValueError, match="sum of 1"):
        combine_scheds(pcts, [sched_none(1), sched_none(2)])


def test_shares_that_were_rounded_are_taken() -> None:
    schedule = combine_scheds([0.3333334] * 3, [sched_none(value) for value in (1, 2, 3)])
    assert [schedule(position) for position in (0, 0.5, 1)] == [1, 2, 3]


def test_as_many_shares_as_schedules_are_needed() -> None:
    with pytest.raises(ValueError, match="2 pcts for 1 scheds"):
        combine_scheds([0.5, 0.5], [sched_none(1)])


# The callback


def test_weights_are_those_of_a_loop_that_sets_the_rate_itself(make_learner: Make) -> None:
    learner, by_hand = make_learner(), make_learner()
    Runner(cbs=ParamScheduler("lr", sched_cos(0.5, 0.01))).fit(4, learner)
    batches = list(by_hand.data.train_dl)
    for i in range(4 * len(batches)):
        position = i / (4 * len(batches))
        by_hand.opt.param_groups[0]["lr"] = 0.01 + 0.49 * (1 + math.cos(math.pi * position)) / 2
        xb, yb = batches[i % len(batches)]
        by_hand.loss_func(by_hand.model(xb), yb).backward()
        by_hand.opt.step()
        by_hand.opt.zero_grad()
    for one, other in zip(learner.model.parameters(), by_hand.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_the_value_is_set_before_every_training_batch(learner: Learner) -> None:
    run = Runner(cbs=ParamScheduler("lr", sched_lin(0.0, 1.0)))
    seen = watch(run)
    run.fit(2, learner)
    assert seen == [[pytest.approx(i / 6)] for i in range(6)]


def test_code_of_ones_own_comes_before_it_and_reports_after(learner: Learner) -> None:
    rates: dict[int, float] = {}
    run = Runner(cbs=ParamScheduler("lr", sched_none(0.25)))
    for priority in (POLICY + 1, POLICY - 1):
        look = lambda run, p=priority: rates.update({p: run.opt.param_groups[0]["lr"]})  # noqa: E731
        run.on("begin_batch", look, priority=priority, once=True)
    run.fit(1, learner)
    assert rates == {POLICY + 1: 0.1, POLICY - 1: 0.25}


def test_the_last_value_stays_after_the_fit(learner: Learner) -> None:
    Runner(cbs=ParamScheduler("lr", sched_lin(0.0, 1.0))).fit(2, learner)
    assert learner.opt.param_groups[0]["lr"] == pytest.approx(5 / 6)


def test_validation_and_prediction_change_no_value(learner: Learner) -> None:
    run = Runner(cbs=ParamScheduler("lr", sched_none(7.0)))
    run.validate(learner)
    run.predict(learner, learner.data.valid_dl)
    assert learner.opt.param_groups[0]["lr"] == 0.1


def test_one_function_serves_all_groups(learner: Learner) -> None:
    run = Runner(cbs=ParamScheduler("lr", sched_lin(0.0, 1.0)))
    seen = watch(run)
    run.fit(1, two_groups(learner))
    assert seen[1] == pytest.approx([1 / 3, 1 / 3])


def test_groups_can_have_a_function_each(learner: Learner) -> None:
    run = Runner(cbs=ParamScheduler("lr", [sched_none(0.25), sched_lin(0.0, 1.0)]))
    seen = watch(run)
    run.fit(1, two_groups(learner))
    assert seen[2] == pytest.approx([0.25, 2 / 3])


def test_another_number_of_functions_than_of_groups_is_told_before_training(
    learner: Learner,
) -> None:
    run = Runner(cbs=ParamScheduler("lr", [sched_none(0.1)] * 3))
    with pytest.raises(ValueError, match="3 schedules for 2 groups"):
        run.fit(1, two_groups(learner))
    assert run.result is not None and run.result.steps == 0


def test_weight_decay_and_momentum_can_be_scheduled_beside_the_rate(learner: Learner) -> None:
    names = ("lr", "momentum", "weight_decay")
    run = Runner(cbs=[ParamScheduler(name, sched_lin(0.0, 0.3)) for name in names])
    seen = [watch(run, name) for name in names]
    run.fit(1, two_groups(learner))
    assert seen[0] == seen[1] == seen[2]
    assert seen[0][2] == pytest.approx([0.2, 0.2])


def test_momentum_is_the_first_beta_of_adam(learner: Learner) -> None:
    learner.opt = torch.optim.Adam(learner.model.parameters(), betas=(0.9, 0.99))
    run = Runner(cbs=ParamScheduler("momentum", sched_lin(0.95, 0.85)))
    seen = watch(run, "betas")
    run.fit(1, learner)
    assert [betas[0] for (betas,) in seen] == pytest.approx([0.95, 0.95 - 0.1 / 3, 0.95 - 0.2 / 3])
    assert {betas[1] for (betas,) in seen} == {0.99}
    assert "momentum" not in learner.opt.param_groups[0]


def test_a_rate_that_is_a_tensor_stays_that_tensor(learner: Learner, no_sync: Any) -> None:
    rate = torch.tensor(0.1)
    learner.opt = torch.optim.SGD(learner.model.parameters(), lr=rate, foreach=False)
    run = Runner(cbs=ParamScheduler("lr", sched_lin(0.0, 0.3)))
    run.fit(1, learner)
    assert learner.opt.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.2)


def test_a_rate_that_is_a_tensor_takes_one_of_another_shape(learner: Learner) -> None:
    rate = torch.tensor(0.1)
    learner.opt = torch.optim.SGD(learner.model.parameters(), lr=rate, foreach=False)
    Runner(cbs=ParamScheduler("lr", sched_none(torch.tensor([0.5])))).fit(1, learner)
    assert learner.opt.param_groups[0]["lr"] is rate
    assert rate.item() == 0.5


def test_a_beta_that_is_a_tensor_stays_that_tensor(learner: Learner) -> None:
    betas = (torch.tensor(0.9), torch.tensor(0.99))
    learner.opt = torch.optim.Adam(learner.model.parameters(), betas=betas, foreach=False)
    run = Runner(cbs=ParamScheduler("momentum", sched_lin(0.9, 0.6)))
    run.fit(1, learner)
    assert learner.opt.param_groups[0]["betas"][0] is betas[0]
    assert betas[0].item() == pytest.approx(0.7)


def test_an_unknown_field_is_told_with_those_that_there_are(learner: Learner) -> None:
    run = Runner(cbs=ParamScheduler("learning_rate", sched_none(1)))
    with pytest.raises(ValueError, match=r"no such field \(there are: lr, momentum"):
        run.fit(1, learner)


@pytest.mark.parametrize(("optimizer", "field"), [("Adam", "alpha"), ("Adagrad", "momentum")])
def test_momentum_alone_may_be_a_beta_and_only_where_there_are_some(
    optimizer: str, field: str, learner: Learner
) -> None:
    learner.opt = getattr(torch.optim, optimizer)(learner.model.parameters())
    with pytest.raises(ValueError, match=f"sets '{field}', but group 0 of {optimizer} has no such"):
        Runner(cbs=ParamScheduler(field, sched_none(0.5))).fit(1, learner)


def test_an_optimizer_without_groups_is_told(learner: Learner) -> None:
    class Plain:
        def step(self) -> None: ...
        def zero_grad(self) -> None: ...

    learner.opt = Plain()
    with pytest.raises(TypeError, match="param_groups"):
        Runner(cbs=ParamScheduler("lr", sched_none(1))).fit(1, learner)


def test_a_loader_that_gives_more_than_it_said_ends_at_one(learner: Learner) -> None:
    class Modest(Stream):
        def __len__(self) -> int:
            return 1

    learner.data = DataBunch(Modest(learner.data.train_dl), None)
    run = Runner(cbs=ParamScheduler("lr", sched_lin(0.0, 1.0)))
    seen = watch(run)
    with pytest.warns(RuntimeWarning, match="gave 3 batches, and its length is 1"):
        run.fit(1, learner)
    assert [value for (value,) in seen] == [0.0, 1.0, 1.0]


def test_a_second_fit_goes_through_the_schedule_again(learner: Learner) -> None:
    run = Runner(cbs=ParamScheduler("lr", sched_lin(0.0, 1.0)))
    seen = watch(run)
    run.fit(1, learner)
    run.fit(1, learner)
    assert seen[:3] == seen[3:]


def test_a_fit_of_no_epochs_changes_nothing(learner: Learner) -> None:
    assert Runner(cbs=ParamScheduler("lr", sched_none(9))).fit(0, learner).outcome == "completed"
    assert learner.opt.param_groups[0]["lr"] == 0.1


def test_cancelled_batches_count_for_the_position(learner: Learner) -> None:
    run = Runner(cbs=ParamScheduler("lr", sched_lin(0.0, 1.0)))
    seen = watch(run)
    run.on("after_pred", lambda run: run.token.cancel("batch"), when=lambda run: run.n_iter == 1)
    run.fit(2, learner)
    assert [value for (value,) in seen] == pytest.approx([0, 2 / 6, 3 / 6, 4 / 6, 5 / 6])


def test_a_resumed_fit_ends_like_one_that_was_never_interrupted(
    make_learner: Make, tmp_path: Path
) -> None:
    def callbacks() -> list[Any]:
        schedule = combine_scheds([0.3, 0.7], cos_1cycle_anneal(0.1, 0.5, 0.01))
        return [ParamScheduler("lr", schedule), Checkpoint(tmp_path)]

    whole, first, second = make_learner(), make_learner(), make_learner()
    Runner(cbs=callbacks()[:1]).fit(3, whole)
    run = Runner(cbs=callbacks())
    stop = {"when": lambda run: run.in_train and run.n_iter == 5}
    run.on("after_batch", lambda run: run.token.cancel("fit"), **stop)
    run.fit(3, first)
    Runner(cbs=callbacks()).fit(3, second, resume=tmp_path)
    assert not torch.equal(first.model.weight, whole.model.weight)
    assert torch.equal(second.model.weight, whole.model.weight)


def test_nothing_is_read_from_the_device(learner: Learner, no_sync: Any) -> None:
    run = Runner(cbs=[ParamScheduler("lr", sched_cos(0.1, 0.2)), ParamScheduler("momentum", float)])
    with no_sync:
        assert run.fit(2, learner).outcome == "completed"


@pytest.mark.parametrize("make", [sched_lin, sched_cos, sched_exp])
@pytest.mark.parametrize("bad", [None, "0.1", True, [0.1]])
def test_ends_that_are_no_numbers_are_refused_by_name(make: Any, bad: Any) -> None:
    with pytest.raises(TypeError, match=r"^start must be a number, got"):
        make(bad, 1.0)
    with pytest.raises(TypeError, match=r"^end must be a number, got"):
        make(1.0, bad)


def test_parts_that_cannot_be_called_are_refused_at_once() -> None:
    with pytest.raises(TypeError, match=r"must be a function of the position, got 0\.1"):
        combine_scheds([0.5, 0.5], [sched_none(0.1), 0.1])  # type: ignore[list-item]


@pytest.mark.parametrize("pcts", [1.0, None, ["1"], [True]])
def test_shares_that_are_no_numbers_are_refused(pcts: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="pcts"):
        combine_scheds(pcts, [sched_none(0.1), sched_none(0.2)])


def test_a_cycle_falls_along_a_cosine() -> None:
    cycle = combine_scheds([0.5, 0.5], cos_1cycle_anneal(0.1, 0.5, 0.01))
    for part in (0.1, 0.25, 0.4):
        expected = 0.01 + (0.5 - 0.01) * (1 + math.cos(math.pi * part)) / 2
        assert cycle(0.5 + part / 2) == pytest.approx(expected)


@pytest.mark.parametrize("position", [0.5, torch.tensor(0.5)])
def test_where_two_parts_meet_the_second_begins(position: Any) -> None:
    steps = combine_scheds([0.5, 0.5], [sched_lin(1.0, 1.0), sched_lin(2.0, 2.0)])
    assert float(steps(position)) == 2.0


def test_the_callback_is_named_after_its_field() -> None:
    run = Runner(cbs=[ParamScheduler("lr", sched_none(1)), ParamScheduler("momentum", float)])
    assert run.param_scheduler_lr.pname == "lr"  # type: ignore[attr-defined]
    assert run.param_scheduler_momentum.pname == "momentum"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((3, sched_none(1)), TypeError),
        (("params", sched_none(1)), ValueError),
        (("lr", []), ValueError),
        (("lr", 0.1), TypeError),
        (("lr", [sched_none(1), 0.1]), TypeError),
    ],
)
def test_bad_arguments_are_refused(arguments: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        ParamScheduler(*arguments)


def test_a_model_with_frozen_weights_does_not_mind(learner: Learner) -> None:
    assert isinstance(learner.model, nn.Linear)
    learner.model.bias.requires_grad_(False)
    result = Runner(cbs=ParamScheduler("lr", sched_none(0.2))).fit(1, learner)
    assert result.steps == 3
