"""Two validation loaders every few steps: averaged weights, bf16, and all that rows are for.

Run it as ``python several_sets.py FOLDER``; killed at any moment, the same line goes on.
"""

import sys

import torch
from images import digits, noisy
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from eventtrain import AvgStatsCallback, DataBunch, Learner, Runner, accuracy
from eventtrain.callbacks import (
    EMA,
    Checkpoint,
    CSVLogger,
    EarlyStopping,
    JSONLLogger,
    MixedPrecision,
    ReduceLROnPlateau,
    TensorBoard,
)


def make(folder, steps=200):
    torch.manual_seed(0)
    train, valid = digits(8)
    sets = {"clean": DataLoader(valid, 64), "noisy": DataLoader(noisy(valid), 64)}
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    opt = torch.optim.SGD(model.parameters(), lr=0.5)
    run = Runner(
        [
            AvgStatsCallback(accuracy),
            MixedPrecision("bf16"),
            EMA(0.9),
            ReduceLROnPlateau("valid_noisy_loss", factor=0.3, patience=1),
            EarlyStopping("valid_noisy_loss", patience=4),
            Checkpoint(folder, monitor="valid_noisy_loss", keep_best=3),
            CSVLogger(f"{folder}/rows.csv"),
            JSONLLogger(f"{folder}/rows.jsonl"),
            TensorBoard(folder),
        ]
    )
    return run, Learner(model, opt, cross_entropy, DataBunch(DataLoader(train, 64), sets))


if __name__ == "__main__":
    run, learn = make(sys.argv[1])
    result = run.fit(steps=200, learn=learn, validate_every=4, resume="auto")
    print(result.reason, run.checkpoint.best)
