"""Training by steps on a stream without an end, whose loader keeps its own state.

Run it as ``python stream.py FOLDER``; killed at any moment, the same line goes on, and reads
nothing anew but the last batch.
"""

import sys

import torch
from texts import Stream, blocks
from torch import nn
from torch.nn.functional import cross_entropy
from torchdata.stateful_dataloader import StatefulDataLoader

from eventtrain import AvgStatsCallback, DataBunch, Learner, Runner
from eventtrain.callbacks import Checkpoint, OneCycle


def make(folder, workers=0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(256, 32), nn.Linear(32, 256))
    stream = StatefulDataLoader(Stream(blocks(33, 400), seed=1), 8, num_workers=workers)
    data = DataBunch(stream, [(piece[None, :-1], piece[None, 1:]) for piece in blocks(33, 10)])
    opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
    run = Runner(
        [
            AvgStatsCallback(report=None),
            OneCycle(1e-2),
            Checkpoint(folder, every_steps=10, monitor="valid_loss"),
        ]
    )
    return run, Learner(model, opt, lambda pred, yb: cross_entropy(pred.mT, yb), data)


if __name__ == "__main__":
    run, learn = make(sys.argv[1])
    result = run.fit(steps=200, learn=learn, validate_every=50, resume="auto")
    for row in result.history:
        print(row["step"], row["train_loss"], row["valid_loss"])
