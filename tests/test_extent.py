"""Fits by steps: how long they are, what they leave of a pass, and where they go on."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from eventtrain import AvgStatsCallback, DataBunch, Learner, Runner
from eventtrain.callbacks import Checkpoint, GradientAccumulation, MaxSteps
from eventtrain.errors import CheckpointError

Make = Callable[..., Learner]


def by_hand(learner: Learner, steps: int, accumulate: int = 1) -> list[Tensor]:
    """Train a copy for so many steps, over and over the training loader."""
    model = copy.deepcopy(learner.model)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    taken = 0
    while True:
        batches = list(learner.data.train_dl)
        for first in range(0, len(batches), accumulate):
            if taken == steps:
                return [p.detach().clone() for p in model.parameters()]
            for xb, yb in batches[first : first + accumulate]:
                (learner.loss_func(model(xb), yb) / accumulate).backward()
            opt.step()
            opt.zero_grad()
            taken += 1


def weights(learner: Learner) -> list[Tensor]:
    return [p.detach().clone() for p in learner.model.parameters()]


def are_equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7])
def test_exactly_so_many_steps_are_taken_over_as_many_passes_as_it_takes(
    learner: Learner, steps: int
) -> None:
    expected = by_hand(learner, steps)
    result = Runner().fit(steps=steps, learn=learner)
    assert (result.outcome, result.steps) == ("completed", steps)
    assert result.epochs == -(-steps // 3)
    assert are_equal(weights(learner), expected)


class Endless:
    """A stream without an end, which counts what is read of it."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(1)
        while True:
            self.read += 1
            yield torch.randn(4, 5, generator=generator), torch.randint(0, 3, (4,))


def test_a_stream_without_an_end_is_read_as_far_as_the_last_step(make_learner: Make) -> None:
    learner = make_learner()
    stream = Endless()
    learner.data = DataBunch(stream, learner.data.valid_dl)
    result = Runner(AvgStatsCallback(report=None)).fit(steps=9, learn=learner)
    assert (result.outcome, result.steps, stream.read) == ("completed", 9, 9)
    assert list(result.history[-1]) == ["epoch", "train_loss", "valid_loss"]


def test_the_last_pass_ends_as_any_other_and_is_validated(learner: Learner) -> None:
    run, fired = Runner(), []
    for name in ("after_cancel_train", "after_train", "after_validate", "after_epoch", "after_fit"):
        run.on(name, lambda run, name=name: fired.append((name, run.outcome)))
    run.fit(steps=1, learn=learner)
    names = ["after_train", "after_validate", "after_epoch", "after_fit"]
    assert fired == [(name, "completed") for name in names]


def test_no_steps_fire_the_events_of_the_fit_alone(learner: Learner) -> None:
    run, fired = Runner(), []
    run.on(["begin_fit", "begin_epoch", "after_fit"], lambda run: fired.append(run.epoch))
    assert run.fit(steps=0, learn=learner).outcome == "completed"
    assert fired == [None, None]


def test_a_fit_by_steps_has_no_number_of_epochs_and_one_by_epochs_none_of_steps(
    learner: Learner,
) -> None:
    run, seen = Runner(), []
    run.on("begin_fit", lambda run: seen.append((run.epochs, run.total_steps)))
    run.fit(steps=4, learn=learner)
    run.fit(2, learner)
    assert seen == [(None, 4), (2, None)]


def test_steps_that_were_cancelled_do_not_count(learner: Learner) -> None:
    run = Runner()
    run.on("begin_step", lambda run: run.token.cancel("step", "odd"), when=lambda r: r.n_iter % 2)
    assert run.fit(steps=4, learn=learner).steps == 4
    assert run.n_iter == 7


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_groups_of_batches_are_a_step_each(make_learner: Make, steps: int) -> None:
    learner = make_learner(train=4)
    expected = by_hand(learner, steps, accumulate=2)
    result = Runner(GradientAccumulation(2)).fit(steps=steps, learn=learner)
    assert (result.steps, result.outcome) == (steps, "completed")
    for own, other in zip(weights(learner), expected, strict=True):
        torch.testing.assert_close(own, other)


def test_a_fit_that_never_takes_a_step_says_so(make_learner: Make) -> None:
    run = Runner()
    run.on("begin_step", lambda run: run.token.cancel("step", "no"))
    with pytest.raises(RuntimeError, match=r"fit\(steps=5\) has taken 0 steps.* 102 batches"):
        run.fit(steps=5, learn=make_learner())
    assert run.result is not None and run.result.outcome == "failed"


def test_one_long_pass_without_a_step_is_enough(make_learner: Make) -> None:
    run = Runner()
    run.on("begin_step", lambda run: run.token.cancel("step", "no"))
    with pytest.raises(RuntimeError, match=r"none in the last 120 batches \(1 pass over"):
        run.fit(steps=5, learn=make_learner(train=120))


def test_a_few_short_passes_without_a_step_are_forgiven(make_learner: Make) -> None:
    run = Runner()
    run.on("begin_step", lambda run: run.token.cancel("step", "no"), when=lambda r: r.epoch < 60)
    assert run.fit(steps=2, learn=make_learner(train=1)).steps == 2


def test_epochs_that_are_all_cancelled_do_not_go_on_for_ever(learner: Learner) -> None:
    run = Runner()
    run.on("begin_epoch", lambda run: run.token.cancel("epoch", "no"))
    with pytest.raises(RuntimeError, match="it would never end"):
        run.fit(steps=5, learn=learner)


def test_a_callback_may_end_it_before(learner: Learner) -> None:
    result = Runner(MaxSteps(2)).fit(steps=5, learn=learner)
    assert (result.outcome, result.steps) == ("cancelled", 2)


WRONG: list[tuple[Callable[[Any], Any], type, str]] = [
    (lambda learn: Runner().fit(5, learn, steps=5), TypeError, r"epochs or steps, and got both"),
    (lambda learn: Runner().fit(learn=learn), TypeError, r"fit\(steps=1000, learn=learn\)"),
    (lambda learn: Runner().fit(learn), TypeError, r"fit\(epochs, learn\)"),
    (lambda learn: Runner().fit(learn, steps=5), TypeError, r"fit\(steps=1000, learn=learn\)"),
    (lambda learn: Runner().fit(steps=5), TypeError, "fit takes a Learner, got None"),
    (lambda learn: Runner().fit(5), TypeError, "fit takes a Learner, got None"),
    (lambda learn: Runner().fit(steps=-1, learn=learn), ValueError, "steps must be at least 0"),
    (lambda learn: Runner().fit(steps=1e3, learn=learn), TypeError, "steps must be a whole number"),
    (lambda learn: Runner().fit(steps=True, learn=learn), TypeError, "steps must be a whole"),
]


@pytest.mark.parametrize(("call", "kind", "message"), WRONG)
def test_a_wrong_call_is_told_the_right_one(
    call: Any, kind: type[Exception], message: str, learner: Learner
) -> None:
    with pytest.raises(kind, match=message):
        call(learner)


def resumable(x: Any, folder: Path, *cbs: Any) -> tuple[Runner, Learner]:
    """A run with dropout over a shuffled loader, that saves after every step."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    y = torch.arange(len(x)) % 3
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, y), batch_size=4, shuffle=True
    )
    data = DataBunch(loader, loader)
    checkpoint = Checkpoint(folder, every_steps=1, keep_last=100)
    run = Runner([checkpoint, AvgStatsCallback(report=None), *cbs])
    return run, Learner(model, opt, nn.functional.cross_entropy, data)


@settings(max_examples=12)
@given(at=st.integers(0, 6), event=st.sampled_from(["begin_batch", "after_step", "after_validate"]))
def test_a_resumed_fit_takes_what_is_left_of_its_steps(
    tmp_path_factory: pytest.TempPathFactory, at: int, event: str
) -> None:
    folder = tmp_path_factory.mktemp("steps")
    x = torch.randn(16, 5, generator=torch.Generator().manual_seed(0))
    run, learn = resumable(x, folder / "whole")
    expected, rows = run.fit(steps=7, learn=learn), None
    first, other = resumable(x, folder / "cut")
    calls = itertools.count()
    first.on(event, lambda run: run.token.cancel("fit", "now"), when=lambda run: next(calls) == at)
    first.fit(steps=7, learn=other)
    again, third = resumable(x, folder / "cut")
    result = again.fit(steps=7, learn=third, resume="auto")
    rows = result.history
    assert (result.outcome, result.steps) == ("completed", 7)
    assert rows == expected.history
    assert are_equal(weights(third), weights(learn))


def test_a_fit_that_was_saved_after_its_last_step_is_validated_when_it_is_resumed(
    tmp_path: Path,
) -> None:
    x = torch.randn(16, 5)
    run, learn = resumable(x, tmp_path)
    run.on("begin_validate", lambda run: 1 / 0, when=lambda run: run.epoch == 1)
    with pytest.raises(ZeroDivisionError):
        run.fit(steps=6, learn=learn)
    again, other = resumable(x, tmp_path)
    batches: list[Any] = []
    again.on("begin_batch", lambda run: batches.append(run.phase))
    result = again.fit(steps=6, learn=other, resume="auto")
    assert batches == ["validate"] * 4
    assert (result.steps, len(result.history)) == (6, 2)


def test_fewer_steps_than_were_taken_are_refused(tmp_path: Path) -> None:
    x = torch.randn(16, 5)
    run, learn = resumable(x, tmp_path)
    run.fit(steps=6, learn=learn)
    again, other = resumable(x, tmp_path)
    with pytest.raises(CheckpointError, match=r"after 6 steps, and a fit of 5 .*ask for 6 or more"):
        again.fit(steps=5, learn=other, resume="auto")


def test_more_steps_go_on_with_the_next_pass(tmp_path: Path) -> None:
    x = torch.randn(16, 5)
    run, learn = resumable(x, tmp_path)
    run.fit(steps=6, learn=learn)
    again, other = resumable(x, tmp_path)
    epochs: list[Any] = []
    again.on("begin_epoch", lambda run: epochs.append(run.epoch))
    result = again.fit(steps=9, learn=other, resume="auto")
    assert (result.steps, epochs) == (9, [2])
