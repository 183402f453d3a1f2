"""Accumulated gradients against those of one large batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eventtrain import DataBunch, Learner, Runner
from eventtrain.callbacks import Checkpoint, GradientAccumulation


class Unsized:
    """A loader that does not know its length."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)


def learner_of(sizes: Sequence[int], *, sized: bool = True) -> Learner:
    """A learner whose training batches have these sizes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(sum(sizes), 5, generator=generator)
    y = torch.randint(0, 3, (len(x),), generator=generator)
    batches = list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    data = DataBunch(batches if sized else Unsized(batches))
    return Learner(model, opt, nn.functional.cross_entropy, data)


def one_batch_a_group(learner: Learner, groups: Sequence[Sequence[int]], epochs: int = 1) -> None:
    """Train with all batches of a group joined into one."""
    batches = list(learner.data.train_dl)
    for _ in range(epochs):
        for group in groups:
            x = torch.cat([batches[index][0] for index in group])
            y = torch.cat([batches[index][1] for index in group])
            learner.loss_func(learner.model(x), y).backward()
            learner.opt.step()
            learner.opt.zero_grad()


def close(ours: Learner, theirs: Learner) -> bool:
    return torch.allclose(ours.model.weight, theirs.model.weight, rtol=1e-5, atol=1e-6)


GROUPS = [
    ([16, 16, 16, 16], 4, [[0, 1, 2, 3]]),
    ([16] * 8, 4, [[0, 1, 2, 3], [4, 5, 6, 7]]),
    ([4] * 7, 3, [[0, 1, 2], [3, 4, 5], [6]]),  # a short last group
    ([4, 4, 4, 4, 1], 3, [[0, 1, 2], [3, 4]]),  # a small last batch too
    ([1, 9, 3, 5], 2, [[0, 1], [2, 3]]),  # all different
    ([4, 4, 4], 1, [[0], [1], [2]]),
    ([4, 4], 5, [[0, 1]]),  # less than one group
]


@pytest.mark.parametrize("sized", [True, False], ids=["sized", "unsized"])
@pytest.mark.parametrize(("sizes", "n", "groups"), GROUPS)
def test_a_group_gives_what_one_large_batch_gives(
    sizes: list[int], n: int, groups: list[list[int]], sized: bool
) -> None:
    ours, theirs = learner_of(sizes, sized=sized), learner_of(sizes)
    result = Runner(GradientAccumulation(n)).fit(3, ours)
    one_batch_a_group(theirs, groups, epochs=3)
    assert result.steps == 3 * len(groups)
    assert close(ours, theirs)


def test_four_equal_batches_lose_nothing_in_weighting() -> None:
    ours, theirs = learner_of([16] * 4), learner_of([16] * 4)
    Runner(GradientAccumulation(4)).fit(1, ours)
    for x, y in theirs.data.train_dl:
        (theirs.loss_func(theirs.model(x), y) / 4).backward()
    theirs.opt.step()
    assert torch.equal(ours.model.weight, theirs.model.weight)


def test_everybody_sees_the_loss_as_it_is() -> None:
    learner = learner_of([4, 4, 2])
    run = Runner(GradientAccumulation(2))
    shown: list[Tensor] = []
    expected: list[Tensor] = []

    @run.on("after_pred")
    def compute(run: Runner) -> None:
        expected.append(run.loss_func(run.pred, run.yb).detach())

    for event in ("after_loss", "after_backward", "after_batch"):
        for priority in (900, -900):
            run.on(event, lambda run: shown.append(run.loss.detach()), priority=priority)
    run.fit(1, learner)
    assert len(shown) == 18
    assert all(torch.equal(loss, expected[i // 6]) for i, loss in enumerate(shown))


@pytest.mark.parametrize(("sized", "last"), [(True, 4), (False, None)])
def test_the_last_group_is_stepped_in_its_batch_where_that_is_known(
    sized: bool, last: int | None
) -> None:
    run = Runner(GradientAccumulation(3))
    stepped: list[int | None] = []
    run.on("after_step", lambda run: stepped.append(run.batch_index))
    run.fit(1, learner_of([4] * 5, sized=sized))
    assert stepped == [2, last]


def test_the_step_is_cancelled_with_a_reason_and_gradients_stay() -> None:
    learner = learner_of([4, 4, 4, 4])
    run = Runner(GradientAccumulation(2))
    waiting: list[bool] = []
    run.on("after_cancel_step", lambda run: waiting.append(run.model.weight.grad is not None))
    result = run.fit(1, learner)
    assert [(c.scope, c.reason) for c in result.cancellations] == [("step", "accumulating")] * 2
    assert waiting == [True, True]
    assert learner.model.weight.grad is None


def test_a_batch_that_left_no_gradient_does_not_count() -> None:
    ours, theirs = learner_of([4] * 5), learner_of([4] * 5)
    run = Runner(GradientAccumulation(2))
    run.on("after_loss", lambda run: run.token.cancel("batch") if run.batch_index == 1 else None)
    result = run.fit(1, ours)
    one_batch_a_group(theirs, [[0, 2], [3, 4]])
    assert result.steps == 2
    assert close(ours, theirs)


def test_a_batch_that_was_cancelled_after_its_backward_pass_counts() -> None:
    ours, theirs = learner_of([4] * 5), learner_of([4] * 5)
    run = Runner(GradientAccumulation(2))
    run.on(
        "after_backward", lambda run: run.token.cancel("batch") if run.batch_index == 1 else None
    )
    result = run.fit(1, ours)
    one_batch_a_group(theirs, [[0, 1, 2], [3, 4]])
    assert result.steps == 2
    assert close(ours, theirs)


def test_a_last_batch_that_was_cancelled_does_not_keep_the_group_from_its_step() -> None:
    ours, theirs = learner_of([4] * 4), learner_of([4] * 4)
    run = Runner(GradientAccumulation(2))
    run.on("after_pred", lambda run: run.token.cancel("batch") if run.batch_index == 3 else None)
    result = run.fit(1, ours)
    one_batch_a_group(theirs, [[0, 1], [2]])
    assert result.steps == 2
    assert close(ours, theirs)


def test_a_step_that_others_cancel_lets_the_group_go_on() -> None:
    ours, theirs = learner_of([4, 2, 3, 4]), learner_of([4, 2, 3, 4])
    run = Runner(GradientAccumulation(2))
    run.on("begin_step", lambda run: run.token.cancel("step") if run.batch_index == 1 else None)
    result = run.fit(1, ours)
    one_batch_a_group(theirs, [[0, 1, 2], [3]])
    assert result.steps == 2
    assert close(ours, theirs)


def test_a_group_whose_epoch_was_cut_short_goes_on_in_the_next() -> None:
    ours, theirs = learner_of([4, 4, 4, 4]), learner_of([4, 4, 4, 4])
    run = Runner(GradientAccumulation(4))
    run.on("after_batch", lambda run: run.token.cancel("train") if run.n_iter == 2 else None)
    result = run.fit(2, ours)
    one_batch_a_group(theirs, [[0, 1, 0, 1], [2, 3]])
    assert result.steps == 2
    assert close(ours, theirs)


def test_a_step_after_the_batches_leaves_the_outcome_readable() -> None:
    learner = learner_of([4, 4, 4], sized=False)
    run = Runner(GradientAccumulation(2))
    outcomes: list[str | None] = []
    run.on("after_train", lambda run: outcomes.append(run.outcome))
    run.on("begin_step", lambda run: run.token.cancel("step") if run.batch_index is None else None)
    result = run.fit(1, learner)
    assert outcomes == ["completed"]
    assert result.steps == 1


def test_the_fit_can_be_cancelled_in_a_step_after_the_batches() -> None:
    learner = learner_of([4, 4, 4], sized=False)
    run = Runner(GradientAccumulation(2))
    outcomes: list[str | None] = []
    run.on("after_train", lambda run: outcomes.append(run.outcome))
    run.on("after_step", lambda run: run.token.cancel("fit") if run.batch_index is None else None)
    result = run.fit(3, learner)
    assert outcomes == ["completed"]
    assert (result.steps, result.outcome) == (2, "cancelled")


def test_what_a_cancelled_fit_left_does_not_reach_the_next() -> None:
    ours, theirs = learner_of([4] * 4), learner_of([4] * 4)
    run = Runner(GradientAccumulation(4))
    cancelling = run.on("after_batch", lambda run: run.token.cancel("fit"))
    run.fit(1, ours)
    cancelling.disconnect()
    run.fit(1, ours)
    one_batch_a_group(theirs, [[0, 1, 2, 3]])
    assert close(ours, theirs)


def cancelled_in_its_second_batch(run: Runner, learner: Learner) -> None:
    """Run a fit that leaves a group of two batches."""
    cancelling = run.on(
        "after_batch", lambda run: run.token.cancel("fit") if run.n_iter == 2 else None
    )
    run.fit(1, learner)
    cancelling.disconnect()


def test_what_a_cancelled_fit_left_does_not_outlast_a_fit_of_another_learner() -> None:
    ours, theirs = learner_of([4] * 4), learner_of([4] * 4)
    run = Runner(GradientAccumulation(4))
    cancelled_in_its_second_batch(run, ours)
    run.fit(1, learner_of([4] * 4))
    run.fit(1, ours)
    one_batch_a_group(theirs, [[0, 1, 2, 3]])
    assert close(ours, theirs)


def test_gradients_of_another_learner_are_not_dropped() -> None:
    run, other = Runner(GradientAccumulation(4)), learner_of([4] * 4)
    cancelled_in_its_second_batch(run, learner_of([4] * 4))
    other.model.weight.grad = torch.ones_like(other.model.weight)
    found: list[Tensor] = []
    run.on("begin_batch", lambda run: found.append(run.model.weight.grad.clone()))
    run.fit(1, other)
    assert torch.equal(found[0], torch.ones_like(found[0]))


def test_the_gradients_of_a_cancelled_fit_are_dropped_after_a_resumed_one_too(
    tmp_path: Path,
) -> None:
    saving = Runner([GradientAccumulation(4), Checkpoint(tmp_path)])
    cancelled_in_its_second_batch(saving, learner_of([4] * 4))
    ours, theirs = learner_of([4] * 4), learner_of([4] * 4)
    run = Runner([GradientAccumulation(4), Checkpoint(tmp_path)])
    cancelling = run.on("after_batch", lambda run: run.token.cancel("fit"))
    run.fit(1, ours, resume="auto")
    cancelling.disconnect()
    run.fit(1, ours)
    one_batch_a_group(theirs, [[0, 1, 2, 3]])
    assert close(ours, theirs)


def test_gradients_that_somebody_zeroed_start_a_new_group() -> None:
    ours, theirs = learner_of([4, 4, 4]), learner_of([4, 4, 4])
    run = Runner(GradientAccumulation(2))
    run.on("after_batch", lambda run: run.opt.zero_grad() if run.batch_index == 0 else None)
    result = run.fit(1, ours)
    one_batch_a_group(theirs, [[1, 2]])
    assert result.steps == 1
    assert close(ours, theirs)


def test_nothing_makes_the_host_wait(no_sync: AbstractContextManager[None]) -> None:
    learner = learner_of([4, 3, 2, 4, 1])
    with no_sync:
        assert Runner(GradientAccumulation(2)).fit(2, learner).steps == 6


@pytest.mark.parametrize("batches", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("sized", [True, False], ids=["sized", "unsized"])
def test_a_fit_can_be_resumed_in_the_middle_of_a_group(
    tmp_path: Path, batches: int, sized: bool
) -> None:
    sizes = [4, 2, 3, 4, 1]
    whole = learner_of(sizes, sized=sized)
    Runner(GradientAccumulation(3)).fit(2, whole)
    first = Runner([GradientAccumulation(3), Checkpoint(tmp_path)])
    first.on("after_batch", lambda run: run.token.cancel("fit") if run.n_iter == batches else None)
    first.fit(2, learner_of(sizes, sized=sized))
    learner = learner_of(sizes, sized=sized)
    Runner([GradientAccumulation(3), Checkpoint(tmp_path)]).fit(2, learner, resume="auto")
    assert torch.equal(learner.model.weight, whole.model.weight)


def test_validation_is_left_alone(make_learner: Callable[..., Learner]) -> None:
    learner = make_learner()
    run = Runner(GradientAccumulation(2))
    losses: list[Tensor] = []
    run.on("after_batch", lambda run: losses.append(run.loss), during="validate")
    assert run.validate(learner).outcome == "completed"
    expected = [learner.loss_func(learner.model(x), y) for x, y in learner.data.valid_dl]
    assert torch.equal(torch.stack(losses), torch.stack(expected))
    assert len(run.predict(learner, learner.data.valid_dl)) == 8
    assert run.fit(0, learner).outcome == "completed"


@pytest.mark.parametrize(("n", "error"), [(0, ValueError), (2.0, TypeError), (True, TypeError)])
def test_bad_arguments_are_refused(n: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="n must be"):
        GradientAccumulation(n)


class KeepsItsLoss(Runner):
    """Makes the backward pass of the loss that it has computed, and not of ``run.loss``."""

    def one_batch(self) -> None:
        self.pred = self.learn.call_model(self.xb)
        self.emit.after_pred()
        loss = self.loss = self.learn.compute_loss(self.pred, self.yb)
        self.emit.after_loss()
        if self.in_train:
            loss.backward()
            self.emit.after_backward()
            self.optimizer_step()


class StepsItself(Runner):
    """Steps the optimizer past everybody who has a say in it."""

    def one_batch(self) -> None:
        self.pred = self.learn.call_model(self.xb)
        self.emit.after_pred()
        self.loss = self.learn.compute_loss(self.pred, self.yb)
        self.emit.after_loss()
        if self.in_train:
            self.loss.backward()
            self.emit.after_backward()
            self.opt.step()
            self.opt.zero_grad()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (KeepsItsLoss, r"made of another loss.*self\.loss\.backward\(\)"),
        (StepsItself, r"self\.optimizer_step\(\) after each.*never opt\.step\(\)"),
    ],
)
def test_a_one_batch_in_which_it_would_do_nothing_is_an_error(
    kind: type[Runner], said: str, make_learner: Callable[..., Learner]
) -> None:
    with pytest.raises(RuntimeError, match=said):
        kind(GradientAccumulation(2)).fit(1, make_learner())


def test_a_step_that_somebody_cancels_before_it_is_asked_is_no_error(
    make_learner: Callable[..., Learner],
) -> None:
    run = Runner(GradientAccumulation(2))
    run.on("begin_step", lambda run: run.token.cancel("step", "not now"), priority=1000)
    assert run.fit(1, make_learner()).outcome == "completed"
