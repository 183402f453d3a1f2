"""A step and its zeroing are one, whatever is cancelled in between."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch

from eventtrain import Learner, Runner


def by_hand(learner: Learner, skip: set[tuple[int, int]], epochs: int) -> list[torch.Tensor]:
    """Train a copy, without what comes after the given (epoch, batch) in that epoch."""
    model = copy.deepcopy(learner.model)
    opt = torch.optim.SGD(model.parameters(), **learner.opt.defaults | {"foreach": False})
    for epoch in range(epochs):
        for index, (xb, yb) in enumerate(learner.data.train_dl):
            learner.loss_func(model(xb), yb).backward()
            opt.step()
            opt.zero_grad()
            if (epoch, index) in skip:
                break
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("scope", ["batch", "train", "epoch", "fit"])
def test_what_is_cancelled_after_a_step_applies_no_gradient_twice(
    scope: str, learner: Learner
) -> None:
    skip = {(0, 1)} if scope in ("train", "epoch", "fit") else set()
    expected = by_hand(learner, skip, 1 if scope == "fit" else 2)
    run = Runner()

    def cancel(run: Any) -> None:
        if (run.epoch, run.batch_index) == (0, 1):
            run.token.cancel(scope, "x")

    run.on("after_step", cancel)
    run.fit(2, learner)
    for own, other in zip(learner.model.parameters(), expected, strict=True):
        assert torch.equal(own, other)


def gradients_left(learner: Learner) -> bool:
    return any(p.grad is not None and bool(p.grad.any()) for p in learner.model.parameters())


def test_a_handler_that_fails_after_a_step_leaves_no_applied_gradient(learner: Learner) -> None:
    run = Runner()
    run.on("after_step", lambda run: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.fit(1, learner)
    assert not gradients_left(learner)


@pytest.mark.parametrize("scope", ["step", "batch", "train", "fit"])
def test_a_request_that_comes_while_the_optimizer_steps_leaves_none(
    scope: str, learner: Learner
) -> None:
    run, step, left = Runner(), learner.opt.step, []

    def stepping() -> None:
        step()
        asking = threading.Thread(target=run.token.cancel, args=(scope, "from a thread"))
        asking.start()
        asking.join()

    learner.opt.step = stepping
    run.on("after_batch", lambda run: left.append(gradients_left(learner)), during="train")
    run.fit(1, learner)
    assert left
    assert not any(left)


def test_a_step_that_was_not_taken_keeps_its_gradients(learner: Learner) -> None:
    run, kept = Runner(), []
    run.on("begin_step", lambda run: run.token.cancel("step", "accumulating"), once=True)
    run.on("after_cancel_step", lambda run: kept.append(gradients_left(learner)))
    run.on("after_batch", lambda run: kept.append(gradients_left(learner)), once=True)
    run.fit(1, learner)
    assert kept == [True, True]


def test_an_optimizer_that_fails_leaves_the_gradients_to_look_at(learner: Learner) -> None:
    def fail() -> None:
        raise RuntimeError("no step")

    learner.opt.step = fail
    with pytest.raises(RuntimeError, match="no step"):
        Runner().fit(1, learner)
    assert gradients_left(learner)
