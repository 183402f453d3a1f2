"""Truncated backpropagation, beside a loop written by hand and Lightning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tbptt
import torch
from tests_of_jobs import close, ended_after, needs, row_by_lightning, same_weights
from torch import nn
from torch.nn.functional import cross_entropy

from eventtrain import Learner

SPANS = 4  # of a batch


def by_hand(learn: Learner, epochs: int) -> list[float]:
    model, opt, losses = learn.model, learn.opt, []
    for _ in range(epochs):
        state = None
        for x, y in learn.data.train_dl:
            for start in range(0, x.shape[1], 8):
                pred, state = model(x[:, start : start + 8], state)
                cross_entropy(pred, y[:, start : start + 8]).backward()
                state = state.detach()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                opt.step()
                opt.zero_grad()
        state, total = None, []
        with torch.no_grad():
            for x, y in learn.data.valid_dl:
                pred, state = model(x, state)
                total.append(float(cross_entropy(pred, y)))
        losses.append(sum(total) / len(total))
    return losses


def test_weights_and_losses_are_those_of_a_loop_by_hand(tmp_path: Path) -> None:
    (run, ours), (_, theirs) = tbptt.make(tmp_path), tbptt.make(tmp_path)
    result = run.fit(2, ours)
    assert result.steps == 2 * 10 * SPANS
    losses = by_hand(theirs, 2)
    assert same_weights(ours.model, theirs.model)
    assert [row["valid_loss"] for row in result.history] == pytest.approx(losses, abs=1e-5)


def test_a_validation_between_two_batches_leaves_the_state_of_the_training(tmp_path: Path) -> None:
    (run, ours), (_, theirs) = tbptt.make(tmp_path), tbptt.make(tmp_path)
    run.fit(2, ours, validate_every=12)
    by_hand(theirs, 2)
    assert same_weights(ours.model, theirs.model)


@pytest.mark.parametrize("event", ["after_batch", "after_loss", "after_step"])
def test_the_state_is_in_the_checkpoint(event: str, tmp_path: Path) -> None:
    _, whole = tbptt.make(tmp_path)
    by_hand(whole, 2)
    run, ended = tbptt.make(tmp_path)
    ended_after(5 * SPANS, run, event)
    assert run.fit(2, ended).outcome == "cancelled"
    again, resumed = tbptt.make(tmp_path)
    again.fit(2, resumed, resume="auto")
    assert same_weights(resumed.model, whole.model)


@pytest.mark.filterwarnings("ignore")  # of the other framework
def test_weights_and_losses_are_those_of_lightning(tmp_path: Path) -> None:
    needs("lightning")
    import tbptt_lightning

    run, learn = tbptt.make(tmp_path / "own")
    row: dict[str, Any] = run.fit(5, learn).history[-1]
    trainer, model, *loaders = tbptt_lightning.make(tmp_path / "peer")
    expected = row_by_lightning(trainer, model, *loaders)
    assert close(learn.model, model)
    assert row["valid_loss"] == pytest.approx(expected["valid_loss"], abs=1e-5)
