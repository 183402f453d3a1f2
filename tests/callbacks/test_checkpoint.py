"""Checkpoints: a run goes on from one as if it had never stopped."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from eventtrain import (
    AvgStatsCallback,
    Callback,
    CheckpointError,
    DataBunch,
    Learner,
    Runner,
    TensorLoader,
    accuracy,
    load_checkpoint,
)
from eventtrain.callbacks import Checkpoint, EarlyStopping, EventLog, ReduceLROnPlateau
from eventtrain.checkpoints.files import list_checkpoints, write_checkpoint
from eventtrain.checkpoints.pace import Pace
from eventtrain.checkpoints.records import Record

EPOCHS = 3
BATCHES = 4  # of training; one of validation
Loaders = Callable[[Tensor, Tensor, bool], Any]


def tensors(x: Tensor, y: Tensor, train: bool) -> Any:
    return TensorLoader(x, y, bs=4, shuffle=train)


def tensors_with_a_generator(x: Tensor, y: Tensor, train: bool) -> Any:
    generator = torch.Generator().manual_seed(7) if train else None
    return TensorLoader(x, y, bs=4, shuffle=train, generator=generator)


def torch_loader(x: Tensor, y: Tensor, train: bool) -> Any:
    return DataLoader(TensorDataset(x, y), batch_size=4, shuffle=train)


def torch_loader_with_a_generator(x: Tensor, y: Tensor, train: bool) -> Any:
    generator = torch.Generator().manual_seed(7) if train else None
    return DataLoader(TensorDataset(x, y), batch_size=4, shuffle=train, generator=generator)


class Noisy(IterableDataset):  # type: ignore[type-arg]
    """Draws from three generators for every item; its length is unknown."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __iter__(self) -> Iterator[Any]:
        for x, y in zip(self.x, self.y, strict=True):
            yield x + torch.randn(()) + random.random() + float(numpy.random.rand()), y


def noise(x: Tensor, y: Tensor, train: bool) -> Any:
    return DataLoader(Noisy(x, y), batch_size=4)


class NoisyRows(TensorDataset):
    """Draws a random number for every item, in the worker that makes it."""

    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return x + torch.randn(()), y


def workers(x: Tensor, y: Tensor, train: bool) -> Any:
    return DataLoader(NoisyRows(x, y), batch_size=4, shuffle=train, num_workers=2)


def on_a_gpu(x: Tensor, y: Tensor, train: bool) -> Any:
    """Of which dropout there takes its random numbers too."""
    return tensors(x.cuda(), y.cuda(), train)


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
LOADERS = [
    *(tensors, tensors_with_a_generator, torch_loader, torch_loader_with_a_generator, noise),
    pytest.param(on_a_gpu, marks=CUDA),
]


def make_learner(loaders: Loaders = tensors) -> Learner:
    """Weights, buffers, dropout, an optimizer with state: all that a run can lose."""
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
    x, y = torch.randn(4 * BATCHES + 4, 5), torch.randint(0, 3, (4 * BATCHES + 4,))
    n = 4 * BATCHES
    data = DataBunch(loaders(x[:n], y[:n], True), loaders(x[n:], y[n:], False))
    layers = [nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)]
    model = nn.Sequential(*layers).to("cuda" if loaders is on_a_gpu else "cpu")
    opt = torch.optim.AdamW(model.parameters(), lr=0.01)
    return Learner(model, opt, nn.functional.cross_entropy, data)


def assert_same_weights(one: Learner, other: Learner) -> None:
    first, second = one.model.state_dict(), other.model.state_dict()
    assert list(first) == list(second)
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


class Killed(BaseException):
    """What ends a run as suddenly as can be done inside of a process."""


class Kill(Callback):
    """Ends the run for good at the n-th time that ``event`` fires."""

    def __init__(self, event: str, n: int) -> None:
        self.event, self.left = event, n

    def handlers(self, plugin: str | None = None) -> list[Any]:
        from eventtrain.bus.handlers import Handler, Options

        return [Handler(self.event, self.count, Options(priority=-2000))]

    def count(self, run: Runner) -> None:
        self.left -= 1
        if not self.left:
            raise Killed


def interrupted(
    folder: Path, event: str, n: int, loaders: Loaders = tensors, **options: Any
) -> None:
    """Train with a checkpoint a step until the n-th ``event``, where everything is lost."""
    checkpoint = Checkpoint(folder, **{"every_steps": 1, **options})
    run = Runner([AvgStatsCallback(accuracy, report=None), checkpoint, Kill(event, n)])
    with pytest.raises(Killed):
        run.fit(EPOCHS, make_learner(loaders))


def learner_of_another_process(loaders: Loaders = tensors) -> Learner:
    """The same learner, where other random numbers have been drawn since."""
    learn = make_learner(loaders)
    random.seed(1)
    numpy.random.seed(1)
    torch.manual_seed(1)
    return learn


def resumed(folder: Path, loaders: Loaders = tensors, **options: Any) -> tuple[Runner, Learner]:
    learn = learner_of_another_process(loaders)
    checkpoint = Checkpoint(folder, **{"every_steps": 1, **options})
    run = Runner([AvgStatsCallback(accuracy, report=None), checkpoint])
    run.fit(EPOCHS, learn, resume="auto")
    return run, learn


def uninterrupted(loaders: Loaders = tensors) -> tuple[Runner, Learner]:
    run, learn = Runner(AvgStatsCallback(accuracy, report=None)), make_learner(loaders)
    run.fit(EPOCHS, learn)
    return run, learn


def assert_same_run(one: tuple[Runner, Learner], other: tuple[Runner, Learner]) -> None:
    assert_same_weights(one[1], other[1])
    first, second = one[0].result, other[0].result
    assert first is not None and second is not None
    assert first.history == second.history
    assert (first.steps, first.epochs, first.outcome) == (second.steps, second.epochs, "completed")


@pytest.mark.parametrize("n", range(1, EPOCHS * (BATCHES + 1) + 1))
def test_a_run_lost_after_any_batch_ends_with_the_same_weights_and_history(
    n: int, tmp_path: Path
) -> None:
    interrupted(tmp_path, "after_batch", n)
    assert_same_run(resumed(tmp_path), uninterrupted())


@pytest.mark.parametrize(
    "event", ["begin_batch", "after_backward", "begin_validate", "after_epoch"]
)
@pytest.mark.parametrize("loaders", LOADERS, ids=lambda loaders: loaders.__name__)
def test_it_does_so_with_any_loader(event: str, loaders: Loaders, tmp_path: Path) -> None:
    interrupted(tmp_path, event, 2 if event in ("begin_validate", "after_epoch") else 7, loaders)
    assert_same_run(resumed(tmp_path, loaders), uninterrupted(loaders))


# torch finds two of them too many for a process that may use one core.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_random_numbers_that_workers_draw_are_drawn_again(tmp_path: Path) -> None:
    interrupted(tmp_path, "begin_batch", 7, workers)
    assert_same_run(resumed(tmp_path, workers), uninterrupted(workers))


CANCELLING = ["begin_batch", "after_loss", "after_backward", "begin_step", "after_batch"]


class CancelAt(Callback):
    """Cancels scopes at places of the run that are the same in every process."""

    def __init__(self, places: Sequence[tuple[Any, ...]] = ()) -> None:
        self.places = places

    def handlers(self, plugin: str | None = None) -> list[Any]:
        from eventtrain.bus.handlers import Handler, Options

        return [Handler(event, partial(self.cancel, event), Options()) for event in CANCELLING]

    def cancel(self, event: str, run: Runner) -> None:
        here = (event, run.phase, run.epoch, run.batch_index)
        for *where, scope in self.places:
            if here == tuple(where) and scope in run.token.open_scopes:
                run.token.cancel(scope, "as planned")


def lost_and_resumed(
    folder: Path,
    kills: list[tuple[str, int]],
    loaders: Loaders = tensors,
    *more: Callback,
    **options: Any,
) -> tuple[Runner, Learner]:
    """Train, losing everything at each of ``kills`` and going on in another process."""
    last = ("begin_fit", 2)  # never
    for event, n in [*kills, last]:
        saving = Checkpoint(folder, **{"every_steps": 1, **options})
        run = Runner([AvgStatsCallback(accuracy, report=None), *more, saving, Kill(event, n)])
        fresh = not list_checkpoints(folder)
        learn = make_learner(loaders) if fresh else learner_of_another_process(loaders)
        with contextlib.suppress(Killed):
            run.fit(EPOCHS, learn, resume="auto")
    return run, learn


@pytest.mark.parametrize("loaders", LOADERS, ids=lambda loaders: loaders.__name__)
def test_a_run_can_be_lost_again_and_again_with_any_loader(
    loaders: Loaders, tmp_path: Path
) -> None:
    kills = [("after_batch", 6), *[("after_loss", 2)] * 4, ("begin_validate", 1)]
    assert_same_run(lost_and_resumed(tmp_path, kills, loaders), uninterrupted(loaders))


@pytest.mark.slow
@settings(max_examples=40)
@given(
    kills=st.lists(
        st.tuples(
            st.sampled_from(["after_batch", "after_loss", "begin_validate", "after_epoch"]),
            st.integers(1, BATCHES + 1),
        ),
        max_size=5,
    ),
    places=st.lists(
        st.tuples(
            st.sampled_from(CANCELLING),
            st.sampled_from(["train", "validate"]),
            st.integers(0, EPOCHS - 1),
            st.integers(0, BATCHES - 1),
            st.sampled_from(["step", "batch", "train", "validate", "epoch"]),
        ),
        max_size=4,
    ),
    options=st.sampled_from([{}, {"every_steps": 2}, {"every_steps": None}]),
)
def test_a_run_can_be_lost_any_number_of_times(
    kills: list[tuple[str, int]], places: list[tuple[Any, ...]], options: dict[str, Any]
) -> None:
    whole = Runner([AvgStatsCallback(accuracy, report=None), CancelAt(places)]), make_learner()
    whole[0].fit(EPOCHS, whole[1])
    with tempfile.TemporaryDirectory() as folder:
        found = lost_and_resumed(Path(folder), kills, tensors, CancelAt(places), **options)
    assert_same_run(found, whole)


def test_a_run_lost_twice_in_validation_goes_on_with_the_loader_as_it_was(tmp_path: Path) -> None:
    def shuffled(x: Tensor, y: Tensor, train: bool) -> Any:
        return TensorLoader(x, y, bs=4 if train else 1, shuffle=True)

    def cancel_in_validation(run: Runner, at: int) -> None:
        if not run.in_train and run.batch_index == at:
            run.token.cancel("fit", "away")

    for at in (0, 1, 2):
        run = Runner([AvgStatsCallback(accuracy, report=None), Checkpoint(tmp_path)])
        run.on("after_batch", lambda run, at=at: cancel_in_validation(run, at))
        run.fit(EPOCHS, learner_of_another_process(shuffled) if at else make_learner(shuffled),
                resume="auto")  # fmt: skip
        last = list_checkpoints(tmp_path)[-1]
        assert (last.phase, last.batch) == ("validate", at + 1)
    assert_same_run(resumed(tmp_path, shuffled), uninterrupted(shuffled))


def test_a_checkpoint_at_the_edge_of_an_epoch_is_enough(tmp_path: Path) -> None:
    interrupted(tmp_path, "after_loss", 9, every_steps=None)
    (record,) = list_checkpoints(tmp_path)
    assert (record.epoch, record.phase) == (1, None)
    assert_same_run(resumed(tmp_path, every_steps=None), uninterrupted())


def test_gradients_that_wait_for_a_step_are_kept(tmp_path: Path) -> None:
    class EverySecond(Callback):
        def begin_step(self, run: Runner) -> None:
            if run.n_iter % 2 == 0:
                run.token.cancel("step", "waiting")

    def fit(*callbacks: Callback, resume: str | None = None) -> Learner:
        learn = make_learner()
        run = Runner([EverySecond(), *callbacks])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                run.fit(EPOCHS, learn, resume=resume)
            except Killed:
                assert resume is None
        return learn

    # After the third batch of the second epoch, whose gradient no step has taken yet.
    fit(Checkpoint(tmp_path, every_seconds=1e-9), Kill("after_batch", BATCHES + 1 + 3))
    assert_same_weights(fit(Checkpoint(tmp_path), resume="auto"), fit())


def test_a_finished_run_is_resumed_to_its_end(tmp_path: Path) -> None:
    first = resumed(tmp_path)
    second = resumed(tmp_path)
    assert_same_run(first, second)


def test_more_epochs_can_be_asked_for(tmp_path: Path) -> None:
    run = Runner(Checkpoint(tmp_path))
    run.fit(1, make_learner())
    learn = make_learner()
    Runner(Checkpoint(tmp_path)).fit(EPOCHS, learn, resume="auto")
    assert_same_weights(learn, uninterrupted()[1])


def test_a_resumed_run_fires_the_events_of_what_is_left(tmp_path: Path) -> None:
    interrupted(tmp_path, "after_batch", BATCHES + 1 + 3)
    log = EventLog()
    run = Runner([AvgStatsCallback(accuracy, report=None), Checkpoint(tmp_path), log])
    run.fit(2, make_learner(), resume="auto")
    events = [record["event"] for record in log.records]
    assert events[:4] == ["begin_fit", "begin_epoch", "begin_train", "begin_batch"]
    batches = [r["batch"] for r in log.records if r["event"] == "begin_batch"]
    assert batches == [3, 0]  # the last one of training, and the one of validation
    assert {r["epoch"] for r in log.records[1:-1]} == {1}


def test_a_run_lost_in_validation_skips_training(tmp_path: Path) -> None:
    class Ask(Callback):
        def begin_validate(self, run: Runner) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    run = Runner([AvgStatsCallback(accuracy, report=None), Ask(), Checkpoint(tmp_path)],
                 on_interrupt="return")  # fmt: skip
    run.fit(EPOCHS, make_learner())
    assert list_checkpoints(tmp_path)[-1].phase == "validate"
    log, learn = EventLog(), make_learner()
    run = Runner([AvgStatsCallback(accuracy, report=None), Checkpoint(tmp_path), log])
    run.fit(EPOCHS, learn, resume="auto")
    assert [r["event"] for r in log.records][1:4] == [
        "begin_epoch",
        "begin_validate",
        "begin_batch",
    ]
    assert_same_run((run, learn), uninterrupted())


# When, and which are kept


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_are_kept_with_their_records(tmp_path: Path) -> None:
    Runner(Checkpoint(tmp_path, keep_last=2)).fit(5, make_learner())
    assert names(tmp_path) == [
        "checkpoint-000004.json", "checkpoint-000004.pt",
        "checkpoint-000005.json", "checkpoint-000005.pt",
    ]  # fmt: skip


def test_the_last_epoch_is_saved_even_when_it_is_not_its_turn(tmp_path: Path) -> None:
    Runner(Checkpoint(tmp_path, every_epochs=2, keep_last=9)).fit(3, make_learner())
    assert [record.epoch for record in list_checkpoints(tmp_path)] == [2, 3]


def test_every_so_many_steps_one_is_saved(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, every_epochs=None, every_steps=3, keep_last=99)
    Runner(checkpoint).fit(2, make_learner())
    found = [(r.steps, r.phase) for r in list_checkpoints(tmp_path)]
    assert found == [(3, "train"), (6, "train"), (8, None)]


def test_a_resumed_fit_saves_after_the_steps_after_which_it_would_have(tmp_path: Path) -> None:
    options = {"every_epochs": None, "every_steps": 3, "keep_last": 99}
    interrupted(tmp_path / "lost", "after_batch", 4, **options)
    resumed(tmp_path / "lost", **options)
    resumed(tmp_path / "whole", **options)
    lost, whole = (
        [(r.steps, r.phase) for r in list_checkpoints(tmp_path / name)]
        for name in ("lost", "whole")
    )
    assert lost == whole


def test_every_so_many_seconds_one_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    pace = partial(Pace, clock=lambda: now[0])
    monkeypatch.setattr("eventtrain.callbacks.checkpoint.Pace", pace)
    run = Runner(Checkpoint(tmp_path, every_epochs=None, every_seconds=3600, keep_last=99))
    run.on("after_batch", lambda run: now.append(now.pop() + 3600), during="train",
           when=lambda run: run.n_iter == 2)  # fmt: skip
    run.fit(1, make_learner())
    assert [(r.batch, r.phase) for r in list_checkpoints(tmp_path)] == [(2, "train"), (0, None)]


@pytest.mark.parametrize("before", [None, 1e9])
def test_other_seconds_count_from_when_they_are_set(
    before: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    pace = partial(Pace, clock=lambda: now[0])
    monkeypatch.setattr("eventtrain.callbacks.checkpoint.Pace", pace)
    checkpoint = Checkpoint(tmp_path, every_epochs=None, every_seconds=before, keep_last=99)
    run = Runner(checkpoint)

    @run.on("after_step", when=lambda run: run.n_iter == 1)
    def hurry(run: Runner) -> None:
        now[0] += 10
        checkpoint.every_seconds = 10

    run.fit(1, make_learner())
    assert [(r.batch, r.phase) for r in list_checkpoints(tmp_path)] == [(2, "train"), (0, None)]


@pytest.mark.parametrize("seconds", [0, -1, "soon"])
def test_seconds_that_are_none_change_nothing(seconds: Any, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, every_seconds=5)
    with pytest.raises((TypeError, ValueError), match="every_seconds"):
        checkpoint.every_seconds = seconds
    assert checkpoint.every_seconds == 5


@pytest.mark.parametrize(("mode", "best"), [("min", 3), ("max", 2)])
def test_the_best_by_a_metric_are_kept_besides(mode: Any, best: int, tmp_path: Path) -> None:
    values = iter([5.0, 9.0, 1.0, 7.0, float("nan")])
    checkpoint = Checkpoint(tmp_path, keep_last=1, monitor="score", mode=mode)
    run = Runner(checkpoint)
    run.on("after_epoch", lambda run: run.history[-1].update(score=next(values)))
    run.fit(5, make_learner())
    assert [record.serial for record in list_checkpoints(tmp_path)] == [best, 5]
    assert checkpoint.best == tmp_path / f"checkpoint-{best:06}.pt"
    assert checkpoint.last == tmp_path / "checkpoint-000005.pt"


def test_a_metric_that_is_no_number_is_never_the_best(tmp_path: Path) -> None:
    values = iter([float("nan"), 2.0, 1.0])
    checkpoint = Checkpoint(tmp_path, keep_last=1, monitor="score")
    run = Runner(checkpoint)
    run.on("after_epoch", lambda run: run.history[-1].update(score=next(values)))
    run.fit(3, make_learner())
    assert [record.serial for record in list_checkpoints(tmp_path)] == [3]
    assert checkpoint.best == checkpoint.last


def test_what_a_killed_run_left_is_cleared_away_when_the_next_begins(tmp_path: Path) -> None:
    left = tmp_path / f".checkpoint-000009.pt.{os.getpid()}.part"
    left.write_text("half")
    Runner(Checkpoint(tmp_path)).fit(1, make_learner())
    assert not left.exists()


def test_a_metric_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    run = Runner([AvgStatsCallback(report=None), Checkpoint(tmp_path, monitor="valid_los")])
    with pytest.raises(ValueError, match=r"'valid_los'.*'train_loss', 'valid_loss'"):
        run.fit(1, make_learner())


def test_what_is_no_number_is_told_with_its_key(tmp_path: Path) -> None:
    run = Runner(Checkpoint(tmp_path, monitor="score"))
    run.on("after_epoch", lambda run: run.history[-1].update(score="abc"))
    with pytest.raises(TypeError, match=r"Checkpoint monitors 'score'.* epoch 0 holds 'abc'"):
        run.fit(1, make_learner())


def test_a_number_of_any_kind_is_compared(tmp_path: Path) -> None:
    values = iter([torch.tensor(0.5), np.float32(0.25), 1])
    checkpoint = Checkpoint(tmp_path, monitor="score")
    run = Runner(checkpoint)
    run.on("after_epoch", lambda run: run.history[-1].update(score=next(values)))
    run.fit(2, make_learner())
    assert checkpoint.best == tmp_path / "checkpoint-000002.pt"


def test_checkpoints_of_an_earlier_fit_stay(tmp_path: Path) -> None:
    for _ in range(2):
        Runner(Checkpoint(tmp_path, keep_last=1)).fit(2, make_learner())
    assert [record.serial for record in list_checkpoints(tmp_path)] == [2, 4]


def test_a_resumed_fit_removes_its_own_older_ones(tmp_path: Path) -> None:
    interrupted(tmp_path, "after_batch", 2, keep_last=1)
    resumed(tmp_path, keep_last=1)
    assert len(list_checkpoints(tmp_path)) == 1


def test_one_object_can_be_used_for_a_second_fit(tmp_path: Path) -> None:
    run = Runner(Checkpoint(tmp_path, keep_last=1))
    run.fit(1, make_learner())
    run.fit(1, make_learner())
    assert [record.serial for record in list_checkpoints(tmp_path)] == [1, 2]


def test_a_fit_that_is_cancelled_between_batches_is_saved_there(tmp_path: Path) -> None:
    run = Runner(Checkpoint(tmp_path))
    run.on("after_batch", lambda run: run.token.cancel("fit", "enough"), once=True)
    run.fit(2, make_learner())
    assert [(r.batch, r.phase) for r in list_checkpoints(tmp_path)] == [(1, "train")]


def test_a_batch_that_is_broken_off_is_not_saved(tmp_path: Path) -> None:
    run = Runner(Checkpoint(tmp_path, every_steps=1))
    run.on("after_loss", lambda run: run.token.cancel("fit", "enough"))
    run.fit(2, make_learner())
    assert list_checkpoints(tmp_path) == []


def test_leaving_a_phase_early_is_not_taken_for_a_place_to_go_on(tmp_path: Path) -> None:
    run = Runner(Checkpoint(tmp_path, every_steps=1, every_epochs=None))
    run.on("after_batch", lambda run: run.token.cancel("train", "short"), during="train")
    run.fit(1, make_learner())
    assert [(r.epoch, r.phase) for r in list_checkpoints(tmp_path)] == [(1, None)]


def test_validating_and_predicting_alone_save_nothing(tmp_path: Path) -> None:
    run, learn = Runner(Checkpoint(tmp_path, every_seconds=1e-9)), make_learner()
    run.validate(learn)
    run.predict(learn, learn.data.valid_dl)
    assert names(tmp_path) == []


@pytest.mark.parametrize("scope", ["epoch", "train", "validate"])
def test_an_epoch_that_was_cut_short_is_saved_without_the_monitored_number(
    scope: str, tmp_path: Path
) -> None:
    def cut_short(run: Runner) -> None:
        if run.epoch == 1 and scope in run.token.open_scopes:
            run.token.cancel(scope, "enough")

    averages = AvgStatsCallback(report=None)
    checkpoint = Checkpoint(tmp_path, monitor="valid_loss", keep_last=9)
    run = Runner([averages, checkpoint])
    run.on("begin_batch", cut_short)
    assert run.fit(2, make_learner()).outcome == "completed"
    known = ["valid_loss" in record.metrics for record in list_checkpoints(tmp_path)]
    assert known == [True, scope == "train"]


@pytest.mark.parametrize(
    "make", [EarlyStopping, ReduceLROnPlateau, None], ids=["stopping", "plateau", "checkpoint"]
)
def test_an_epoch_that_was_cut_short_may_lack_the_number_when_it_is_resumed(
    make: Any, tmp_path: Path
) -> None:
    def run_it(scopes: dict[str | None, str], resume: str | None) -> str:
        def cut_short(run: Runner) -> None:
            if run.phase in scopes:
                run.token.cancel(scopes[run.phase], "enough")

        checkpoint = Checkpoint(tmp_path, monitor="score" if make is None else None)
        run = Runner([checkpoint] if make is None else [checkpoint, make("score")])
        run.on("after_batch", cut_short)
        return run.fit(1, make_learner(), resume=resume).outcome

    assert run_it({"train": "train", "validate": "fit"}, None) == "cancelled"
    assert run_it({}, "auto") == "completed"


@pytest.mark.parametrize("value", [numpy.float32(0.5), torch.tensor(0.5)])
def test_a_number_may_be_one_of_numpy_or_a_tensor(value: Any, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, monitor="score")
    run = Runner(checkpoint)
    run.on("after_epoch", lambda run: run.history[-1].update(score=value))
    run.fit(1, make_learner())
    assert list_checkpoints(tmp_path)[0].metrics == {"score": 0.5}


def test_the_millionth_is_newer_than_the_one_before(tmp_path: Path) -> None:
    run = Runner(Checkpoint(tmp_path))
    run.fit(1, make_learner())
    for path in tmp_path.iterdir():
        path.rename(path.with_stem("checkpoint-999999"))
    checkpoint = Checkpoint(tmp_path, keep_last=1)
    Runner(checkpoint).fit(2, make_learner(), resume="auto")
    assert [record.serial for record in list_checkpoints(tmp_path)] == [1_000_000]
    assert checkpoint.last == tmp_path / "checkpoint-1000000.pt"


@pytest.mark.parametrize("event", ["after_batch", "after_epoch"])
def test_what_another_handler_of_the_event_failed_to_do_is_not_saved(
    event: str, tmp_path: Path
) -> None:
    def fail(run: Runner) -> None:
        if run.epoch == 1:
            raise KeyboardInterrupt

    run = Runner(Checkpoint(tmp_path))
    run.on(event, fail)
    with pytest.raises(KeyboardInterrupt):
        run.fit(2, make_learner())
    assert [record.epoch for record in list_checkpoints(tmp_path)] == [1]
    assert run.token.closing_error is None


def test_a_folder_that_somebody_removes_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    run = Runner(Checkpoint(folder))
    run.on("begin_train", lambda run: shutil.rmtree(folder))
    run.fit(2, make_learner())
    assert [record.epoch for record in list_checkpoints(folder)] == [2]


def test_saving_changes_no_weights(tmp_path: Path) -> None:
    learn = make_learner()
    Runner(Checkpoint(tmp_path, every_steps=1)).fit(EPOCHS, learn)
    assert_same_weights(learn, uninterrupted()[1])


def test_nothing_is_read_from_the_device_between_checkpoints(tmp_path: Path, no_sync: Any) -> None:
    checkpoint = Checkpoint(tmp_path, every_epochs=9, every_steps=10**6, every_seconds=3600)
    run = Runner(checkpoint)
    run.on("after_epoch", lambda run: run.token.cancel("fit", "stop"), once=True)
    learn = make_learner()
    learn.opt = torch.optim.SGD(learn.model.parameters(), lr=0.1)  # AdamW itself reads on a CPU
    checkpoint._save = lambda *_: None  # type: ignore[method-assign]  # what saving itself reads
    with no_sync:
        run.fit(2, learn)


# In a thread


def test_written_in_a_thread_it_is_the_same(tmp_path: Path) -> None:
    interrupted(tmp_path, "after_batch", 7, asynchronous=True)
    assert_same_run(resumed(tmp_path, asynchronous=True), uninterrupted())


def test_what_a_thread_writes_is_the_state_of_the_moment_it_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = threading.Event()

    def write_late(record: Record, content: dict[str, Any]) -> None:
        assert changed.wait(60)
        write_checkpoint(record, content)

    monkeypatch.setattr("eventtrain.checkpoints.folder.write_checkpoint", write_late)
    run = Runner(Checkpoint(tmp_path, asynchronous=True))
    expected: dict[str, Tensor] = {}

    @run.on("after_epoch", priority=-200)
    def change(run: Runner) -> None:
        for key, value in run.model.state_dict().items():
            expected[key] = value.clone()
            value.zero_()
        changed.set()

    run.fit(1, make_learner())
    found = load_checkpoint(tmp_path)["model"]
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_a_thread_that_cannot_write_fails_the_run(tmp_path: Path) -> None:
    folder, threads = tmp_path / "checkpoints", threading.active_count()
    run = Runner(Checkpoint(folder, asynchronous=True))

    @run.on("begin_train")
    def replace_by_a_file(run: Runner) -> None:
        if folder.is_dir():
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
            folder.write_text("")

    with pytest.raises(CheckpointError, match="cannot write checkpoints to"):
        run.fit(2, make_learner())
    assert threading.active_count() == threads


# SIGTERM


def test_sigterm_saves_after_the_batch_and_ends_the_run(tmp_path: Path) -> None:
    run = Runner(
        [AvgStatsCallback(accuracy, report=None), Checkpoint(tmp_path)], on_interrupt="return"
    )
    run.on("after_loss", lambda run: os.kill(os.getpid(), signal.SIGTERM),
           when=lambda run: run.n_iter == BATCHES + 1)  # fmt: skip
    result = run.fit(EPOCHS, make_learner())
    assert (result.outcome, result.reason) == ("cancelled", "SIGTERM")
    assert list_checkpoints(tmp_path)[-1].batch == 2
    assert_same_run(resumed(tmp_path), uninterrupted())


def test_the_signal_handler_of_before_stands_again(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    Runner(Checkpoint(tmp_path)).fit(1, make_learner())
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_sigterm_does_not_wait_for_the_batch(tmp_path: Path) -> None:
    run = Runner(Checkpoint(tmp_path), on_interrupt="return")

    @run.on("after_pred", once=True)
    def twice(run: Runner) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    result = run.fit(1, make_learner())
    assert (result.reason, result.steps) == ("SIGTERM", 0)
    assert list_checkpoints(tmp_path) == []


def test_sigterm_when_everything_is_saved_goes_to_the_handler_of_before(tmp_path: Path) -> None:
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append("SIGTERM"))
    try:
        run = Runner(Checkpoint(tmp_path))
        run.on("after_fit", lambda run: os.kill(os.getpid(), signal.SIGTERM))
        run.fit(1, make_learner())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == ["SIGTERM"]


def test_sigterm_in_a_phase_that_is_left_early_waits_for_a_place_to_save(tmp_path: Path) -> None:
    run = Runner(Checkpoint(tmp_path, every_epochs=9), on_interrupt="return")

    @run.on("after_batch", during="train", when=lambda run: run.batch_index == 1)
    def leave(run: Runner) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        run.token.cancel("train", "enough")

    assert run.fit(2, make_learner()).reason == "SIGTERM"
    assert [(r.epoch, r.phase) for r in list_checkpoints(tmp_path)] == [(0, "validate")]


def test_a_fit_in_another_thread_saves_as_well(tmp_path: Path) -> None:
    thread = threading.Thread(target=lambda: Runner(Checkpoint(tmp_path)).fit(1, make_learner()))
    thread.start()
    thread.join()
    assert len(list_checkpoints(tmp_path)) == 1


# Misuse and damage


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path: Path) -> None:
    interrupted(tmp_path, "after_batch", 7)
    newest = list_checkpoints(tmp_path)[-1].path
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    with pytest.warns(RuntimeWarning, match=f"{newest.name} is damaged.*one before it"):
        run = resumed(tmp_path)
    assert_same_run(run, uninterrupted())


def test_when_all_are_damaged_the_run_does_not_start_over_silently(tmp_path: Path) -> None:
    interrupted(tmp_path, "after_batch", 7)
    for record in list_checkpoints(tmp_path):
        record.path.write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="damaged"), pytest.raises(CheckpointError, match="all"):
        Runner(Checkpoint(tmp_path)).fit(1, make_learner(), resume="auto")


def test_another_models_checkpoint_is_refused_before_anything_is_changed(tmp_path: Path) -> None:
    Runner(Checkpoint(tmp_path)).fit(1, make_learner())
    other = make_learner()
    other.model[0] = nn.Linear(5, 9)
    before = {key: value.clone() for key, value in other.model.state_dict().items()}
    events: list[str] = []
    run = Runner(Checkpoint(tmp_path))
    run.on("begin_fit", lambda run: events.append("begin_fit"))
    with pytest.raises(CheckpointError, match=r"of another model: .*0.weight.*\[9, 5\].*\[8, 5\]"):
        run.fit(1, other, resume="auto")
    assert events == []
    assert all(torch.equal(before[k], v) for k, v in other.model.state_dict().items())


def test_a_callback_that_the_run_lacks_is_told_by_name(tmp_path: Path) -> None:
    interrupted(tmp_path, "after_batch", 2)
    with pytest.raises(CheckpointError, match="callbacks that this run lacks: avg_stats"):
        Runner(Checkpoint(tmp_path)).fit(1, make_learner(), resume="auto")


def test_data_that_became_shorter_is_told(tmp_path: Path) -> None:
    interrupted(tmp_path, "after_batch", 4)
    learn = make_learner()
    n = 8
    learn.data.train_dl = TensorLoader(
        torch.randn(n, 5), torch.randint(0, 3, (n,)), bs=4, shuffle=True
    )
    run = Runner([AvgStatsCallback(accuracy, report=None), Checkpoint(tmp_path)])
    run.on("begin_fit", lambda run: pytest.fail("it has begun"))
    with pytest.raises(CheckpointError, match=r"number of batches: 4 in the checkpoint, 2 here"):
        run.fit(1, learn, resume="auto")


def test_state_that_could_not_be_read_again_is_refused_when_it_is_saved(tmp_path: Path) -> None:
    class Strange(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"object": object()}

    with pytest.raises(CheckpointError, match=r"callbacks\['strange'\]\['object'\]"):
        Runner([Strange(), Checkpoint(tmp_path)]).fit(1, make_learner())
    assert list_checkpoints(tmp_path) == []


def test_without_a_checkpoint_callback_auto_says_what_to_pass(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs one Checkpoint callback and this run has 0"):
        Runner().fit(1, make_learner(), resume="auto")


def test_an_empty_folder_means_a_fresh_start(tmp_path: Path) -> None:
    assert_same_run(resumed(tmp_path / "new"), _with_reseeding())


def _with_reseeding() -> tuple[Runner, Learner]:
    run, learn = Runner(AvgStatsCallback(accuracy, report=None)), make_learner()
    torch.manual_seed(1)
    run.fit(EPOCHS, learn)
    return run, learn


def test_a_path_may_be_given_instead(tmp_path: Path) -> None:
    interrupted(tmp_path, "after_batch", 7)
    learn = make_learner()
    run = Runner(AvgStatsCallback(accuracy, report=None))
    with pytest.raises(CheckpointError, match="lacks: checkpoint"):
        run.fit(EPOCHS, learn, resume=tmp_path)
    run = Runner([AvgStatsCallback(accuracy, report=None), Checkpoint(tmp_path / "other")])
    run.fit(EPOCHS, learn, resume=list_checkpoints(tmp_path)[-1].path)
    assert_same_run((run, learn), uninterrupted())


def test_the_weights_alone_can_be_loaded(tmp_path: Path) -> None:
    learn, other = make_learner(), make_learner()
    checkpoint = Checkpoint(tmp_path)
    Runner(checkpoint).fit(1, learn)
    assert checkpoint.last is not None
    other.model.load_state_dict(load_checkpoint(checkpoint.last)["model"])
    assert_same_weights(learn, other)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"every_epochs": 0}, ValueError, "every_epochs must be at least 1"),
        ({"every_steps": 1.5}, TypeError, "every_steps must be a whole number"),
        ({"every_seconds": -1}, ValueError, "every_seconds must be positive"),
        ({"keep_last": 0}, ValueError, "keep_last must be at least 1"),
        ({"keep_best": True}, TypeError, "keep_best must be a whole number"),
        ({"mode": "best"}, ValueError, "'min' or 'max'"),
        ({"monitor": 3}, TypeError, "monitor must be a key"),
        ({"monitor": "x", "every_epochs": None}, ValueError, "monitor needs every_epochs"),
    ],
)
def test_wrong_arguments_are_refused(
    options: dict[str, Any], error: type[Exception], text: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=text):
        Checkpoint(tmp_path, **options)


@pytest.mark.skipif(os.name == "nt", reason="needs a limit on the size of files")
@pytest.mark.parametrize("size", [0, 700, 9000])
def test_a_full_disk_is_told_and_leaves_nothing_behind(size: int, tmp_path: Path) -> None:
    code = f"""
        import resource, signal, torch
        from eventtrain import CheckpointError, DataBunch, Learner, Runner, TensorLoader
        from eventtrain.callbacks import Checkpoint

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        model = torch.nn.Linear(50, 50)
        data = DataBunch(TensorLoader(torch.zeros(4, 50), torch.zeros(4, 50), bs=4))
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
        try:
            Runner(Checkpoint({str(tmp_path)!r})).fit(
                1, Learner(model, opt, torch.nn.functional.mse_loss, data)
            )
        except CheckpointError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert "cannot write checkpoint" in done.stdout
    assert list_checkpoints(tmp_path) == []
    assert not any(path.suffix == ".part" for path in tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to_is_told_before_training(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    learn = make_learner()
    with pytest.raises(CheckpointError, match="cannot write checkpoints to"):
        Runner(Checkpoint(tmp_path)).fit(1, learn)
    assert_same_weights(learn, make_learner())


def test_a_folder_that_cannot_be_made_is_told_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    learn = make_learner()
    with pytest.raises(CheckpointError, match="cannot write checkpoints to"):
        Runner(Checkpoint(tmp_path / "file" / "folder")).fit(1, learn)
    assert_same_weights(learn, make_learner())
