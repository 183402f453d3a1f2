"""Whether a loader's length can be relied on, and what follows where it was not kept."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from eventtrain import DataBunch, DataError, Learner, Runner, TensorLoader
from eventtrain.callbacks import AvgStatsCallback, GradientAccumulation, ToDevice
from eventtrain.data.lengths import has_exact_length

Batch = tuple[Tensor, Tensor]
ROWS = TensorDataset(torch.arange(36.0).view(12, 3) / 36, torch.ones(12))


def batches(count: int) -> list[Batch]:
    return [(torch.full((2, 3), i / count), torch.ones(2)) for i in range(count)]


class Estimated:
    """Says that it has ``length`` batches, and gives ``count``."""

    def __init__(self, count: int, length: int) -> None:
        self.count, self.length = count, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        return iter(batches(self.count))


class ByTokens:
    """A batch sampler as one writes it for sequences: how many batches it makes, it guesses."""

    def __init__(self, count: int, length: int) -> None:
        self.count, self.length = count, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[list[int]]:
        return iter([[0, 1]] * self.count)


class Stream(IterableDataset[Any]):
    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        return iter(ROWS)


class Leaky(Dataset[Any]):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        if index == 7:
            raise StopIteration
        return ROWS[index]


class OwnLength(DataLoader[Any]):
    def __len__(self) -> int:
        return 99


def learner(train_dl: Any, valid_dl: Any = None) -> Learner:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = lambda pred, yb: (pred.squeeze(-1) - yb).square().mean()  # noqa: E731
    return Learner(model, opt, loss, DataBunch(train_dl, valid_dl))


EXACT = {
    "list": batches(3),
    "tuple": tuple(batches(3)),
    "deque": deque(batches(3)),
    "TensorLoader": TensorLoader(torch.zeros(6, 3), torch.zeros(6), bs=2),
    "DataLoader": DataLoader(ROWS, batch_size=2),
    "shuffled": DataLoader(ROWS, batch_size=2, shuffle=True),
    "unbatched": DataLoader(ROWS, batch_size=None),
    "weighted": DataLoader(ROWS, batch_size=2, sampler=WeightedRandomSampler([1.0] * 12, 5)),
    "batch sampler": DataLoader(ROWS, batch_sampler=BatchSampler(RandomSampler(ROWS), 5, False)),
}
INEXACT = {
    "a loader of somebody's own": Estimated(3, 3),
    "a batch sampler of somebody's own": DataLoader(ROWS, batch_sampler=ByTokens(3, 3)),
    "a sampler in torch's": DataLoader(
        ROWS, batch_sampler=BatchSampler(type("Mine", (SequentialSampler,), {})(ROWS), 2, False)
    ),
    "an iterable data set": DataLoader(Stream(12), batch_size=2),
    "a subclass that counts for itself": OwnLength(ROWS, batch_size=2),
    "an iterator": iter(batches(3)),
}


@pytest.mark.parametrize("name", EXACT)
def test_lengths_that_follow_from_how_a_loader_is_made_are_exact(name: str) -> None:
    assert has_exact_length(EXACT[name])
    assert len(list(EXACT[name])) == len(EXACT[name])


@pytest.mark.parametrize("name", INEXACT)
def test_lengths_that_somebody_wrote_may_be_estimates(name: str) -> None:
    assert not has_exact_length(INEXACT[name])


def too_short(count: int, length: int) -> list[Any]:
    return [Estimated(count, length), DataLoader(ROWS, batch_sampler=ByTokens(count, length))]


@pytest.mark.parametrize("loader", too_short(3, 5), ids=["own", "batch sampler"])
@pytest.mark.parametrize("phase", ["train", "validate"])
def test_fewer_batches_than_an_estimated_length_are_a_warning(loader: Any, phase: str) -> None:
    learn = learner(loader) if phase == "train" else learner(batches(2), loader)
    run = Runner()
    text = f"the {phase} loader in epoch 0 gave 3 batches, and its length is 5"
    with pytest.warns(RuntimeWarning, match=text):
        assert run.fit(1, learn).outcome == "completed"


def test_more_batches_than_an_estimated_length_are_a_warning() -> None:
    with pytest.warns(RuntimeWarning, match="gave 5 batches, and its length is 2"):
        assert Runner().fit(1, learner(Estimated(5, 2))).steps == 5


def test_an_iterable_data_set_that_is_shorter_than_it_says_is_a_warning() -> None:
    with pytest.warns(RuntimeWarning, match="gave 6 batches, and its length is 9"):
        Runner().fit(1, learner(DataLoader(Stream(18), batch_size=2)))


def test_of_an_iterable_data_set_that_is_longer_torch_tells_alone() -> None:
    with pytest.warns(UserWarning, match="Length of IterableDataset") as caught:
        Runner().fit(1, learner(DataLoader(Stream(4), batch_size=2)))
    assert not [each for each in caught if each.category is RuntimeWarning]


@pytest.mark.parametrize("callback", [None, ToDevice], ids=str)
def test_a_data_loader_that_lost_its_end_is_an_error_still(callback: Any) -> None:
    run = Runner([callback()] if callback else None)
    with pytest.raises(DataError, match="ended after 3 of 6 batches"):
        run.fit(1, learner(DataLoader(Leaky(), batch_size=2)))


def test_behind_to_device_an_estimate_is_a_warning_too() -> None:
    with pytest.warns(RuntimeWarning, match="gave 3 batches, and its length is 5"):
        Runner(ToDevice()).fit(1, learner(DataLoader(ROWS, batch_sampler=ByTokens(3, 5))))


class Draining:
    """Its length is what is left of it."""

    def __init__(self, count: int) -> None:
        self.left = batches(count)

    def __len__(self) -> int:
        return len(self.left)

    def __iter__(self) -> Iterator[Batch]:
        while self.left:
            yield self.left.pop()


def test_a_length_counts_as_it_was_before_the_loader_was_read() -> None:
    assert Runner().fit(1, learner(Draining(3))).steps == 3


def test_a_length_may_change_between_epochs() -> None:
    loader = Estimated(3, 3)
    run = Runner()
    seen: list[Any] = []

    def change(run: Any) -> None:
        loader.count = loader.length = run.epoch + 1

    run.on("begin_epoch", change)
    run.on("begin_train", lambda run: seen.append(run.iters))
    assert run.fit(3, learner(loader)).steps == 1 + 2 + 3
    assert seen == [1, 2, 3]


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 6, 7, 9])
def test_no_estimate_ends_a_group_of_accumulated_batches_early(length: int) -> None:
    known, guessed = learner(batches(7)), learner(Estimated(7, length))
    steps: list[int] = []
    for learn in (known, guessed):
        run = Runner(GradientAccumulation(3))
        run.on("after_step", lambda run: steps.append(run.n_iter))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            assert run.fit(1, learn).steps == 3
    # The last group ends in the last batch where that is known, else right behind it.
    assert steps == [2, 5, 6, 2, 5, 7]
    for own, due in zip(guessed.model.parameters(), known.model.parameters(), strict=True):
        assert torch.equal(own, due)


def test_with_an_estimate_the_position_in_the_fit_never_goes_back() -> None:
    run = Runner()
    seen: list[float] = []
    run.on("after_batch", lambda run: seen.append(run.n_epochs))
    with pytest.warns(RuntimeWarning):
        run.fit(2, learner(Estimated(5, 2)))
    assert seen == sorted(seen) and seen[-1] == 2.0


def test_a_loader_of_length_zero_that_gives_batches_trains() -> None:
    run = Runner([AvgStatsCallback(report=None), GradientAccumulation(2)])
    with pytest.warns(RuntimeWarning, match="gave 2 batches, and its length is 0"):
        assert run.fit(1, learner(Estimated(2, 0))).steps == 1


@pytest.mark.parametrize(
    ("loader", "said"),
    [
        (DataLoader(ROWS, batch_size=16, drop_last=True), "drops the last batch, which is not ful"),
        (Estimated(0, 0), "Its length is 0"),
        (iter(()), "can be read only once"),
    ],
)
def test_a_loader_without_a_batch_is_told_why_it_may_have_none(loader: Any, said: str) -> None:
    model = nn.Linear(3, 2)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    learn = Learner(model, opt, nn.functional.mse_loss, DataBunch(loader))
    with pytest.raises(DataError, match=f"the train loader in epoch 0 gave no batch.*{said}"):
        Runner().fit(1, learn)
