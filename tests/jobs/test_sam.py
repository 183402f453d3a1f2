"""SAM by a handler, beside a loop written by hand and Ignite."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests_of_jobs import close, cut_and_resumed, needs, same_weights
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from eventtrain import Learner, Runner
from eventtrain.callbacks import Checkpoint, GradientClip

needs("sklearn")

import sam


def by_hand(learn: Learner, epochs: int, norm: float | None = None) -> list[float]:
    """Train, and return the loss of each batch where the weights were."""
    model, opt, losses = learn.model, learn.opt, []

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(model(x), y)

    for _ in range(epochs):
        for x, y in learn.data.train_dl:
            loss = loss_of(x, y)
            losses.append(loss.item())
            loss.backward()
            params = list(model.parameters())
            total = torch.stack([p.grad.norm() for p in params]).norm()
            old = [p.detach().clone() for p in params]
            with torch.no_grad():
                for p in params:
                    p.add_(p.grad * (0.05 / (total + 1e-12)))
            opt.zero_grad()
            loss_of(x, y).backward()
            with torch.no_grad():
                for p, value in zip(params, old, strict=True):
                    p.copy_(value)
            if norm is not None:
                nn.utils.clip_grad_norm_(params, norm)
            opt.step()
            opt.zero_grad()
    return losses


@pytest.mark.parametrize("norm", [None, 0.1])
def test_weights_are_those_of_a_loop_by_hand(norm: float | None) -> None:
    clip = [] if norm is None else [GradientClip(norm)]
    (run, ours), (_, theirs), (_, plain) = sam.make(*clip), sam.make(), sam.make()
    run.fit(2, ours)
    by_hand(theirs, 2, norm)
    Runner(clip).fit(2, plain)
    assert same_weights(ours.model, theirs.model)
    assert not same_weights(ours.model, plain.model)


def test_it_goes_on_bit_for_bit(tmp_path: Path) -> None:
    _, whole = sam.make()
    by_hand(whole, 2)
    _, resumed = cut_and_resumed(lambda: sam.make(Checkpoint(tmp_path)), 11, epochs=2)
    assert same_weights(resumed.model, whole.model)


@pytest.mark.filterwarnings("ignore")  # of the other framework
def test_weights_and_metrics_are_those_of_ignite() -> None:
    needs("ignite")
    import sam_ignite

    run, learn = sam.make()
    row = run.fit(4, learn).history[-1]
    trainer, evaluator, model, train_dl = sam_ignite.make()
    trainer.run(train_dl, max_epochs=4)
    assert close(learn.model, model)
    assert row["train_loss"] == pytest.approx(trainer.state.metrics["loss"], abs=1e-5)
    for name in ("loss", "accuracy"):
        assert row[f"valid_{name}"] == pytest.approx(evaluator.state.metrics[name], abs=1e-5)


def test_averages_have_the_loss_of_where_the_weights_are() -> None:
    (run, ours), (_, theirs) = sam.make(), sam.make()
    row, losses = run.fit(1, ours).history[-1], by_hand(theirs, 1)
    assert row["train_loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-6)
