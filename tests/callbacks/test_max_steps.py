"""A fit that ends after so many steps, not one more or less."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from eventtrain import Learner, Runner
from eventtrain.callbacks import Checkpoint, GradientAccumulation, MaxSteps


def test_the_fit_ends_after_exactly_n_steps(make_learner) -> None:
    result = Runner(MaxSteps(5)).fit(10, make_learner(train=3))
    assert (result.steps, result.outcome) == (5, "cancelled")
    assert result.reason == "5 optimizer steps were asked for"


def test_the_weights_are_those_of_a_loop_of_n_steps(make_learner) -> None:
    ours, theirs = make_learner(), make_learner()
    Runner(MaxSteps(5)).fit(10, ours)
    batches = list(theirs.data.train_dl)
    for step in range(5):
        x, y = batches[step % 3]
        nn.functional.cross_entropy(theirs.model(x), y).backward()
        theirs.opt.step()
        theirs.opt.zero_grad()
    assert torch.equal(ours.model.weight, theirs.model.weight)


def test_no_gradient_is_left_for_the_next_fit(learner: Learner) -> None:
    Runner(MaxSteps(2)).fit(1, learner)
    assert learner.model.weight.grad is None


def test_everybody_sees_the_last_step(learner: Learner) -> None:
    seen: list[int] = []
    run = Runner(MaxSteps(2))
    run.on("after_step", lambda run: seen.append(run.steps), priority=-500)
    run.fit(1, learner)
    assert seen == [1, 2]


def test_steps_that_were_cancelled_do_not_count(make_learner) -> None:
    result = Runner([MaxSteps(3), GradientAccumulation(2)]).fit(9, make_learner(train=4))
    assert result.steps == 3


def test_a_last_group_that_is_stepped_after_the_batches_counts(make_learner) -> None:
    learner = make_learner(train=3)
    batches = list(learner.data.train_dl)
    learner.data.train_dl = type("Unsized", (), {"__iter__": lambda self: iter(batches)})()
    result = Runner([MaxSteps(2), GradientAccumulation(2)]).fit(9, learner)
    assert (result.steps, result.outcome) == (2, "cancelled")


def test_fewer_steps_than_n_end_nothing(learner: Learner) -> None:
    assert Runner(MaxSteps(100)).fit(2, learner).outcome == "completed"


def test_a_second_fit_counts_from_the_start(learner: Learner) -> None:
    run = Runner(MaxSteps(4))
    run.fit(9, learner)
    assert run.fit(9, learner).steps == 4


@pytest.mark.parametrize("interrupted_after", [2, 3, 4])
def test_a_resumed_fit_ends_at_the_same_step(
    make_learner, tmp_path: Path, interrupted_after: int
) -> None:
    whole = make_learner()
    Runner(MaxSteps(5)).fit(9, whole)
    first = Runner([MaxSteps(interrupted_after), Checkpoint(tmp_path, every_steps=1)])
    first.fit(9, make_learner())
    learner = make_learner()
    result = Runner([MaxSteps(5), Checkpoint(tmp_path)]).fit(9, learner, resume="auto")
    assert result.steps == 5
    assert torch.equal(learner.model.weight, whole.model.weight)


def test_a_fit_that_was_over_takes_no_more_steps_when_resumed(make_learner, tmp_path: Path) -> None:
    for resume in (None, "auto"):
        run = Runner([MaxSteps(4), Checkpoint(tmp_path, every_steps=1)])
        result = run.fit(9, make_learner(), resume=resume)
    assert (result.steps, result.outcome) == (4, "cancelled")


def test_a_fit_that_had_more_steps_than_n_begins_no_batch_when_resumed(
    make_learner, tmp_path: Path
) -> None:
    first = Runner([MaxSteps(9), Checkpoint(tmp_path, every_steps=1)])
    first.on("after_batch", lambda run: run.token.cancel("fit") if run.steps == 4 else None)
    first.fit(9, make_learner())
    begun: list[int] = []
    second = Runner([MaxSteps(4), Checkpoint(tmp_path)])
    second.on("begin_batch", lambda run: begun.append(run.n_iter), priority=500)
    result = second.fit(9, make_learner(), resume="auto")
    assert (result.steps, result.outcome, begun) == (4, "cancelled", [])


def test_nothing_follows_the_batch_of_the_last_step(make_learner) -> None:
    opened: list[str] = []
    run = Runner(MaxSteps(3))
    run.on(["begin_batch", "begin_validate"], lambda run: opened.append(run.phase), priority=2000)
    assert run.fit(2, make_learner(train=3)).outcome == "cancelled"
    assert opened == ["train"] * 3


def test_validation_and_prediction_alone_are_left_alone(learner: Learner) -> None:
    run = Runner(MaxSteps(1))
    run.fit(1, learner)
    assert run.validate(learner).outcome == "completed"
    assert len(run.predict(learner, learner.data.valid_dl)) == 8


@pytest.mark.parametrize(("n", "error"), [(0, ValueError), (1.0, TypeError), (True, TypeError)])
def test_bad_arguments_are_refused(n: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="n must be"):
        MaxSteps(n)
