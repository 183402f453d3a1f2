"""A search with Optuna for width and learning rate, which ends what promises little."""

import optuna
import torch
from images import digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from eventtrain import AvgStatsCallback, DataBunch, Learner, Runner, accuracy
from eventtrain.callbacks import OptunaPruning


def objective(trial):
    torch.manual_seed(0)
    width = trial.suggest_int("width", 4, 64)
    train, valid = digits(8)
    data = DataBunch(DataLoader(train, 64), DataLoader(valid, 64))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    opt = torch.optim.SGD(model.parameters(), lr=trial.suggest_float("lr", 1e-3, 3.0, log=True))
    pruning = OptunaPruning(trial, "valid_accuracy", mode="max")
    run = Runner([AvgStatsCallback(accuracy, report=None), pruning])
    result = run.fit(4, Learner(model, opt, cross_entropy, data))
    pruning.check_pruned()
    return result.history[-1]["valid_accuracy"]


def search(trials):
    sampler, pruner = optuna.samplers.TPESampler(seed=0), optuna.pruners.MedianPruner(2)
    study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
    study.optimize(objective, trials)
    return study


if __name__ == "__main__":
    print(search(20).best_trial)
