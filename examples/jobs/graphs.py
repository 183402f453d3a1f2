"""Graphs of PyTorch Geometric, in its own batches, each weighted by its graphs."""

import torch
from small_graphs import small_graphs
from torch import nn
from torch.nn.functional import cross_entropy
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCNConv, global_mean_pool

from eventtrain import AvgStatsCallback, DataBunch, Learner, Runner, accuracy


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = GCNConv(2, 16), nn.Linear(16, 2)

    def forward(self, batch):
        hidden = self.conv(batch.x, batch.edge_index).relu()
        return self.out(global_mean_pool(hidden, batch.batch))


def loss_of(pred, batch):
    return cross_entropy(pred, batch.y)


def make(size=8, *cbs):
    torch.manual_seed(0)
    train, valid = small_graphs()
    data = DataBunch(DataLoader(train, size), DataLoader(valid, size))
    model = Net()
    opt = torch.optim.Adam(model.parameters(), lr=0.02)
    run = Runner([AvgStatsCallback(accuracy, target=lambda run: run.batch.y), *cbs])
    return run, Learner(model, opt, loss_of, data, weight=lambda batch: batch.num_graphs)


if __name__ == "__main__":
    run, learn = make()
    run.fit(4, learn)
