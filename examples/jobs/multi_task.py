"""A model with two heads: a loss and metrics of each, and what a handler logs."""

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
from two_tasks import auc, two_tasks

from eventtrain import AvgStatsCallback, DataBunch, Learner, Runner
from eventtrain.callbacks import OverAll


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.kind, self.odd = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, x):
        hidden = self.body(x).relu()
        return {"kind": self.kind(hidden), "odd": self.odd(hidden)[:, 0]}


def losses(pred, y):
    kind = cross_entropy(pred["kind"], y["kind"])
    odd = binary_cross_entropy_with_logits(pred["odd"], y["odd"])
    return {"loss": kind + 0.5 * odd, "kind_loss": kind, "odd_loss": odd}


def head(name, metrics):
    stats = AvgStatsCallback(
        metrics, pred=lambda run: run.pred[name], target=lambda run: run.yb[name]
    )
    stats.name = name
    return stats


def make():
    torch.manual_seed(0)
    model = TwoHeads()
    opt = torch.optim.Adam(model.parameters(), lr=0.02)
    kinds = {"kind_acc": MulticlassAccuracy(3), "kind_f1": MulticlassF1Score(3)}
    run = Runner([head("kind", MetricCollection(kinds)), head("odd", OverAll(auc, name="odd_auc"))])
    run.on("after_loss", lambda run: run.log("odd_rate", run.pred["odd"].sigmoid().mean()))
    return run, Learner(model, opt, losses, DataBunch(*two_tasks()))


if __name__ == "__main__":
    run, learn = make()
    run.fit(3, learn)
