"""OptunaPruning: rows are reported to a trial, and a trial that is to be pruned ends its fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_pages import ROOT, blocks_of
from torch import nn

from eventtrain import AvgStatsCallback, DataBunch, Learner, Runner, TensorLoader
from eventtrain.callbacks import Checkpoint, OptunaPruning

X = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
Y = (X.sum(1) > 0).long()


class Trial:
    """What the callback needs of one; prunes at a step."""

    def __init__(self, prune_at: int = 99) -> None:
        self.reported: list[tuple[float, int]] = []
        self.prune_at = prune_at

    def report(self, value: float, step: int) -> None:
        self.reported.append((value, step))

    def should_prune(self) -> bool:
        return self.reported[-1][1] >= self.prune_at


def learner(lr: float = 0.1) -> Learner:
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    data = DataBunch(TensorLoader(X, Y, bs=8), TensorLoader(X, Y, bs=24))
    opt = torch.optim.SGD(model.parameters(), lr=lr)
    return Learner(model, opt, nn.functional.cross_entropy, data)


def fit(pruning: OptunaPruning, *cbs: Any, epochs: int = 4, **options: Any) -> Any:
    return Runner([AvgStatsCallback(None, None), pruning, *cbs]).fit(epochs, learner(), **options)


def test_each_epoch_is_reported_once_with_its_number() -> None:
    trial = Trial()
    result = fit(OptunaPruning(trial))
    assert trial.reported == [(row["valid_loss"], row["epoch"]) for row in result.history]
    assert result.outcome == "completed"


def test_by_steps_each_row_is_reported_with_its_steps() -> None:
    trial = Trial()
    result = fit(OptunaPruning(trial), validate_every=5)
    assert trial.reported == [(row["valid_loss"], row["step"]) for row in result.history]


def test_a_trial_that_is_to_be_pruned_ends_the_fit_after_that_row() -> None:
    pruning = OptunaPruning(Trial(prune_at=1))
    result = fit(pruning)
    assert (result.outcome, result.epochs) == ("cancelled", 2)
    assert result.reason.startswith("Optuna prunes the trial at valid_loss 0.")
    assert pruning.is_pruned


def test_another_fit_starts_over() -> None:
    pruning = OptunaPruning(Trial(prune_at=0))
    fit(pruning)
    pruning.trial = Trial()
    assert fit(pruning).outcome == "completed"
    pruning.check_pruned()


def test_an_epoch_that_was_cancelled_is_not_reported() -> None:
    trial = Trial()
    run = Runner([AvgStatsCallback(None, None), OptunaPruning(trial)])
    run.on("begin_epoch", lambda run: run.token.cancel("epoch"), when=lambda run: run.epoch == 1)
    run.fit(3, learner())
    assert [step for _, step in trial.reported] == [0, 2]


def test_numbers_of_a_validation_that_was_cut_are_not_reported() -> None:
    trial = Trial()
    run = Runner([AvgStatsCallback(None, None), OptunaPruning(trial)])
    run.on("after_batch", lambda run: run.token.cancel("validate"), during="validate")
    run.fit(2, learner())
    assert trial.reported == []


def test_a_pruned_fit_that_is_resumed_ends_at_once(tmp_path: Path) -> None:
    fit(OptunaPruning(Trial(prune_at=1)), Checkpoint(tmp_path))
    again = OptunaPruning(trial := Trial())
    result = fit(again, Checkpoint(tmp_path), resume="auto")
    assert (result.outcome, result.epochs, trial.reported) == ("cancelled", 2, [])
    assert again.is_pruned


def test_a_fit_that_goes_on_reports_the_rows_that_are_left(tmp_path: Path) -> None:
    fit(OptunaPruning(Trial()), Checkpoint(tmp_path), epochs=2)
    fit(OptunaPruning(trial := Trial()), Checkpoint(tmp_path), epochs=4, resume="auto")
    assert [step for _, step in trial.reported] == [2, 3]


def test_a_key_that_is_not_there_is_an_error_with_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"OptunaPruning monitors 'valid_f1'.*'valid_loss'"):
        fit(OptunaPruning(Trial(), "valid_f1", mode="max"))


@pytest.mark.parametrize("trial", [Trial, object(), 3])
def test_what_is_no_trial_is_refused(trial: Any) -> None:
    with pytest.raises(TypeError, match="takes the trial"):
        OptunaPruning(trial)


def test_a_process_that_is_alone_needs_a_trial() -> None:
    with pytest.raises(ValueError, match="None is for ranks other than 0"):
        fit(OptunaPruning(None))


def test_what_is_better_must_be_said_of_an_accuracy() -> None:
    with pytest.raises(ValueError, match="mode='max'"):
        OptunaPruning(Trial(), "valid_accuracy")
    OptunaPruning(Trial(), "valid_accuracy", mode="max")


def test_the_direction_of_the_study_counts() -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    down, up = (optuna.create_study(direction=way).ask() for way in ("minimize", "maximize"))
    assert OptunaPruning(down).mode == "min"
    assert OptunaPruning(up, "valid_accuracy").mode == "max"
    for trial, key, mode in ((up, "valid_loss", "min"), (down, "valid_accuracy", "max")):
        with pytest.raises(ValueError, match="the study disagree"):
            OptunaPruning(trial, key, mode)
    with pytest.raises(ValueError, match="mode='max'"):
        OptunaPruning(down, "valid_accuracy")
    several = optuna.create_study(directions=["minimize", "minimize"]).ask()
    with pytest.raises(ValueError, match="2 objectives"):
        OptunaPruning(several)


def test_a_study_prunes_what_is_worse_and_keeps_what_is_better() -> None:
    """Against a loop by hand that reports and asks in the same places."""
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rates = [0.5, 0.4, 1e-4, 0.6, 1e-5]

    def by_hand(trial: Any) -> float:
        learn = learner(rates[trial.number])
        for epoch in range(4):
            for x, y in learn.data.train_dl:
                learn.opt.zero_grad()
                nn.functional.cross_entropy(learn.model(x), y).backward()
                learn.opt.step()
            with torch.no_grad():
                loss = float(nn.functional.cross_entropy(learn.model(X), Y))
            trial.report(loss, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return loss

    def objective(trial: Any) -> float:
        pruning = OptunaPruning(trial)
        run = Runner([AvgStatsCallback(None, None), pruning])
        result = run.fit(4, learner(rates[trial.number]))
        pruning.check_pruned()
        return float(result.history[-1]["valid_loss"])

    told = []
    for program in (by_hand, objective):
        study = optuna.create_study(pruner=optuna.pruners.MedianPruner(n_startup_trials=2))
        study.optimize(program, n_trials=5)
        told.append([(trial.state.name, trial.intermediate_values) for trial in study.trials])
    assert [state for state, _ in told[1]] == [
        "COMPLETE",
        "COMPLETE",
        "PRUNED",
        "COMPLETE",
        "PRUNED",
    ]
    for (state, ours), (expected, theirs) in zip(told[1], told[0], strict=True):
        assert state == expected
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_the_page_runs() -> None:
    optuna = pytest.importorskip("optuna")
    pytest.importorskip("sklearn")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    page = ROOT / "docs" / "callbacks" / "optuna_pruning.md"
    (program,) = [block.text for block in blocks_of(page) if block.language == "python"]
    exec(compile(program, str(page), "exec"), {})
