"""Cross-validation: a fit for each fold, judged on what it has not seen."""

from statistics import mean, stdev

import torch
from images import digits
from sklearn.model_selection import KFold
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Subset

from eventtrain import AvgStatsCallback, DataBunch, Learner, Runner, accuracy


def scores(folds, epochs):
    rows, found = digits(8)[0], []
    for others, fold in KFold(folds, shuffle=True, random_state=0).split(range(len(rows))):
        torch.manual_seed(0)
        data = DataBunch(DataLoader(Subset(rows, others), 64), DataLoader(Subset(rows, fold), 64))
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        opt = torch.optim.SGD(model.parameters(), lr=0.5)
        run = Runner(AvgStatsCallback(accuracy, report=None))
        result = run.fit(epochs, Learner(model, opt, cross_entropy, data))
        found.append(result.history[-1]["valid_accuracy"])
    return found


if __name__ == "__main__":
    found = scores(4, epochs=5)
    print(mean(found), stdev(found))
