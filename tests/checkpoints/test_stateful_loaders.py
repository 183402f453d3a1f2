"""Loaders that keep a state of their own go on from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from eventtrain import CheckpointError, DataBunch, Learner, Runner, load_checkpoint
from eventtrain.callbacks import AvgStatsCallback, Checkpoint
from eventtrain.checkpoints.stateful_loaders import keeps_state


class Counting:
    """Batches without an end, of numbers that are counted on; it notes what it makes."""

    def __init__(self) -> None:
        self.at = 0
        self.made: list[int] = []

    def __iter__(self) -> Iterator[Any]:
        while True:
            self.made.append(self.at)
            x = torch.full((4, 1), float(self.at % 7)) + torch.arange(4.0)[:, None]
            self.at += 1
            yield x, 2 * x + torch.rand(4, 1)  # drawn between two steps: noise of the batch

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


def made(folder: Path, loader: Any) -> tuple[Runner, Learner]:
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    opt = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    data = DataBunch(loader, [(torch.ones(2, 1), torch.ones(2, 1))])
    checkpoint = Checkpoint(folder, every_steps=1)
    run = Runner([AvgStatsCallback(report=None), checkpoint])
    return run, Learner(model, opt, nn.functional.mse_loss, data)


def cut(folder: Path, after: int, event: str = "after_batch") -> Counting:
    run, learn = made(folder, Counting())

    @run.on(event, during="train", when=lambda run: run.n_iter == after)
    def cancel(run: Runner) -> None:
        run.token.cancel("fit", "cut")

    run.fit(steps=30, learn=learn, validate_every=10)
    loader: Counting = learn.data.train_dl
    return loader


@pytest.mark.parametrize("event", ["begin_batch", "after_loss", "after_batch"])
@pytest.mark.parametrize("after", [1, 2, 9, 10, 11])
def test_it_goes_on_to_the_weights_of_a_whole_run(tmp_path: Path, event: str, after: int) -> None:
    whole, learn = made(tmp_path / "whole", Counting())
    whole.fit(steps=30, learn=learn, validate_every=10)
    cut(tmp_path / "cut", after, event)
    run, other = made(tmp_path / "cut", Counting())
    run.fit(steps=30, learn=other, validate_every=10, resume="auto")
    assert run.history == whole.history
    assert torch.equal(learn.model.weight, other.model.weight)


def test_of_what_was_done_the_last_batch_alone_is_made_again(tmp_path: Path) -> None:
    assert cut(tmp_path, 12).made == list(range(12))
    run, learn = made(tmp_path, Counting())
    run.fit(steps=30, learn=learn, validate_every=10, resume="auto")
    assert learn.data.train_dl.made == list(range(11, 30))


def test_a_loader_that_does_not_go_where_it_is_told_is_refused(tmp_path: Path) -> None:
    cut(tmp_path, 12)
    run, learn = made(tmp_path, Counting())
    learn.data.train_dl.load_state_dict = lambda state: None
    before = learn.model.weight.clone()
    with pytest.raises(CheckpointError, match="another batch"):
        run.fit(steps=30, learn=learn, validate_every=10, resume="auto")
    assert torch.equal(learn.model.weight, before)


def test_a_loader_that_does_not_take_its_state_is_named(tmp_path: Path) -> None:
    cut(tmp_path, 12)
    run, learn = made(tmp_path, Counting())
    learn.data.train_dl.load_state_dict = lambda state: state["shard"]
    with pytest.raises(CheckpointError, match=r"Counting\) does not take the state.*KeyError"):
        run.fit(steps=30, learn=learn, validate_every=10, resume="auto")


def test_a_state_that_no_checkpoint_can_hold_is_an_error(tmp_path: Path) -> None:
    loader = Counting()
    loader.state_dict = lambda: {"file": object()}  # type: ignore[method-assign]
    run, learn = made(tmp_path, loader)
    with pytest.raises(CheckpointError, match=r"the state_dict\(\) of the loader\['file'\]"):
        run.fit(steps=3, learn=learn)


def test_a_state_that_cannot_be_copied_is_told_of(tmp_path: Path) -> None:
    loader = Counting()
    loader.state_dict = lambda: {"rows": iter(loader)}  # type: ignore[method-assign]
    run, learn = made(tmp_path, loader)
    with pytest.raises(TypeError, match="pickle") as caught:
        run.fit(steps=3, learn=learn)
    assert any("the loader's state_dict()" in note for note in caught.value.__notes__)


def test_a_state_may_be_a_number(tmp_path: Path) -> None:
    def numbered(loader: Counting) -> Counting:
        loader.state_dict = lambda: loader.at  # type: ignore[method-assign, assignment, return-value]
        loader.load_state_dict = lambda state: setattr(loader, "at", state)  # type: ignore[method-assign]
        return loader

    first, learn = made(tmp_path, numbered(Counting()))
    first.on("after_step", lambda run: run.token.cancel("fit", "cut"), when=lambda r: r.steps == 12)
    first.fit(steps=30, learn=learn)
    run, learn = made(tmp_path, numbered(Counting()))
    run.fit(steps=30, learn=learn, resume="auto")
    assert learn.data.train_dl.made == list(range(11, 30))


def test_what_the_loader_said_is_in_the_checkpoint(tmp_path: Path) -> None:
    cut(tmp_path, 12)
    assert load_checkpoint(tmp_path)["loader_state"] == {"at": 11}


def test_without_a_checkpoint_no_loader_is_asked(tmp_path: Path) -> None:
    _, learn = made(tmp_path, Counting())
    asked: list[str] = []
    learn.data.train_dl.state_dict = lambda: asked.append("state")
    Runner(AvgStatsCallback(report=None)).fit(steps=3, learn=learn)
    assert not asked


def test_only_what_gives_a_state_and_takes_one_keeps_state() -> None:
    half = Counting()
    half.load_state_dict = None  # type: ignore[assignment, method-assign]
    assert keeps_state(Counting()) and not keeps_state(half) and not keeps_state([])


class Shuffled:
    """Batches in another order each time, and with noise; it goes on from what it has said."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.epoch, self.at = count, seed, 0, 0
        self.made: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        order = torch.randperm(
            self.count, generator=torch.Generator().manual_seed(self.seed + self.epoch)
        )
        for at in range(self.at + 1, self.count + 1):
            self.at = at
            self.made.append((self.epoch, self.at))
            x = order[self.at - 1] + torch.arange(4.0)[:, None]
            yield x, 2 * x + torch.rand(4, 1)
        self.epoch, self.at = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.at = state["epoch"], state["at"]


def on_several(folder: Path) -> tuple[Runner, Learner]:
    """Validates on a loader with a state between two without one."""
    run, learn = made(folder, Shuffled(4, 1))
    plain = [(torch.full((3, 1), float(i)), torch.ones(3, 1)) for i in range(3)]
    learn.data.valid_dl = {"first": plain, "stated": Shuffled(5, 50), "last": plain[:2]}
    return run, learn


@pytest.mark.parametrize("event", ["begin_batch", "after_loss", "after_batch"])
@pytest.mark.parametrize(
    ("name", "batch"),
    [
        *(("first", 0), ("first", 2), ("stated", 0), ("stated", 1), ("stated", 2)),
        *(("stated", 4), ("last", 0), ("last", 1), (None, 0), (None, 2), (None, 3)),
    ],
)
def test_a_fit_goes_on_in_the_midst_of_any_of_several(
    tmp_path: Path, event: str, name: str | None, batch: int
) -> None:
    whole, learn = on_several(tmp_path / "whole")
    whole.fit(3, learn)
    run, cut = on_several(tmp_path / "cut")

    @run.on(event)
    def cancel(run: Runner) -> None:
        if (run.epoch, run.valid_name, run.batch_index) == (1, name, batch):
            run.token.cancel("fit", "cut")

    assert run.fit(3, cut).reason == "cut"
    run, other = on_several(tmp_path / "cut")
    run.fit(3, other, resume="auto")
    assert run.history == whole.history
    assert torch.equal(learn.model.weight, other.model.weight)


def test_of_one_of_several_the_last_batch_alone_is_made_again(tmp_path: Path) -> None:
    run, learn = on_several(tmp_path)
    run.on(
        "after_batch",
        lambda run: run.token.cancel("fit"),
        when=lambda run: (run.epoch, run.valid_name, run.batch_index) == (1, "stated", 2),
    )
    run.fit(2, learn)
    run, learn = on_several(tmp_path)
    run.fit(2, learn, resume="auto")
    assert learn.data.valid_dl["stated"].made == [(1, 3), (1, 4), (1, 5)]


@pytest.mark.parametrize("event", ["begin_batch", "after_loss"])
def test_a_place_before_a_batch_that_was_cut_knows_the_batch_before(
    tmp_path: Path, event: str
) -> None:
    cut(tmp_path, 12, event)
    run, learn = made(tmp_path, Counting())
    learn.data.train_dl.load_state_dict = lambda state: None
    with pytest.raises(CheckpointError, match="another batch"):
        run.fit(steps=30, learn=learn, validate_every=10, resume="auto")
