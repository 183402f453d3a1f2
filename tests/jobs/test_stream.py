"""A fit by steps on a stream without an end, with torchdata's loader that keeps its state."""

from __future__ import annotations

import contextlib
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from tests_of_jobs import (
    PowerFailure,
    fitted_by_lightning,
    losses_of_lightning,
    needs,
    quiet,
    same_weights,
)

from eventtrain import CheckpointError, Runner

needs("torchdata", "lightning", "ignite")

import stream
import stream_ignite
import stream_lightning
from ignite.engine import Events
from torchdata.stateful_dataloader import StatefulDataLoader

# What torchdata calls of torch.
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")


def cut(run: Runner, after: int, event: str = "begin_batch") -> None:
    @run.on(event, during="train", when=lambda run: run.n_iter == after)
    def cancel(run: Runner) -> None:
        run.token.cancel("fit", "cut")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("after", [1, 17, 40])
def test_a_stream_is_resumed_bit_for_bit(tmp_path: Path, workers: int, after: int) -> None:
    whole, learn = stream.make(tmp_path / "whole", workers)
    whole.fit(steps=60, learn=learn, validate_every=20)
    first, other = stream.make(tmp_path / "cut", workers)
    cut(first, after)
    first.fit(steps=60, learn=other, validate_every=20)
    assert first.steps == after
    again, other = stream.make(tmp_path / "cut", workers)
    again.fit(steps=60, learn=other, validate_every=20, resume="auto")
    assert again.history == whole.history
    for name, each in learn.model.state_dict().items():
        assert torch.equal(each, other.model.state_dict()[name]), name


def test_what_was_read_is_not_read_again_but_for_the_last_batch(tmp_path: Path) -> None:
    first, learn = stream.make(tmp_path)
    cut(first, 40)
    first.fit(steps=60, learn=learn, validate_every=20)
    assert learn.data.train_dl.dataset.read == 8 * 41
    again, learn = stream.make(tmp_path)
    pieces = Counted(learn.data.train_dl.dataset.pieces)
    learn.data.train_dl.dataset.pieces = pieces
    again.fit(steps=60, learn=learn, validate_every=20, resume="auto")
    assert pieces.count == 8 * (20 + 1)


def test_resumed_twice_it_reads_nothing_anew_either(tmp_path: Path) -> None:
    for after in (20, 21, 22):
        run, learn = stream.make(tmp_path)
        pieces = Counted(learn.data.train_dl.dataset.pieces)
        learn.data.train_dl.dataset.pieces = pieces
        cut(run, after)
        run.fit(steps=60, learn=learn, validate_every=20, resume="auto")
    assert pieces.count == 8 * 3  # the last one done, the one trained on, the one that was cut


class Counted(list):
    """Pieces that count how often one was read."""

    count = 0

    def __getitem__(self, index):
        self.count += 1
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("generator", [False, True])
def test_a_shuffled_stateful_loader_of_rows_is_resumed_bit_for_bit(
    tmp_path: Path, workers: int, generator: bool
) -> None:
    def make(name: str) -> tuple[Runner, object]:
        run, learn = stream.make(tmp_path / name)
        pairs = list(islice(learn.data.train_dl.dataset, 40))
        drawn = torch.Generator().manual_seed(3) if generator else None
        learn.data.train_dl = StatefulDataLoader(
            pairs, 4, shuffle=True, num_workers=workers, generator=drawn
        )
        return run, learn

    whole, learn = make("whole")
    whole.fit(steps=25, learn=learn, validate_every=20)
    first, other = make("cut")
    cut(first, 17)
    first.fit(steps=25, learn=other, validate_every=20)
    again, other = make("cut")
    again.fit(steps=25, learn=other, validate_every=20, resume="auto")
    assert again.history == whole.history


def test_another_stream_is_refused(tmp_path: Path) -> None:
    first, learn = stream.make(tmp_path)
    cut(first, 17, "after_batch")
    first.fit(steps=60, learn=learn, validate_every=20)
    again, learn = stream.make(tmp_path)
    learn.data.train_dl.dataset.pieces = list(reversed(learn.data.train_dl.dataset.pieces))
    with pytest.raises(CheckpointError, match="is now another batch"):
        again.fit(steps=60, learn=learn, validate_every=20, resume="auto")


def losses_of(run: Runner) -> list[float]:
    """Have the loss of each training batch be written down."""
    found: list[float] = []

    @run.on("after_loss", during="train")
    def note(run: Runner) -> None:
        assert run.loss is not None
        found.append(float(run.loss.detach()))

    return found


def by_lightning(folder: Path, fail_at: int | None = None) -> tuple[Any, Any, list[float]]:
    made = stream_lightning.make(folder, 60, 20, **quiet(folder))
    losses = losses_of_lightning(made[0])
    return fitted_by_lightning(made, fail_at), made[2].dataset, losses


@pytest.mark.filterwarnings("ignore")  # of the other framework
def test_losses_are_those_of_lightning(tmp_path: Path) -> None:
    run, learn = stream.make(tmp_path / "own")
    losses = losses_of(run)
    run.fit(steps=60, learn=learn, validate_every=20)
    _, _, expected = by_lightning(tmp_path / "peer")
    assert losses == pytest.approx(expected, abs=1e-5)


@pytest.mark.filterwarnings("ignore")  # of the other framework
def test_lightning_leaves_out_the_batch_that_it_had_read_ahead_when_it_saved(
    tmp_path: Path,
) -> None:
    whole, stream_of_whole, losses = by_lightning(tmp_path / "whole")
    by_lightning(tmp_path / "cut", fail_at=37)
    again, stream_of_again, losses_again = by_lightning(tmp_path / "cut")
    assert len(losses_again) == 30  # it was saved after as many steps
    assert losses_again[0] != losses[30]
    assert stream_of_again.read == stream_of_whole.read + 8
    assert not same_weights(whole, again)


def by_ignite(
    folder: Path, workers: int, fail_at: int | None = None
) -> tuple[Any, Any, list[float]]:
    trainer, model, train = stream_ignite.make(folder, 60, 20, workers)
    losses: list[float] = []

    @trainer.on(Events.ITERATION_COMPLETED)
    def note(engine: Any) -> None:
        losses.append(engine.state.output)
        if engine.state.iteration == fail_at:
            raise PowerFailure

    with contextlib.suppress(PowerFailure):
        trainer.run(train, max_epochs=1, epoch_length=60)
    return model, train.dataset, losses


@pytest.mark.parametrize("workers", [0, 2])
def test_losses_are_those_of_ignite_which_resumes_bit_for_bit_too(
    tmp_path: Path, workers: int
) -> None:
    run, learn = stream.make(tmp_path / "own", workers)
    losses = losses_of(run)
    run.fit(steps=60, learn=learn, validate_every=20)
    whole, stream_of_whole, expected = by_ignite(tmp_path / "whole", workers)
    assert losses == pytest.approx(expected, abs=1e-5)
    by_ignite(tmp_path / "cut", workers, fail_at=37)
    again, stream_of_again, losses_again = by_ignite(tmp_path / "cut", workers)
    assert len(losses_again) == 30
    assert stream_of_again.read == stream_of_whole.read
    assert same_weights(whole, again)
