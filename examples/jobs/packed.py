"""Texts of many lengths as packed sequences: which of several pages each is from."""

import torch
from texts import pages
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader

from eventtrain import AvgStatsCallback, DataBunch, Learner, Runner, accuracy


def collate(rows):
    texts, labels = zip(*rows, strict=True)
    return pack_sequence(texts, enforce_sorted=False), torch.tensor(labels)


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.bytes, self.cell, self.out = nn.Embedding(256, 16), nn.GRU(16, 32), nn.Linear(32, 4)

    def forward(self, packed):
        embedded = PackedSequence(self.bytes(packed.data), *packed[1:])
        return self.out(self.cell(embedded)[1][-1])


def make():
    torch.manual_seed(0)
    train, valid = pages(4)
    data = DataBunch(
        DataLoader(train, 16, collate_fn=collate), DataLoader(valid, 16, collate_fn=collate)
    )
    model = Reader()
    opt = torch.optim.Adam(model.parameters(), lr=0.01)
    return Runner(AvgStatsCallback(accuracy)), Learner(model, opt, cross_entropy, data)


if __name__ == "__main__":
    run, learn = make()
    run.fit(4, learn)
