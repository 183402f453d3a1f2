"""Loaders get their share of a process, and are put back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from eventtrain import DataBunch, Learner, Runner, TensorLoader
from eventtrain.data.global_order import ALL, GlobalBatchSampler
from eventtrain.data.sharding import (
    as_made,
    order_print,
    set_epoch,
    shard_data,
    shard_loader,
    shares_of,
)
from eventtrain.errors import DataError

DATA = TensorDataset(torch.arange(10))

CUT: dict[str, Callable[[], Any]] = {
    "tensors": lambda: TensorLoader(torch.arange(10), bs=4),
    "shuffled tensors": lambda: TensorLoader(torch.arange(10), bs=4, shuffle=True),
    "DataLoader": lambda: DataLoader(DATA, batch_size=4),
    "shuffled DataLoader": lambda: DataLoader(DATA, batch_size=4, shuffle=True),
    "with a generator": lambda: DataLoader(
        DATA, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(1)
    ),
    "GlobalBatchSampler": lambda: DataLoader(DATA, batch_sampler=GlobalBatchSampler(DATA, 4)),
}


class Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(4))


class Own(RandomSampler):
    pass


LEFT_ALONE: dict[str, Callable[[], Any]] = {
    "DistributedSampler": lambda: DataLoader(DATA, sampler=DistributedSampler(DATA, 2, 0)),
    "a sampler of one's own": lambda: DataLoader(DATA, sampler=Own(DATA)),
    "a stream": lambda: DataLoader(Stream()),
    "a list": lambda: [torch.arange(3)],
    "none": lambda: None,
}
REFUSED: dict[str, Callable[[], Any]] = {
    "some of the data": lambda: DataLoader(DATA, sampler=SubsetRandomSampler([1, 2])),
    "weighted": lambda: DataLoader(DATA, sampler=WeightedRandomSampler([1.0] * 10, 10)),
    "with replacement": lambda: DataLoader(DATA, sampler=RandomSampler(DATA, replacement=True)),
    "sample by sample": lambda: DataLoader(DATA, batch_size=None),
}


def rows_of(loader: Any) -> list[int]:
    return [row for batch in loader for row in (batch[0] if isinstance(batch, list) else batch)]


@pytest.mark.parametrize("kind", CUT)
def test_two_processes_share_every_batch_of(kind: str) -> None:
    rows = []
    for rank in range(2):
        data = DataBunch(CUT[kind]())
        shard_data(data, rank, 2, seed=7)
        batches = list(data.train_dl)
        assert len(batches) == len(data.train_dl) == 3
        rows += [int(row) for row in rows_of(batches)]
    assert sorted(rows) == list(range(10))


@pytest.mark.parametrize("kind", CUT)
def test_afterwards_the_loader_is_as_it_was(kind: str) -> None:
    loader = CUT[kind]()
    before = vars(loader).copy()
    data = DataBunch(loader, TensorLoader(torch.arange(3)))
    put_back = shard_data(data, 1, 2, seed=7)
    put_back()
    assert data.train_dl is loader
    assert vars(loader) == before
    shares = shares_of(loader)
    assert shares is None or shares.share == ALL


@pytest.mark.parametrize("kind", LEFT_ALONE)
def test_what_cuts_for_itself_is_left_alone(kind: str) -> None:
    loader = LEFT_ALONE[kind]()
    assert shard_loader(loader, 1, 2, 7, []) is loader


@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_give_all_to_everybody_is_refused_and_nothing_changed(kind: str) -> None:
    train = TensorLoader(torch.arange(4), shuffle=True)
    data = DataBunch(train, REFUSED[kind]())
    with pytest.raises(DataError, match="GlobalBatchSampler"):
        shard_data(data, 1, 2, seed=7)
    assert (train.share, train.seed) == (ALL, None)


@pytest.mark.parametrize("kind", REFUSED)
def test_one_process_alone_may_use_any_loader(kind: str) -> None:
    loader = REFUSED[kind]()
    assert shard_loader(loader, 0, 1, 7, []) is loader


def test_a_replaced_data_loader_keeps_its_other_options() -> None:
    def collate(rows: list[Any]) -> str:
        return f"{len(rows)} rows"

    loader = DataLoader(DATA, batch_size=4, shuffle=True, drop_last=True, collate_fn=collate)
    made = shard_loader(loader, 1, 2, 7, [])
    assert list(made) == ["2 rows", "2 rows"]


def test_one_process_has_the_order_that_several_have() -> None:
    data = DataBunch(TensorLoader(torch.arange(10), bs=4, shuffle=True))
    shard_data(data, 0, 1, seed=7)
    other = TensorLoader(torch.arange(10), bs=4, shuffle=True, seed=7)
    assert rows_of(data.train_dl) == rows_of(other)


def test_every_part_that_wants_to_know_hears_of_the_epoch_once() -> None:
    heard = []

    class Sampler(DistributedSampler[Any]):
        def set_epoch(self, epoch: int) -> None:
            heard.append(epoch)

    set_epoch(DataLoader(DATA, sampler=Sampler(DATA, 2, 0)), 3)
    set_epoch([1, 2], 4)
    assert heard == [3]


def test_a_run_tells_the_training_loader_its_epoch(learner: Learner) -> None:
    learner.data.train_dl.shuffle, learner.data.train_dl.seed = True, 5
    run, firsts = Runner(), []
    run.on("after_batch", lambda run: firsts.append(run.xb.sum().item()), during="train")
    run.fit(2, learner)
    first = firsts[:]
    run.fit(2, learner)
    assert firsts == first * 2, "the orders of a fit are those of its epochs"
    assert first[:3] != first[3:]


@pytest.mark.parametrize(
    ("change", "value"),
    [("seed", 8), ("batch_size", 3), ("epoch", 2), ("generator", torch.Generator())],
)
def test_a_loader_that_differs_between_processes_has_another_print(change: str, value: Any) -> None:
    one, other = (TensorLoader(torch.arange(10), bs=4, shuffle=True, seed=7) for _ in range(2))
    assert order_print(one) == order_print(other)
    setattr(other, change, value)
    assert order_print(one) != order_print(other)


class PassingOn:
    """What somebody puts around a loader."""

    def __init__(self, loader: Any) -> None:
        self.inside = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inside, name)

    def __iter__(self) -> Any:
        return iter(self.inside)


def test_what_is_behind_a_wrapper_that_passes_on_is_shared_and_put_back() -> None:
    rows = []
    for rank in range(2):
        inside = TensorLoader(torch.arange(10), bs=4, shuffle=True)
        before = vars(inside).copy()
        put_back = shard_data(DataBunch(PassingOn(inside)), rank, 2, seed=7)
        rows += [int(row) for row in rows_of(inside)]
        put_back()
        assert vars(inside) == before
    assert sorted(rows) == list(range(10))


def test_a_seed_that_the_user_gave_stays() -> None:
    loader = TensorLoader(torch.arange(10), bs=4, shuffle=True, seed=3)
    shard_data(DataBunch(loader), 0, 2, seed=7)()
    assert loader.seed == 3


def test_what_stands_in_the_place_of_a_loader_tells_of_it() -> None:
    data = DataBunch(loader := CUT["shuffled DataLoader"]())
    shard_data(data, 0, 2, seed=7)
    assert data.train_dl is not loader
    assert as_made(data.train_dl) is loader
    assert as_made(loader) is loader
    assert as_made([1]) == [1]
