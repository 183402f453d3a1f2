"""Logistic regression by LBFGS, whose step asks for the loss as often as it needs it."""

import torch
from images import digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from eventtrain import AvgStatsCallback, DataBunch, Learner, Runner, accuracy


def make():
    torch.manual_seed(0)
    train, valid = digits(8)
    data = DataBunch(DataLoader(train, len(train)), DataLoader(valid, len(valid)))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    opt = torch.optim.LBFGS(model.parameters(), max_iter=8, line_search_fn="strong_wolfe")
    return Runner(AvgStatsCallback(accuracy)), Learner(model, opt, cross_entropy, data)


if __name__ == "__main__":
    run, learn = make()
    run.fit(4, learn)
