"""Sharpness-aware minimization: a handler computes the gradient at the worst place nearby."""

import torch
from images import digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from eventtrain import AvgStatsCallback, Callback, DataBunch, Learner, Runner, accuracy, handler
from eventtrain.priorities import TRANSFORM


class SAM(Callback):
    def __init__(self, rho=0.05):
        self.rho = rho

    @handler(priority=TRANSFORM - 1)  # behind a scaler, before anyone clips
    def begin_step(self, run):
        params = [p for p in run.model.parameters() if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in params]).norm()
        here = [p.detach().clone() for p in params]
        with torch.no_grad():
            for p in params:
                p.add_(p.grad * (self.rho / (norm + 1e-12)))
        run.opt.zero_grad()
        run.learn.compute_loss(run.learn.call_model(run.xb), run.yb).backward()
        with torch.no_grad():
            for p, value in zip(params, here, strict=True):
                p.copy_(value)


def make(*cbs):
    torch.manual_seed(0)
    train, valid = digits(8)
    data = DataBunch(DataLoader(train, 64), DataLoader(valid, 64))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    opt = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    run = Runner([AvgStatsCallback(accuracy), SAM(), *cbs])
    return run, Learner(model, opt, cross_entropy, data)


if __name__ == "__main__":
    run, learn = make()
    run.fit(4, learn)
