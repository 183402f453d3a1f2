"""Two views and no target, beside a loop written by hand and Lightning."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests_of_jobs import (
    close,
    cut_and_resumed,
    needs,
    row_by_lightning,
    same_weights,
    train_by_hand,
)
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from eventtrain.callbacks import Checkpoint, MixedPrecision

needs("sklearn")

import contrastive


def loss_of(model: Any, x: Tensor) -> Tensor:
    one, other = (normalize(model(x + 0.1 * torch.randn_like(x)), dim=1) for _ in range(2))
    logits, which = one @ other.T / 0.1, torch.arange(len(x))
    return (cross_entropy(logits, which) + cross_entropy(logits.T, which)) / 2


def test_weights_are_those_of_a_loop_by_hand() -> None:
    (run, ours), (_, theirs) = contrastive.make(), contrastive.make()
    ours.data.valid_dl = None  # which draws random numbers too
    torch.manual_seed(7)
    run.fit(2, ours)
    torch.manual_seed(7)
    train_by_hand(theirs, loss_of, 2)
    assert same_weights(ours.model, theirs.model)


def test_it_goes_on_bit_for_bit(tmp_path: Path) -> None:
    run, whole = contrastive.make()
    torch.manual_seed(7)
    run.fit(2, whole)

    def make() -> Any:
        made = contrastive.make(Checkpoint(tmp_path))
        torch.manual_seed(7)
        return made

    _, resumed = cut_and_resumed(make, 11, epochs=2)
    assert same_weights(resumed.model, whole.model)


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_it_trains_in_half_precision(name: Any) -> None:
    run, learn = contrastive.make(MixedPrecision(name))
    before = copy.deepcopy(learn.model)
    assert run.fit(1, learn).steps > 0
    assert not same_weights(before, learn.model)


@pytest.mark.filterwarnings("ignore")  # of the other framework
def test_weights_and_losses_are_those_of_lightning() -> None:
    needs("lightning")
    import contrastive_lightning

    run, learn = contrastive.make()
    torch.manual_seed(7)
    row = run.fit(5, learn).history[-1]
    trainer, model, *loaders = contrastive_lightning.make()
    torch.manual_seed(7)
    expected = row_by_lightning(trainer, model, *loaders)
    assert close(learn.model, model.encoder)
    for name in ("train_loss", "valid_loss"):
        assert row[name] == pytest.approx(expected[name], abs=1e-5)
