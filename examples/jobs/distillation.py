"""A small model learns from a large one that stays as it is, and from the labels."""

import torch
from images import digits
from teacher import teacher
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax
from torch.utils.data import DataLoader

from eventtrain import AvgStatsCallback, DataBunch, Learner, Runner, accuracy


def distilled(preds, y):
    student, taught = preds
    soft = kl_div(log_softmax(student / 2, 1), softmax(taught / 2, 1), reduction="batchmean") * 4
    hard = cross_entropy(student, y)
    return {"loss": 0.7 * soft + 0.3 * hard, "soft": soft, "hard": hard}


def make():
    torch.manual_seed(0)
    train, valid = digits(8)
    data = DataBunch(DataLoader(train, 64), DataLoader(valid, 64))
    teach = teacher().eval().requires_grad_(False)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    opt = torch.optim.SGD(model.parameters(), lr=0.2)

    def both(model, batch):
        return model(batch[0]), teach(batch[0])

    run = Runner(AvgStatsCallback(accuracy, pred=lambda run: run.pred[0]))
    return run, Learner(model, opt, distilled, data, forward=both)


if __name__ == "__main__":
    run, learn = make()
    run.fit(5, learn)
