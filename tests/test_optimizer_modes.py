"""Optimizers with modes hold the right weights everywhere, and end in the mode that they had."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from schedule_free import ScheduleFreeSGD
from torch import Tensor, nn

from eventtrain import AvgStatsCallback, Learner, Runner, load_checkpoint
from eventtrain.callbacks import EMA, Checkpoint, EarlyStopping, LRFinder

Make = Callable[..., Learner]


def free(learn: Learner) -> Learner:
    torch.manual_seed(0)
    # So many numbers that the way from one set of weights to the other and back rounds some.
    learn.model = nn.Sequential(nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 3))
    learn.opt = ScheduleFreeSGD(learn.model.parameters(), lr=5.0, beta=0.6)
    return learn


def weights(learn: Learner) -> list[Tensor]:
    return [p.detach().clone() for p in learn.model.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def by_hand(learn: Learner, epochs: int) -> list[float]:
    """Train as the authors say; return the validation losses."""
    losses = []
    for _ in range(epochs):
        learn.model.train()
        learn.opt.train()
        for x, y in learn.data.train_dl:
            learn.loss_func(learn.model(x), y).backward()
            learn.opt.step()
            learn.opt.zero_grad()
        learn.model.eval()
        learn.opt.eval()
        with torch.no_grad():
            each = [learn.loss_func(learn.model(x), y).item() for x, y in learn.data.valid_dl]
        losses.append(sum(each) / len(each))
    return losses


def mode(learn: Learner) -> bool:
    return bool(learn.opt.param_groups[0]["train_mode"])


def test_a_fit_is_that_of_a_loop_by_hand_and_validates_with_the_means(make_learner: Make) -> None:
    ours, theirs = free(make_learner()), free(make_learner())
    result = Runner(AvgStatsCallback()).fit(4, ours)
    losses = by_hand(theirs, 4)
    assert same(weights(ours), weights(theirs))
    assert [row["valid_loss"] for row in result.history] == pytest.approx(losses, rel=1e-6)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("end", ["complete", "cancel", "fail"])
def test_it_is_left_in_the_mode_that_it_had(end: str, training: bool, make_learner: Make) -> None:
    learn, run = free(make_learner()), Runner()
    learn.opt.train() if training else learn.opt.eval()
    if end != "complete":
        act = {"cancel": lambda run: run.token.cancel("fit"), "fail": lambda run: 1 / 0}[end]
        run.on("after_step", act, every=2)
    if end == "fail":
        with pytest.raises(ZeroDivisionError):
            run.fit(1, learn)
    else:
        run.fit(1, learn)
    assert mode(learn) is training


def test_after_fit_finds_the_weights_to_evaluate_with(make_learner: Make) -> None:
    learn, run, seen = free(make_learner(valid=0)), Runner(), []
    run.on(["after_train", "after_fit"], lambda run: seen.append(mode(learn)))
    run.fit(1, learn)
    assert seen == [True, False]


@pytest.mark.parametrize("use", ["validate", "predict"])
@pytest.mark.parametrize("fails", [False, True])
def test_a_look_at_weights_that_train_leaves_them_bit_for_bit(
    use: str, fails: bool, make_learner: Make
) -> None:
    learn, run, seen = free(make_learner()), Runner(), []
    Runner().fit(2, learn)
    learn.opt.train()
    before = weights(learn)

    def look(run: Any) -> None:
        seen.append((mode(learn), same(weights(learn), before)))
        if fails:
            raise ZeroDivisionError

    run.on("after_pred", look, once=True)
    call = {
        "validate": lambda: run.validate(learn),
        "predict": lambda: run.predict(learn, learn.data.valid_dl),
    }[use]
    if fails:
        with pytest.raises(ZeroDivisionError):
            call()
    else:
        call()
    assert seen == [(False, False)]
    assert mode(learn)
    assert same(weights(learn), before)


def test_a_learner_without_an_optimizer_predicts(make_learner: Make) -> None:
    learn = make_learner()
    learn.opt = None
    assert len(Runner().predict(learn, learn.data.valid_dl)) == 8


def test_one_that_does_not_tell_its_mode_is_left_with_the_weights_to_use(
    make_learner: Make,
) -> None:
    learn, calls = make_learner(), []
    learn.opt.train = lambda: calls.append("train")
    learn.opt.eval = lambda: calls.append("eval")
    Runner().fit(1, learn)
    assert calls[0] == "train"
    assert calls[-1] == "eval"


@pytest.mark.parametrize("every_steps", [None, 2])
def test_a_checkpoint_has_the_weights_that_were_validated(
    every_steps: int | None, make_learner: Make, tmp_path: Path
) -> None:
    learn, run = free(make_learner()), Runner(Checkpoint(tmp_path, every_steps=every_steps))
    run.fit(2, learn)
    saved = load_checkpoint(run.checkpoint.last)["model"]
    assert same(list(saved.values()), weights(learn))


def test_a_checkpoint_within_an_epoch_has_the_weights_to_evaluate_with_and_those_that_train(
    make_learner: Make, tmp_path: Path
) -> None:
    learn, seen = free(make_learner(valid=0)), []
    run = Runner(Checkpoint(tmp_path, every_epochs=None, every_steps=2))

    def stop(run: Any) -> None:
        seen.append(weights(learn))
        run.token.cancel("fit")

    run.on("after_step", stop, every=2)
    run.fit(1, learn)
    found = load_checkpoint(run.checkpoint.last)
    assert found["position"]["phase"] == "train"
    assert same(list(found["training_model"].values()), seen[0])
    assert same(list(found["model"].values()), weights(learn))
    assert not same(seen[0], weights(learn))


@pytest.mark.parametrize("valid", [0, 2])
@pytest.mark.parametrize(
    ("event", "at"),
    [("after_step", 4), ("begin_step", 5), ("after_train", 1), ("begin_epoch", 2),
     ("after_epoch", 1), ("begin_validate", 1), ("after_validate", 1), ("after_fit", 1)],
)  # fmt: skip
def test_a_fit_goes_on_bit_for_bit_wherever_it_was_ended(
    event: str, at: int, valid: int, make_learner: Make, tmp_path: Path
) -> None:
    whole, ended, resumed = (free(make_learner(valid=valid)) for _ in range(3))
    Runner(Checkpoint(tmp_path / "whole")).fit(3, whole)
    run, calls = Runner(Checkpoint(tmp_path / "cut")), []

    def stop(run: Any) -> None:
        calls.append(1)
        if len(calls) == at and event != "after_fit":
            run.token.cancel("fit", "enough")

    run.on(event.removeprefix("late "), stop, priority=-1000 if "late" in event else 0)
    run.fit(1 if event == "after_fit" else 3, ended)
    Runner(Checkpoint(tmp_path / "cut")).fit(3, resumed, resume="auto")
    assert same(weights(resumed), weights(whole))
    assert resumed.opt.param_groups[0]["k"] == whole.opt.param_groups[0]["k"]


def test_early_stopping_puts_back_the_weights_that_were_validated(make_learner: Make) -> None:
    learn, seen = free(make_learner()), []
    run = Runner([AvgStatsCallback(), EarlyStopping("valid_loss", patience=1, min_delta=9.0)])
    run.on("after_validate", lambda run: seen.append(weights(learn)))
    run.fit(9, learn)
    assert len(seen) == 2
    assert same(weights(learn), seen[0])


def test_averages_are_put_in_and_taken_out_within_its_mode(make_learner: Make) -> None:
    ours, plain = free(make_learner()), free(make_learner())
    Runner(EMA(0.5)).fit(3, ours)
    Runner().fit(3, plain)
    assert same(weights(ours), weights(plain))


def test_a_range_test_leaves_the_weights_to_evaluate_with_bit_for_bit(make_learner: Make) -> None:
    learn = free(make_learner())
    Runner().fit(2, learn)
    before = copy.deepcopy((learn.model.state_dict(), learn.opt.state_dict()))
    Runner(LRFinder(0.1, 1.0, steps=3)).fit(1, learn)
    assert same(list(before[0].values()), weights(learn))
    assert str(before[1]) == str(learn.opt.state_dict())


def test_the_package_schedulefree_trains_as_by_hand_and_goes_on(
    make_learner: Make, tmp_path: Path
) -> None:
    schedulefree = pytest.importorskip("schedulefree")

    def made() -> Learner:
        learn = make_learner()
        learn.opt = schedulefree.AdamWScheduleFree(
            learn.model.parameters(), lr=0.05, warmup_steps=2
        )
        return learn

    whole, resumed = made(), made()
    by_hand(whole, 3)
    run = Runner(Checkpoint(tmp_path))
    run.on("after_step", lambda run: run.token.cancel("fit"), when=lambda run: run.steps == 5)
    run.fit(3, made())
    Runner(Checkpoint(tmp_path)).fit(3, resumed, resume="auto")
    assert same(weights(resumed), weights(whole))


def test_a_checkpoint_that_was_saved_in_the_wrong_mode_is_gone_on_from_in_the_right_one(
    make_learner: Make, tmp_path: Path
) -> None:
    run, learn = Runner(Checkpoint(tmp_path)), free(make_learner())

    def look_and_stop(run: Any) -> None:
        if run.steps == 2:
            run.opt.eval()
            run.token.cancel("fit")

    run.on("after_batch", look_and_stop)
    run.fit(1, free(make_learner()))
    assert Runner(Checkpoint(tmp_path)).fit(2, learn, resume="auto").steps == 6


def test_a_validation_within_training_leaves_the_weights_that_train_bit_for_bit(
    make_learner: Make,
) -> None:
    ours, plain, seen = free(make_learner()), free(make_learner()), []
    run = Runner(AvgStatsCallback())
    run.on("begin_validate", lambda run: seen.append(mode(ours)))
    run.fit(2, ours, validate_every=1)
    ours.opt.eval()
    Runner().fit(steps=6, learn=plain, validate_every=99)
    assert seen == [False] * 6
    assert same(weights(ours), weights(plain))
