"""Truncated backpropagation: texts read on and on, the state carried from each piece to the next.

Run it as ``python tbptt.py FOLDER``; killed at any moment, the same line goes on.
"""

import sys

import torch
from texts import pieces
from torch import nn
from torch.nn.functional import cross_entropy

from eventtrain import AvgStatsCallback, Callback, DataBunch, Learner, Runner, handler
from eventtrain.callbacks import Checkpoint, GradientClip


class Carry(Callback):
    counts_within_batch = True  # a batch that is cut and run again starts with it

    def __init__(self):
        self.states = {}

    @handler(["begin_train", "begin_validate"])
    def forget(self, run):
        self.states.pop(run.phase, None)

    def state_dict(self):
        return dict(self.states)

    def load_state_dict(self, saved):
        self.states = dict(saved)


class Truncated(Runner):
    span = 8

    def one_batch(self):
        states = self.carry.states
        spans = zip(self.xb.split(self.span, 1), self.yb.split(self.span, 1), strict=True)
        for self.xb, self.yb in spans:
            self.pred, state = self.learn.model_wrapped(self.xb, states.get(self.phase))
            states[self.phase] = state.detach()
            self.emit.after_pred()
            self.loss = self.learn.compute_loss(self.pred, self.yb)
            self.emit.after_loss()
            if self.in_train:
                self.loss.backward()
                self.emit.after_backward()
                self.optimizer_step()


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.bytes, self.cell = nn.Embedding(256, 16), nn.GRU(16, 32, batch_first=True)
        self.out = nn.Linear(32, 256)

    def forward(self, x, state):
        hidden, state = self.cell(self.bytes(x), state)
        return self.out(hidden).mT, state


def make(folder):
    torch.manual_seed(0)
    model = Reader()
    opt = torch.optim.Adam(model.parameters(), lr=0.01)
    run = Truncated([AvgStatsCallback(), Carry(), GradientClip(1.0), Checkpoint(folder)])
    return run, Learner(model, opt, cross_entropy, DataBunch(*pieces(length=32)))


if __name__ == "__main__":
    run, learn = make(sys.argv[1])
    run.fit(5, learn, resume="auto")
