"""Contrastive learning: the loader gives images alone, and each is to be near its other view."""

import torch
from images import digits
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from torch.utils.data import DataLoader

from eventtrain import AvgStatsCallback, DataBunch, Learner, Runner


def views(model, xb):
    return [normalize(model(xb + 0.1 * torch.randn_like(xb)), dim=1) for _ in range(2)]


def contrast(pred, yb):
    one, other = pred
    logits = one @ other.T / 0.1
    which = torch.arange(len(one), device=one.device)
    return (cross_entropy(logits, which) + cross_entropy(logits.T, which)) / 2


def make(*cbs):
    torch.manual_seed(0)
    train, valid = (rows.tensors[0] for rows in digits(8))
    data = DataBunch(DataLoader(train, 64), DataLoader(valid, 64))
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
    opt = torch.optim.SGD(encoder.parameters(), lr=0.1, momentum=0.9)
    return Runner([AvgStatsCallback(), *cbs]), Learner(encoder, opt, contrast, data, forward=views)


if __name__ == "__main__":
    run, learn = make()
    run.fit(5, learn)
