"""Batches that are objects of one's own, beside a loop written by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests_of_jobs import mean_by_hand, same_weights, train_by_hand
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from eventtrain import AvgStatsCallback, DataBunch, Learner, Runner


class Pairs:
    """Has a ``to`` and a length, and nothing else that is known."""

    def __init__(self, left: Tensor, right: Tensor, target: Tensor) -> None:
        self.left, self.right, self.target = left, right, target

    def to(self, device: Any, non_blocking: bool = False) -> Pairs:
        return Pairs(*(part.to(device) for part in (self.left, self.right, self.target)))

    def __len__(self) -> int:
        return len(self.target)


def pairs() -> list[Pairs]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for size in (5, 5, 3):
        left, right = (torch.randn(size, 3, generator=generator) for _ in range(2))
        found.append(Pairs(left, right, ((left - right).sum(1) > 0).long()))
    return found


def loss_of(model: Any, batch: Pairs) -> Tensor:
    return cross_entropy(model(torch.cat([batch.left, batch.right], 1)), batch.target)


def make() -> Learner:
    torch.manual_seed(0)
    model = nn.Linear(6, 2)
    return Learner(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        lambda pred, batch: cross_entropy(pred, batch.target),
        DataBunch(pairs(), pairs()),
        forward=lambda model, batch: model(torch.cat([batch.left, batch.right], 1)),
        weight=len,
    )


def test_objects_with_to_and_a_length_are_trained_on_as_in_a_loop_by_hand() -> None:
    ours, theirs = make(), make()
    row = Runner(AvgStatsCallback(report=None)).fit(3, ours).history[-1]
    train_by_hand(theirs, loss_of, 3)
    assert same_weights(ours.model, theirs.model)
    assert row["valid_loss"] == pytest.approx(mean_by_hand(theirs, loss_of, len), abs=1e-6)
