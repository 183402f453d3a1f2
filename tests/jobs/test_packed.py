"""Packed sequences, beside a loop written by hand and Lightning."""

from __future__ import annotations

from typing import Any

import packed
import pytest
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


def loss_of(model: Any, batch: Any) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1])


def test_weights_and_losses_are_those_of_a_loop_by_hand() -> None:
    (run, ours), (_, theirs) = packed.make(), packed.make()
    row = run.fit(2, ours).history[-1]
    train_by_hand(theirs, loss_of, 2)
    assert same_weights(ours.model, theirs.model)
    expected = mean_by_hand(theirs, loss_of, lambda batch: len(batch[1]))
    assert row["valid_loss"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.filterwarnings("ignore")  # of the other framework
def test_weights_and_metrics_are_those_of_lightning() -> None:
    needs("lightning")
    import packed_lightning

    run, learn = packed.make()
    row = run.fit(4, learn).history[-1]
    trainer, model, *loaders = packed_lightning.make()
    expected = row_by_lightning(trainer, model, *loaders)
    assert close(learn.model, model)
    for name in ("train_loss", "valid_loss", "valid_accuracy"):
        assert row[name] == pytest.approx(expected[name], abs=1e-5)
