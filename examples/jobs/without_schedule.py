"""A schedule-free optimizer, validated every few steps with the weights to evaluate with.

Run it as ``python without_schedule.py FOLDER``; killed at any moment, the same line goes on.
"""

import sys

import schedulefree
import torch
from images import digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from eventtrain import AvgStatsCallback, DataBunch, Learner, Runner, accuracy
from eventtrain.callbacks import Checkpoint


def make(folder):
    torch.manual_seed(0)
    train, valid = digits(8)
    data = DataBunch(DataLoader(train, 64), DataLoader(valid, 64))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    opt = schedulefree.AdamWScheduleFree(model.parameters(), lr=0.02, warmup_steps=5)
    run = Runner([AvgStatsCallback(accuracy), Checkpoint(folder, monitor="valid_loss")])
    return run, Learner(model, opt, cross_entropy, data)


if __name__ == "__main__":
    run, learn = make(sys.argv[1])
    run.fit(steps=60, learn=learn, validate_every=10, resume="auto")
