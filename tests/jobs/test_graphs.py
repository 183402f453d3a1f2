"""Graphs of PyTorch Geometric, beside a loop written by hand and Lightning."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests_of_jobs import (
    close,
    mean_by_hand,
    needs,
    row_by_lightning,
    same_weights,
    train_by_hand,
)
from torch import Tensor
from torch.nn.functional import cross_entropy

from eventtrain.callbacks import GradientAccumulation

needs("torch_geometric")

import graphs


def loss_of(model: Any, batch: Any) -> Tensor:
    return cross_entropy(model(batch), batch.y)


def test_weights_and_losses_are_those_of_a_loop_by_hand() -> None:
    (run, ours), (_, theirs) = graphs.make(), graphs.make()
    row = run.fit(3, ours).history[-1]
    train_by_hand(theirs, loss_of, 3)
    assert same_weights(ours.model, theirs.model)
    expected = mean_by_hand(theirs, loss_of, lambda batch: int(batch.num_graphs))
    assert row["valid_loss"] == pytest.approx(expected, abs=1e-6)


def test_a_group_of_batches_is_weighted_by_graphs() -> None:
    (run, ours), (whole, theirs) = graphs.make(16, GradientAccumulation(3)), graphs.make(42)
    for learn in (ours, theirs):  # Adam's first step goes by signs
        learn.opt = torch.optim.SGD(learn.model.parameters(), lr=0.5)
    run.fit(1, ours)  # 16, 16 and 10 of them
    whole.fit(1, theirs)
    assert close(ours.model, theirs.model, atol=1e-6)


@pytest.mark.filterwarnings("ignore")  # of the other framework
def test_weights_and_metrics_are_those_of_lightning() -> None:
    needs("lightning")
    import graphs_lightning

    run, learn = graphs.make()
    row = run.fit(4, learn).history[-1]
    trainer, model, *loaders = graphs_lightning.make()
    expected = row_by_lightning(trainer, model, *loaders)
    assert close(learn.model, model)
    for name in ("train_loss", "valid_loss", "valid_accuracy"):
        assert row[name] == pytest.approx(expected[name], abs=1e-5)
