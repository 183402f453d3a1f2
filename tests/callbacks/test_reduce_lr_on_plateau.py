"""Rates on a plateau against torch's own scheduler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rates import BATCHES, Make, interrupted, watch
from torch.optim import lr_scheduler as torch_schedulers

from eventtrain import AvgStatsCallback, Callback, Learner, Runner
from eventtrain.callbacks import Checkpoint, ReduceLROnPlateau


class WriteLosses(Callback):
    """Writes a made-up loss into each epoch's row."""

    def __init__(self, values: list[Any]) -> None:
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


def test_a_text_in_place_of_the_number_is_told_with_its_key(learner: Learner) -> None:
    run = Runner(cbs=[ReduceLROnPlateau("made_up"), WriteLosses([1.0, "abc"])])
    with pytest.raises(TypeError, match=r"Plateau monitors 'made_up'.* epoch 1 holds 'abc'"):
        run.fit(2, learner)


def test_an_epoch_without_a_step_does_not_tell_the_plateau(learner: Learner) -> None:
    run = Runner(cbs=[ReduceLROnPlateau("made_up", patience=0), WriteLosses([1.0, 1.0, 1.0])])
    run.on("begin_step", lambda run: run.token.cancel("step"), when=lambda run: run.epoch != 1)
    run.fit(3, learner)
    assert run.reduce_lr_on_plateau.scheduler.last_epoch == 1  # type: ignore[attr-defined]


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
    with pytest.raises(ValueError, match=r"'val_loss'.*there are: 'train_loss', 'valid_loss'"):
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


def test_an_epoch_cut_short_may_lack_the_metric_when_it_is_resumed(
    make_learner: Make, tmp_path: Path
) -> None:
    run = Runner(cbs=[ReduceLROnPlateau(), Checkpoint(tmp_path)])
    run.on("after_batch", lambda run: run.token.cancel("train"), during="train")
    run.on("after_batch", lambda run: run.token.cancel("fit"), during="validate")
    run.fit(1, make_learner())
    run = Runner(cbs=[ReduceLROnPlateau(), Checkpoint(tmp_path)])
    result = run.fit(1, make_learner(), resume="auto")
    assert (result.outcome, result.steps, result.history) == ("completed", 1, [{"epoch": 0}])


def test_an_epoch_after_one_cut_short_may_not_lack_the_metric(learner: Learner) -> None:
    run = Runner(cbs=ReduceLROnPlateau())
    run.on("begin_validate", lambda run: run.token.cancel("validate"), once=True)
    with pytest.raises(ValueError, match="no such key") as caught:
        run.fit(3, learner)
    assert any("epoch 1" in note for note in caught.value.__notes__)


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
        ({"factor": "0.1"}, TypeError),
        ({"mode": "lowest"}, ValueError),
        ({"mode": None}, ValueError),
        ({"threshold_mode": 3}, ValueError),
        ({"threshold": None}, TypeError),
        ({"patience": None}, TypeError),
        ({"patience": -1}, ValueError),
        ({"cooldown": 1.5}, TypeError),
        ({"eps": "small"}, TypeError),
        ({"min_lr": "small"}, TypeError),
        ({"min_lr": [0.1, None]}, TypeError),
        ({"patient": 3}, TypeError),
    ],
)
def test_bad_arguments_of_a_plateau_are_refused(options: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"(?i)\b{next(iter(options))}\b"):
        ReduceLROnPlateau(**options)


@pytest.mark.parametrize("cancel", ["validate", "epoch"])
def test_a_number_of_a_part_of_the_validation_is_not_judged(
    make_learner: Make, cancel: str
) -> None:
    run = Runner([ReduceLROnPlateau(patience=0), AvgStatsCallback(report=None)])
    run.on("after_loss", lambda run: run.token.cancel(cancel), during="validate")
    run.fit(3, make_learner())
    assert run.reduce_lr_on_plateau.scheduler.last_epoch == 0


def test_it_is_told_the_metric_of_each_validation_within_a_fit(learner: Learner) -> None:
    plateau = ReduceLROnPlateau("mine", patience=0, factor=0.5)
    run, rates = Runner(plateau), []
    run.on("after_validate", lambda run: run.history[-1].update(mine=1.0))
    run.on("after_row", lambda run: rates.append(run.opt.param_groups[0]["lr"]), priority=-90)
    run.fit(steps=6, learn=learner, validate_every=2)
    assert rates == [0.1, 0.05, 0.025]
