"""A search with Optuna, beside the same search with Lightning and with a loop written by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests_of_jobs import needs

needs("sklearn", "optuna")

import optuna
import pruning
from images import digits
from torch import nn
from torch.nn.functional import cross_entropy

TRIALS = 8


def by_hand(trial: Any) -> float:
    torch.manual_seed(0)
    width = trial.suggest_int("width", 4, 64)
    (x, y), (x_valid, y_valid) = (rows.tensors for rows in digits(8))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    opt = torch.optim.SGD(model.parameters(), lr=trial.suggest_float("lr", 1e-3, 3.0, log=True))
    for epoch in range(4):
        for rows in torch.arange(len(x)).split(64):
            cross_entropy(model(x[rows]), y[rows]).backward()
            opt.step()
            opt.zero_grad()
        found = float((model(x_valid).argmax(1) == y_valid).float().mean())
        trial.report(found, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return found


@pytest.fixture(scope="module")
def study() -> Any:
    """The search of the program."""
    return pruning.search(TRIALS)


def test_trials_are_those_of_a_loop_by_hand(study: Any) -> None:
    states = [each.state.name for each in study.trials]
    assert {"PRUNED", "COMPLETE"} == set(states)
    sampler, pruner = optuna.samplers.TPESampler(seed=0), optuna.pruners.MedianPruner(2)
    expected = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
    expected.optimize(by_hand, TRIALS)
    assert_same(study, expected)


@pytest.mark.filterwarnings("ignore")  # of the other framework
def test_trials_are_those_of_lightning(study: Any) -> None:
    needs("lightning", "optuna_integration")
    import pruning_lightning

    assert_same(study, pruning_lightning.search(TRIALS))


def assert_same(study: Any, expected: Any) -> None:
    for own, other in zip(study.trials, expected.trials, strict=True):
        assert own.params == other.params
        assert own.state == other.state
        assert list(own.intermediate_values) == list(other.intermediate_values)
        numbers = [list(each.intermediate_values.values()) for each in (own, other)]
        assert numbers[0] == pytest.approx(numbers[1], abs=1e-5)
