"""One cycle against torch's own in a loop written by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rates import Make, by_hand, interrupted, same_weights, watch
from torch.optim import lr_scheduler as torch_schedulers

from eventtrain import DataBunch, Learner, Runner
from eventtrain.callbacks import GradientAccumulation, OneCycle


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


def test_a_share_of_a_tenth_is_a_share_like_others(make_learner: Make) -> None:
    run = Runner(cbs=OneCycle(0.5, pct_start=0.1))
    seen = watch(run)
    run.fit(4, make_learner())
    make: Any = lambda opt: one_cycle(opt, 12, pct_start=0.1)  # noqa: E731
    assert seen == by_hand(make_learner(), make, 4, "batch")


def test_a_share_that_is_one_of_the_steps_that_were_told_is_refused() -> None:
    with pytest.raises(ValueError, match="pct_start"):
        OneCycle(0.5, pct_start=0.25, total_steps=4)


def test_a_share_that_is_one_of_the_steps_that_were_counted_is_refused(learner: Learner) -> None:
    run = Runner(cbs=OneCycle(0.5, pct_start=0.25, accumulate=3))
    with pytest.raises(ValueError, match="pct_start"):
        run.fit(4, learner)


def test_each_group_can_have_its_momenta(learner: Learner) -> None:
    groups = [{"params": [p]} for p in learner.model.parameters()]
    learner.opt = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    run = Runner(cbs=OneCycle(0.5, base_momentum=[0.8, 0.85], max_momentum=(0.9, 0.95)))
    first: list[float] = []
    run.on("begin_step", lambda run: first.extend(g["momentum"] for g in run.opt.param_groups))
    run.fit(4, learner)
    assert first[:2] == [0.9, 0.95]


@pytest.mark.parametrize(
    "options",
    [
        {"max_lr": np.float32(0.125)},
        {"max_lr": np.array([0.125])},
        {"total_steps": np.int64(6)},
        {"pct_start": np.float32(0.25)},
    ],
)
def test_numbers_of_numpy_are_numbers(options: Any, make_learner: Make) -> None:
    seen = []
    usual = {"max_lr": 0.125, "total_steps": 6, "pct_start": 0.25}
    for given in (usual, {**usual, **options}):
        run = Runner(cbs=OneCycle(**given))
        seen.append(watch(run))
        run.fit(2, make_learner())
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_lr": 0.0}, ValueError),
        ({"max_lr": []}, ValueError),
        ({"max_lr": None}, TypeError),
        ({"max_lr": "0.1"}, TypeError),
        ({"max_lr": True}, TypeError),
        ({"max_lr": torch.tensor(0.1)}, TypeError),
        ({"max_lr": [0.1, "0.2"]}, TypeError),
        ({"max_lr": [0.1, math.inf]}, ValueError),
        ({"pct_start": "0.3"}, TypeError),
        ({"pct_start": None}, TypeError),
        ({"pct_start": math.nan}, ValueError),
        ({"div_factor": "25"}, TypeError),
        ({"final_div_factor": None}, TypeError),
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
    with pytest.raises(error, match=next(iter(options))):
        OneCycle(**{"max_lr": 0.1, **options})


def test_nothing_is_read_from_the_device(learner: Learner, no_sync: Any) -> None:
    run = Runner(cbs=OneCycle(0.5))
    with no_sync:
        assert run.fit(2, learner).outcome == "completed"
