"""A learning rate that is found before the fit, by a short one that leaves no trace."""

import torch
from images import digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from eventtrain import AvgStatsCallback, DataBunch, Learner, Runner, accuracy
from eventtrain.callbacks import LRFinder


def make():
    torch.manual_seed(0)
    train, valid = digits(8)
    data = DataBunch(DataLoader(train, 64), DataLoader(valid, 64))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    opt = torch.optim.SGD(model.parameters(), lr=1.0)
    finder = LRFinder(1e-3, 100.0, steps=60)
    return finder, Learner(model, opt, cross_entropy, data)


if __name__ == "__main__":
    finder, learn = make()
    Runner(finder).fit(steps=60, learn=learn)
    learn.opt.param_groups[0]["lr"] = finder.suggestion.steepest
    Runner(AvgStatsCallback(accuracy)).fit(5, learn)
