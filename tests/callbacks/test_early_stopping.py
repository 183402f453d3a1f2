"""Patience, the best weights, and what is restored when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eventtrain import AvgStatsCallback, Learner, Runner
from eventtrain.callbacks import EMA, Checkpoint, EarlyStopping


def writing(run: Runner, values: Sequence[Any], key: str = "valid_loss") -> list[dict[str, Any]]:
    """Have the history show these values, one an epoch; collect the weights of every epoch."""
    seen: list[dict[str, Tensor]] = []

    @run.on("after_epoch", priority=50)
    def write(run: Runner) -> None:
        run.history[-1][key] = values[run.epoch]
        seen.append({name: t.clone() for name, t in run.model.state_dict().items()})

    return seen


def equal(model: nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_the_fit_ends_when_patience_is_used_up(learner: Learner) -> None:
    run = Runner(EarlyStopping(patience=2))
    writing(run, [1.0, 0.5, 0.6, 0.5, 0.1])
    result = run.fit(5, learner)
    assert result.epochs == 4
    assert result.reason == "valid_loss has not improved on 0.5 (epoch 1) for 2 epochs"


def test_an_improvement_starts_the_patience_again(learner: Learner) -> None:
    run = Runner(EarlyStopping(patience=2))
    writing(run, [1.0, 1.1, 0.9, 1.0, 0.8, 0.9])
    assert run.fit(6, learner).outcome == "completed"


def test_with_mode_max_higher_is_better(learner: Learner) -> None:
    stop = EarlyStopping("acc", patience=1, mode="max")
    run = Runner(stop)
    writing(run, [0.1, 0.5, 0.4], key="acc")
    assert run.fit(3, learner).outcome == "cancelled"
    assert (stop.best, stop.best_epoch) == (0.5, 1)


def test_a_gain_of_min_delta_is_none(learner: Learner) -> None:
    run = Runner(EarlyStopping(patience=1, min_delta=0.25))
    writing(run, [1.0, 0.75])
    assert run.fit(2, learner).outcome == "cancelled"


def test_nan_is_no_improvement(learner: Learner) -> None:
    run = Runner(EarlyStopping(patience=2))
    writing(run, [float("nan"), float("nan")])
    result = run.fit(5, learner)
    assert result.epochs == 2
    assert result.reason == "valid_loss has been nan for 2 epochs"


def test_a_text_in_place_of_the_number_is_told_with_its_key(learner: Learner) -> None:
    run = Runner(EarlyStopping("acc", mode="max"))
    writing(run, [1.0, "abc"], key="acc")
    with pytest.raises(TypeError, match=r"EarlyStopping monitors 'acc'.* epoch 1 holds 'abc'"):
        run.fit(2, learner)


def test_the_best_weights_come_back_when_it_stops(learner: Learner) -> None:
    run = Runner(EarlyStopping(patience=2))
    seen = writing(run, [1.0, 0.5, 0.6, 0.7])
    run.fit(4, learner)
    assert equal(learner.model, seen[1])
    assert not equal(learner.model, seen[-1])


def test_the_best_weights_come_back_when_the_fit_completes(learner: Learner) -> None:
    run = Runner(EarlyStopping(patience=9))
    seen = writing(run, [0.5, 0.6, 0.7])
    run.fit(3, learner)
    assert equal(learner.model, seen[0])


def test_buffers_come_back_too(learner: Learner) -> None:
    learner.model = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3))
    learner.opt = torch.optim.SGD(learner.model.parameters(), lr=0.1)
    run = Runner(EarlyStopping())
    seen = writing(run, [0.5, 0.6])
    run.fit(2, learner)
    assert torch.equal(learner.model[0].running_mean, seen[0]["0.running_mean"])
    assert not torch.equal(learner.model[0].running_mean, seen[1]["0.running_mean"])


def test_a_fit_that_others_cancel_keeps_its_weights(learner: Learner) -> None:
    run = Runner(EarlyStopping())
    seen = writing(run, [0.5, 0.6, 0.7])
    run.on("after_epoch", lambda run: run.token.cancel("fit") if run.epoch == 1 else None)
    run.fit(3, learner)
    assert equal(learner.model, seen[1])


def test_a_fit_that_fails_keeps_its_weights(learner: Learner) -> None:
    run = Runner(EarlyStopping())
    seen = writing(run, [0.5, 0.6])

    @run.on("begin_epoch")
    def fail(run: Runner) -> None:
        if run.epoch == 2:
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        run.fit(3, learner)
    assert equal(learner.model, seen[1])


def test_a_fit_that_fails_as_it_stops_keeps_its_weights(learner: Learner) -> None:
    run = Runner(EarlyStopping(patience=1))
    seen = writing(run, [0.5, 0.6])

    @run.on("after_epoch", priority=-100)
    def fail(run: Runner) -> None:
        if run.epoch == 1:
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        run.fit(3, learner)
    assert equal(learner.model, seen[1])


class Caching(nn.Linear):
    """Has a buffer from its first validation on."""

    def __init__(self) -> None:
        super().__init__(5, 3)
        self.register_buffer("cache", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            self.cache = torch.ones(3)
        return super().forward(x)


def test_a_buffer_may_appear_after_the_best_epoch(learner: Learner) -> None:
    learner.model = Caching()
    learner.opt = torch.optim.SGD(learner.model.parameters(), lr=0.1)
    run = Runner(EarlyStopping())
    seen = writing(run, [0.5, 0.6])
    run.on("begin_validate", lambda run: run.token.cancel("validate") if run.epoch == 0 else None)
    assert run.fit(2, learner).outcome == "completed"
    assert equal(learner.model, seen[0])


def test_without_restore_best_the_last_weights_stay(learner: Learner) -> None:
    run = Runner(EarlyStopping(restore_best=False))
    seen = writing(run, [0.5, 0.6])
    run.fit(2, learner)
    assert equal(learner.model, seen[1])


def test_a_missing_key_is_an_error_that_names_the_others(learner: Learner) -> None:
    run = Runner(EarlyStopping("valid_acc", mode="max"))
    writing(run, [0.5])
    with pytest.raises(ValueError, match=r"'valid_acc'.*there are: 'valid_loss'\)"):
        run.fit(1, learner)


def test_an_epoch_whose_validation_was_cancelled_may_lack_the_key(learner: Learner) -> None:
    run = Runner(EarlyStopping())
    run.on("begin_validate", lambda run: run.token.cancel("validate"))
    assert run.fit(2, learner).outcome == "completed"


def test_an_epoch_after_one_cut_short_may_not_lack_the_key(learner: Learner) -> None:
    run = Runner(EarlyStopping())
    run.on("begin_validate", lambda run: run.token.cancel("validate"), once=True)
    with pytest.raises(ValueError, match="the history of epoch 1 has no such key"):
        run.fit(3, learner)


def test_a_cancelled_epoch_is_not_judged(learner: Learner) -> None:
    stop = EarlyStopping(patience=1)
    run = Runner(stop)
    writing(run, [0.5, 0.6])
    run.on("begin_train", lambda run: run.token.cancel("epoch"))
    assert run.fit(2, learner).outcome == "completed"
    assert stop.best is None


def test_a_second_fit_starts_over(learner: Learner) -> None:
    stop = EarlyStopping(patience=1)
    run = Runner(stop)
    writing(run, [0.5, 0.6])
    run.fit(2, learner)
    stop_again = run.fit(1, learner)
    assert stop_again.outcome == "completed"
    assert (stop.best, stop.waited) == (0.5, 0)


def test_no_epoch_and_no_validation_are_fine(make_learner: Callable[..., Learner]) -> None:
    run = Runner(EarlyStopping())
    assert run.fit(0, make_learner()).outcome == "completed"
    assert run.validate(make_learner()).outcome == "completed"


def test_a_resumed_fit_stops_where_it_would_have_stopped(
    make_learner: Callable[..., Learner], tmp_path: Path
) -> None:
    values = [1.0, 0.5, 0.6, 0.7, 0.8]
    whole = make_learner()
    run = Runner(EarlyStopping(patience=3))
    writing(run, values)
    expected = run.fit(5, whole)

    first = Runner([EarlyStopping(patience=3), Checkpoint(tmp_path)])
    writing(first, values)
    first.fit(3, make_learner())
    learner = make_learner()
    second = Runner([EarlyStopping(patience=3), Checkpoint(tmp_path)])
    writing(second, values)
    result = second.fit(5, learner, resume="auto")
    assert (result.reason, result.epochs) == (expected.reason, expected.epochs)
    assert equal(learner.model, whole.model.state_dict())


def test_a_resumed_fit_that_had_stopped_ends_at_once(
    make_learner: Callable[..., Learner], tmp_path: Path
) -> None:
    for resume in (None, "auto"):
        run = Runner([EarlyStopping(patience=1), Checkpoint(tmp_path)])
        writing(run, [0.5, 0.6, 0.1])
        result = run.fit(3, make_learner(), resume=resume)
    assert (result.outcome, result.epochs) == ("cancelled", 2)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"patience": 0}, ValueError),
        ({"patience": 1.5}, TypeError),
        ({"min_delta": -1}, ValueError),
        ({"mode": "best"}, ValueError),
        ({"monitor": 3}, TypeError),
        ({"min_delta": float("inf")}, ValueError),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=str(next(iter(arguments)))):
        EarlyStopping(**arguments)


@pytest.mark.parametrize("monitor", ["valid_loss", "valid_logged"])
@pytest.mark.parametrize("average_first", [True, False])
def test_the_best_weights_are_those_that_gave_the_best_number(
    make_learner: Any, average_first: bool, monitor: str
) -> None:
    learner = make_learner(train=6, valid=4)
    learner.opt = torch.optim.SGD(learner.model.parameters(), lr=3.0, momentum=0.9)
    callbacks = [EMA(0.8), EarlyStopping(monitor, patience=99)]
    run = Runner(
        [*(callbacks if average_first else callbacks[::-1]), AvgStatsCallback(report=None)]
    )
    run.on("after_loss", lambda run: run.log("logged", run.loss), during="validate")
    run.fit(5, learner)
    rows = [row["valid_loss"] for row in run.result.history]
    assert rows.index(min(rows)) < 4
    learner.model.eval()
    with torch.no_grad():
        losses = [learner.loss_func(learner.model(x), y) for x, y in learner.data.valid_dl]
    assert torch.stack(losses).mean().item() == pytest.approx(min(rows), rel=1e-5)
    assert run.validate(learner).history[0]["valid_loss"] == pytest.approx(min(rows), rel=1e-5)


@pytest.mark.parametrize("cancel", ["validate", "epoch"])
def test_a_number_of_a_part_of_the_validation_is_not_judged(make_learner: Any, cancel: str) -> None:
    run = Runner([EarlyStopping(patience=1), AvgStatsCallback(report=None)])
    cut = {"during": "validate", "when": lambda run: run.epoch == 1}
    run.on("after_loss", lambda run: setattr(run, "loss", run.loss * 0), priority=60, **cut)
    run.on("after_loss", lambda run: run.token.cancel(cancel), **cut)
    result = run.fit(3, make_learner())
    assert (result.outcome, result.history[1]["valid_loss"]) == ("completed", 0)
    assert run.early_stopping.best == result.history[2]["valid_loss"]


def test_a_training_number_is_judged_though_the_validation_was_cancelled(
    make_learner: Any,
) -> None:
    run = Runner([EarlyStopping("train_loss"), AvgStatsCallback(report=None)])
    run.on("after_loss", lambda run: run.token.cancel("validate"), during="validate")
    run.fit(1, make_learner())
    assert run.early_stopping.best == run.result.history[0]["train_loss"]
