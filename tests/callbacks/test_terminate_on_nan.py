"""Losses that are not finite, found without a wait in every batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from eventtrain import Learner, Runner
from eventtrain.callbacks import Checkpoint, TerminateOnNaN
from eventtrain.priorities import METRICS


def spoiling(run: Runner, batch: int, value: float = float("nan"), phase: str = "train") -> None:
    """Make the loss of one batch bad."""

    @run.on("after_loss", during=phase, priority=900)
    def spoil(run: Runner) -> None:
        if run.batch_index == batch:
            run.loss = run.loss * value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_loss_ends_the_fit_at_the_next_look(make_learner, value: float) -> None:
    run = Runner(TerminateOnNaN(every=4))
    spoiling(run, 1, value)
    result = run.fit(3, make_learner(train=10))
    assert result.reason == "the loss was not finite in one of the batches 0 to 3 of epoch 0"
    assert result.steps == 3


def test_the_reason_names_the_batches_since_the_last_look(make_learner) -> None:
    run = Runner(TerminateOnNaN(every=4))
    spoiling(run, 6)
    result = run.fit(3, make_learner(train=10))
    assert result.reason == "the loss was not finite in one of the batches 4 to 7 of epoch 0"


def test_with_every_1_the_bad_loss_reaches_no_weight(make_learner) -> None:
    learner = make_learner(train=5)
    run = Runner(TerminateOnNaN(every=1))
    spoiling(run, 2)
    result = run.fit(1, learner)
    assert result.reason == "the loss was not finite in batch 2 of epoch 0"
    assert result.steps == 2
    assert torch.isfinite(learner.model.weight).all()


def test_the_end_of_an_epoch_is_a_look_too(make_learner) -> None:
    run = Runner(TerminateOnNaN(every=100))
    spoiling(run, 2)
    result = run.fit(3, make_learner(train=3))
    assert result.reason == "the loss was not finite in one of the batches 0 to 2 of epoch 0"
    assert result.steps == 3


def test_finite_losses_end_nothing(learner: Learner) -> None:
    assert Runner(TerminateOnNaN(every=2)).fit(3, learner).outcome == "completed"


def test_validation_losses_do_not_count(learner: Learner) -> None:
    run = Runner(TerminateOnNaN(every=1))
    spoiling(run, 0, phase="validate")
    assert run.fit(2, learner).outcome == "completed"
    assert run.validate(learner).outcome == "completed"


def test_no_batch_makes_the_host_wait_between_two_looks(
    learner: Learner, no_sync: AbstractContextManager[None]
) -> None:
    run = Runner(TerminateOnNaN(every=100))
    run.on("begin_train", lambda run: no_sync.__enter__() and None)
    run.on("after_train", lambda run: no_sync.__exit__(None, None, None) and None, priority=2000)
    assert run.fit(2, learner).steps == 6


def test_the_weights_are_those_of_a_fit_without_it(make_learner: Callable[..., Learner]) -> None:
    plain, watched = make_learner(), make_learner()
    Runner().fit(3, plain)
    Runner(TerminateOnNaN(every=2)).fit(3, watched)
    assert torch.equal(plain.model.weight, watched.model.weight)


def test_a_second_fit_starts_clean(learner: Learner) -> None:
    nan = TerminateOnNaN(every=100)
    run = Runner(nan)
    failing = run.on("begin_batch", lambda run: 1 / 0 if run.batch_index == 2 else None)
    loss_func = learner.loss_func
    learner.loss_func = lambda pred, yb: loss_func(pred, yb) * float("nan")
    with pytest.raises(ZeroDivisionError):
        run.fit(1, learner)
    failing.disconnect()
    learner.loss_func = loss_func
    torch.nn.init.zeros_(learner.model.weight)
    torch.nn.init.zeros_(learner.model.bias)
    assert run.fit(1, learner).outcome == "completed"


def test_a_resumed_fit_looks_where_the_whole_one_would(make_learner, tmp_path: Path) -> None:
    first = Runner([TerminateOnNaN(every=4), Checkpoint(tmp_path, every_steps=1)])
    spoiling(first, 1)
    first.on("after_batch", lambda run: run.token.cancel("fit") if run.n_iter == 2 else None)
    first.fit(1, make_learner(train=10))
    second = Runner([TerminateOnNaN(every=4), Checkpoint(tmp_path)])
    result = second.fit(1, make_learner(train=10), resume="auto")
    assert result.reason == "the loss was not finite in one of the batches 0 to 3 of epoch 0"


@pytest.mark.parametrize(("lost", "steps"), [(math.inf, 4), (1.0, 6)])
def test_what_was_noted_before_a_resumed_fit_counts_in_it(
    make_learner, tmp_path: Path, lost: float, steps: int
) -> None:
    """The weights stay finite, so that only the note can tell."""

    def fit(losses: list[float], *, stop_at: int) -> Runner:
        run = Runner([TerminateOnNaN(every=5), Checkpoint(tmp_path, every_steps=1)])
        run.on("after_batch", lambda run: run.token.cancel("fit") if run.n_iter == stop_at else 0)
        learner, left = make_learner(train=6), iter(losses)
        learner.loss_func = lambda pred, yb: pred.mean() * 0 + next(left)
        learner.data.valid_dl = None
        run.fit(1, learner, resume="auto")
        return run

    fit([1.0, lost], stop_at=2)
    result = fit([1.0] * 4, stop_at=99).result
    assert result is not None
    assert (result.steps, result.outcome) == (steps, "cancelled" if steps < 6 else "completed")


def test_a_failure_is_no_time_to_look(learner: Learner) -> None:
    run = Runner(TerminateOnNaN(every=100))
    spoiling(run, 0)
    run.on("begin_batch", lambda run: 1 / 0 if run.batch_index == 1 else None)
    with pytest.raises(ZeroDivisionError):
        run.fit(1, learner)
    assert run.result is not None
    assert (run.result.outcome, run.result.cancellations) == ("failed", ())


def test_those_who_change_the_loss_come_before_it_and_others_after(learner: Learner) -> None:
    seen: list[int] = []
    run = Runner(TerminateOnNaN(every=1))
    spoiling(run, 0)
    for priority in (METRICS + 1, METRICS - 1):
        run.on("after_loss", lambda run, p=priority: seen.append(p), priority=priority)
    run.fit(1, learner)
    assert seen == [METRICS + 1]


def test_at_the_end_of_an_epoch_everybody_knows_that_the_fit_has_ended(learner: Learner) -> None:
    pending: list[object] = []
    run = Runner(TerminateOnNaN(every=100))
    spoiling(run, 0)
    run.on("after_train", lambda run: pending.append(run.token.pending), priority=500)
    run.fit(1, learner)
    assert pending != [None]


@pytest.mark.parametrize(("every", "error"), [(0, ValueError), (2.5, TypeError), (True, TypeError)])
def test_bad_arguments_are_refused(every: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="every"):
        TerminateOnNaN(every=every)


def test_it_has_a_name_that_people_can_type() -> None:
    assert Runner(TerminateOnNaN()).terminate_on_nan.every == 50


def test_a_single_bad_loss_among_good_ones_is_noticed(make_learner) -> None:
    learner = make_learner(6)
    losses = iter([1.0, math.inf, 1.0, 1.0, 1.0, 1.0])
    learner.loss_func = lambda pred, yb: pred.mean() * 0 + next(losses)
    result = Runner(TerminateOnNaN(every=4)).fit(1, learner)
    assert (result.outcome, result.steps) == ("cancelled", 3)


def test_one_bad_row_of_a_loss_that_is_not_reduced_is_enough(learner: Learner) -> None:
    learner.loss_func = lambda pred, yb: torch.tensor([1.0, math.nan, 1.0])
    assert Runner(TerminateOnNaN(every=1)).fit(1, learner).outcome == "cancelled"
