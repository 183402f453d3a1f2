"""A fit that ends by request leaves a checkpoint of its last whole step; whoever asks, anywhere."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from eventtrain import (
    AvgStatsCallback,
    CancellationToken,
    DataBunch,
    Learner,
    Runner,
    TensorLoader,
    accuracy,
)
from eventtrain.callbacks import (
    EMA,
    Checkpoint,
    GradientAccumulation,
    LRScheduler,
    MaxSteps,
    Mixup,
    OneCycle,
    StopFile,
    TimeLimit,
)
from eventtrain.checkpoints.files import list_checkpoints
from eventtrain.events import EVENTS

EPOCHS, BATCHES = 3, 4
WITHIN_FIT = [
    e.name
    for e in EVENTS
    if not e.only_after and e.scope != "predict" and e.name not in ("begin_fit", "after_fit")
]


class NoisyRows(torch.utils.data.Dataset[Any]):
    """Draws from three generators for each row, in the process of the run."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        noise = torch.randn(()) + random.random() + float(numpy.random.rand())
        return self.x[index] + noise, self.y[index]


def make_learner() -> Learner:
    for seed in (random.seed, numpy.random.seed, torch.manual_seed):
        seed(0)
    x, y = torch.randn(24, 5), torch.randint(0, 3, (24,))
    train = torch.utils.data.DataLoader(NoisyRows(x[:16], y[:16]), batch_size=4, shuffle=True)
    data = DataBunch(train, TensorLoader(x[16:], y[16:], 4))
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    opt = torch.optim.AdamW(model.parameters(), lr=0.01)
    return Learner(model, opt, nn.functional.cross_entropy, data)


def make_runner(folder: Path, *more: Any, **options: Any) -> Runner:
    checkpoint = Checkpoint(folder, every_epochs=None, every_seconds=1e9)
    stats = AvgStatsCallback(accuracy, report=None)
    return Runner([stats, EMA(0.9), checkpoint, *more], **options)


def state_of(run: Runner, learn: Learner) -> tuple[Any, Any]:
    weights = {**learn.model.state_dict(), **run.ema.state_dict()["averages"]}
    return {name: value.tolist() for name, value in weights.items()}, run.result.history  # type: ignore[union-attr]


def uninterrupted(folder: Path, *more: Any) -> tuple[Any, Any]:
    run, learn = make_runner(folder / "whole", *more), make_learner()
    run.fit(EPOCHS, learn)
    return state_of(run, learn)


def resumed(folder: Path, *more: Any) -> tuple[Any, Any]:
    run, learn = make_runner(folder, *more), make_learner()
    torch.manual_seed(99)  # as in another process
    run.fit(EPOCHS, learn, resume="auto")
    return state_of(run, learn)


def end_at(
    run: Runner, event: str, nth: int, end: Callable[[Runner], object], **options: Any
) -> None:
    """Have ``end`` called at the n-th time that ``event`` fires, or the last if it fires less."""
    is_rare = any(name in event for name in ("epoch", "train", "validate", "row"))
    left = min(nth, EPOCHS) if is_rare else nth

    @run.on(event, **options)
    def count(run: Runner) -> None:
        nonlocal left
        left -= 1
        if not left:
            end(run)


def cancel(run: Runner) -> None:
    run.token.cancel("fit", "enough")


def from_a_thread(run: Runner) -> None:
    thread = threading.Thread(target=run.token.cancel, args=("fit", "enough"))
    thread.start()
    thread.join()


def by_a_signal(run: Runner) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def by_a_parent_token(run: Runner) -> None:
    PARENT[-1].cancel("fit", "enough")


PARENT: list[CancellationToken] = []


@pytest.mark.parametrize("nth", [2, 7])
@pytest.mark.parametrize("priority", [500, 0, -500])
@pytest.mark.parametrize("event", WITHIN_FIT)
def test_a_handler_that_ends_the_fit_in_any_event_loses_no_step(
    event: str, priority: int, nth: int, tmp_path: Path
) -> None:
    run, learn = make_runner(tmp_path), make_learner()
    end_at(run, event, nth, cancel, priority=priority)
    result = run.fit(EPOCHS, learn)
    assert result.outcome == "cancelled"
    assert list_checkpoints(tmp_path)[-1].steps == result.steps
    assert resumed(tmp_path) == uninterrupted(tmp_path)


@pytest.mark.parametrize("end", [from_a_thread, by_a_signal, by_a_parent_token])
@pytest.mark.parametrize("event", WITHIN_FIT)
def test_who_asks_from_outside_at_any_moment_loses_no_step(
    event: str, end: Callable[[Runner], object], tmp_path: Path
) -> None:
    run, learn = make_runner(tmp_path, on_interrupt="return"), make_learner()
    PARENT.append(CancellationToken())
    end_at(run, event, 7, end)
    result = run.fit(EPOCHS, learn, token=CancellationToken.linked(PARENT[-1]))
    assert result.outcome == "cancelled"
    assert list_checkpoints(tmp_path)[-1].steps == result.steps
    assert resumed(tmp_path) == uninterrupted(tmp_path)


@pytest.mark.parametrize("event", ["after_epoch", "after_row"])
def test_who_asks_at_the_very_end_is_not_overheard(event: str, tmp_path: Path) -> None:
    run, learn = make_runner(tmp_path), make_learner()
    end_at(run, event, EPOCHS, from_a_thread, priority=-500)
    result = run.fit(EPOCHS, learn)
    assert (result.outcome, result.epochs) == ("cancelled", EPOCHS)


MORE: dict[str, Callable[[], list[Any]]] = {
    "accumulation": lambda: [GradientAccumulation(3)],
    "mixup": lambda: [Mixup(0.4, torch.Generator().manual_seed(3))],
    "one cycle": lambda: [OneCycle(0.1)],
    "a schedule by steps": lambda: [
        LRScheduler(lambda opt: torch.optim.lr_scheduler.ExponentialLR(opt, 0.9), step="batch")
    ],
}


@pytest.mark.parametrize("more", MORE.values(), ids=MORE.keys())
@given(
    event=st.sampled_from(WITHIN_FIT),
    nth=st.integers(1, 12),
    priority=st.sampled_from([1001, 95, 60, 0, -60, -90, -2000]),
    end=st.sampled_from([cancel, from_a_thread]),
)
@settings(max_examples=12, deadline=None)
def test_nothing_is_lost_whatever_else_is_there(
    more: Callable[[], list[Any]], event: str, nth: int, priority: int, end: Any
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run, learn = make_runner(folder, *more()), make_learner()
        end_at(run, event, nth, end, priority=priority)
        result = run.fit(EPOCHS, learn)
        if list_checkpoints(folder):
            assert resumed(folder, *more()) == uninterrupted(folder, *more())
        else:
            assert not result.steps


class WithoutLength:
    """Has the last group of batches stepped when the training has ended."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> Any:
        return iter(self.loader)


@pytest.mark.parametrize("priority", [1001, 500, 0])
@pytest.mark.parametrize("event", ["begin_step", "after_train"])
def test_a_step_that_waits_for_the_end_of_training_is_not_lost(
    event: str, priority: int, tmp_path: Path
) -> None:
    def make() -> Learner:
        learn = make_learner()
        learn.data = DataBunch(WithoutLength(learn.data.train_dl), learn.data.valid_dl)
        return learn

    run, resumed, whole = (make_runner(tmp_path, GradientAccumulation(3)) for _ in range(3))

    @run.on(event, priority=priority)
    def end(run: Runner) -> None:
        if run.epoch == 1 and "batch" not in run.token.open_scopes:
            run.token.cancel("fit", "enough")

    run.fit(EPOCHS, make())
    states = []
    for each, resume in [(resumed, "auto"), (whole, None)]:
        learn = make()
        each.fit(EPOCHS, learn, resume=resume)
        states.append(state_of(each, learn))
    assert states[0] == states[1]


@pytest.mark.parametrize("event", ["after_pred", "after_loss"])
def test_a_validation_that_is_cut_is_run_again(event: str, tmp_path: Path) -> None:
    run, learn = make_runner(tmp_path), make_learner()
    end_at(run, event, 2, cancel, during="validate")
    run.fit(EPOCHS, learn)
    assert [(r.epoch, r.phase, r.batch) for r in list_checkpoints(tmp_path)] == [(0, "validate", 0)]
    assert resumed(tmp_path) == uninterrupted(tmp_path)


@pytest.mark.parametrize("n", range(1, EPOCHS * BATCHES))
def test_max_steps_leaves_a_checkpoint_of_its_last_step(n: int, tmp_path: Path) -> None:
    run, learn = make_runner(tmp_path, MaxSteps(n)), make_learner()
    run.fit(EPOCHS, learn)
    assert [r.steps for r in list_checkpoints(tmp_path)] == [n]
    more, other = make_runner(tmp_path, MaxSteps(EPOCHS * BATCHES)), make_learner()
    more.fit(EPOCHS, other, resume="auto")
    assert state_of(more, other)[0] == uninterrupted(tmp_path)[0]


def test_a_time_limit_and_a_stop_file_leave_a_checkpoint(tmp_path: Path) -> None:
    for number, more in enumerate([TimeLimit(0.05), StopFile(tmp_path / "stop", every_seconds=0)]):
        (tmp_path / "stop").touch()
        folder = tmp_path / str(number)
        run = make_runner(folder, more)
        run.on("after_loss", lambda run: time.sleep(0.02), during="train")
        result = run.fit(EPOCHS, make_learner())
        assert [r.steps for r in list_checkpoints(folder)] == [result.steps]
        assert result.steps


def test_a_handler_before_the_step_still_prevents_it(tmp_path: Path) -> None:
    run, learn = make_runner(tmp_path), make_learner()
    end_at(run, "after_backward", 3, cancel)
    assert run.fit(EPOCHS, learn).steps == 2


def test_the_model_is_left_as_the_cancelled_batch_left_it(tmp_path: Path) -> None:
    means = []
    for folder in (tmp_path, None):
        learn = make_learner()
        run = Runner(Checkpoint(folder) if folder else None)
        end_at(run, "after_loss", 3, cancel)
        run.fit(EPOCHS, learn)
        means.append(learn.model[1].running_mean.tolist())
    assert means[0] == means[1]


def test_a_fit_that_fails_leaves_the_checkpoints_of_before(tmp_path: Path) -> None:
    run = make_runner(tmp_path)
    end_at(run, "after_loss", 6, lambda run: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.fit(EPOCHS, make_learner())
    assert list_checkpoints(tmp_path) == []


def test_a_fit_that_was_cancelled_before_its_first_batch_had_ended_leaves_none(
    tmp_path: Path,
) -> None:
    run = make_runner(tmp_path)
    end_at(run, "after_loss", 1, cancel)
    run.fit(EPOCHS, make_learner())
    assert list_checkpoints(tmp_path) == []


def test_the_token_grants_at_once_again_after_the_fit(tmp_path: Path) -> None:
    token = CancellationToken()
    make_runner(tmp_path).fit(1, make_learner(), token=token)
    assert token.grant_by is None
