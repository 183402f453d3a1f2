"""Cross-validation, beside a loop written by hand and Lightning."""

from __future__ import annotations

import pytest
import torch
from tests_of_jobs import needs

needs("sklearn")

import folds
from images import digits
from sklearn.model_selection import KFold
from torch import nn
from torch.nn.functional import cross_entropy


def by_hand(epochs: int) -> list[float]:
    x, y = digits(8)[0].tensors
    found = []
    for others, fold in KFold(3, shuffle=True, random_state=0).split(x):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        opt = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(epochs):
            for rows in torch.as_tensor(others).split(64):
                cross_entropy(model(x[rows]), y[rows]).backward()
                opt.step()
                opt.zero_grad()
        found.append(float((model(x[fold]).argmax(1) == y[fold]).float().mean()))
    return found


def test_each_fold_is_judged_as_by_hand() -> None:
    found = folds.scores(3, 2)
    assert found == pytest.approx(by_hand(2))
    assert len(set(found)) == 3


@pytest.mark.filterwarnings("ignore")  # of the other framework
def test_each_fold_is_judged_as_by_lightning() -> None:
    needs("lightning")
    import folds_lightning

    assert folds.scores(3, 2) == pytest.approx(folds_lightning.scores(3, 2), abs=1e-6)
