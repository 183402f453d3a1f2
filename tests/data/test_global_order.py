"""One order for all processes: each sample once, whatever their number is and when it changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch.utils.data import DataLoader, TensorDataset

from eventtrain import TensorLoader
from eventtrain.data.global_order import GlobalBatchSampler, Share, order_of_epoch
from eventtrain.errors import DataError, EmptyLoaderError

sizes = st.integers(1, 40)
worlds = st.integers(1, 6)
KINDS = ("sampler", "tensors", "shuffled tensors", "a generator")


def flat(batches: list[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


def of_kind(kind: str, n: int, bs: int, drop_last: bool, rank: int, world: int) -> Any:
    """What gives this rank's rows, batch by batch."""
    if kind == "sampler":
        return GlobalBatchSampler(n, bs, drop_last=drop_last, seed=3, rank=rank, world_size=world)
    loader = TensorLoader(torch.arange(n), bs=bs, drop_last=drop_last)
    if kind != "tensors":
        loader.shuffle = True
        loader.seed = 3
    if kind == "a generator":
        loader.seed, loader.generator = None, torch.Generator().manual_seed(3)
    loader.shard(rank, world)
    return loader


def own_rows(loader: Any, first: int) -> list[list[int]]:
    """The rows that count, batch by batch."""
    found = []
    for index, batch in enumerate(loader, first):
        rows = batch if isinstance(batch, list) else batch.tolist()
        assert rows, "every rank takes part in every batch"
        found.append(rows if loader.rows_of_share(index) else [])
        assert len(found[-1]) == loader.rows_of_share(index)
    return found


def global_rows(shares: list[list[list[int]]]) -> list[list[int]]:
    """The batches over all ranks, in the order of the one permutation."""
    world = len(shares)
    batches = []
    for parts in zip(*shares, strict=True):
        whole = [-1] * sum(map(len, parts))
        for rank, part in enumerate(parts):
            whole[rank::world] = part
        batches.append(whole)
    return batches


@pytest.mark.parametrize("kind", KINDS)
@given(n=sizes, bs=sizes, world=worlds, epoch=st.integers(0, 3), drop_last=st.booleans())
def test_every_sample_comes_once_an_epoch_in_the_batches_of_one_process(
    kind: str, n: int, bs: int, world: int, epoch: int, drop_last: bool
) -> None:
    if drop_last and n < bs:
        return
    shares = []
    for rank in range(world):
        loader = of_kind(kind, n, bs, drop_last, rank, world)
        loader.set_epoch(epoch)
        shares.append(own_rows(loader, 0))
    alone = of_kind(kind, n, bs, drop_last, 0, 1)
    alone.set_epoch(epoch)
    batches = global_rows(shares)
    assert batches == own_rows(alone, 0)
    assert len(batches) == len(alone)
    rows = flat(batches)
    assert len(rows) == (n - n % bs if drop_last else n)
    assert len(set(rows)) == len(rows)


@pytest.mark.parametrize("kind", KINDS)
@given(
    n=sizes,
    bs=sizes,
    drop_last=st.booleans(),
    stays=st.lists(st.tuples(worlds, st.integers(1, 5)), max_size=4),
)
def test_every_sample_comes_once_when_the_number_of_processes_changes_on_the_way(
    kind: str, n: int, bs: int, drop_last: bool, stays: list[tuple[int, int]]
) -> None:
    if drop_last and n < bs:
        return
    done: list[list[int]] = []
    for world, batches in [*stays, (2, n)]:
        shares = []
        for rank in range(world):
            loader = of_kind(kind, n, bs, drop_last, rank, world)
            loader.start_at(len(done) * bs)
            shares.append(own_rows(loader, len(done))[:batches])
        done += global_rows(shares)
    assert done == own_rows(of_kind(kind, n, bs, drop_last, 0, 1), 0)


@pytest.mark.parametrize("kind", KINDS)
@given(n=sizes, start=st.integers(0, 45), bs=sizes, world=worlds)
def test_it_starts_behind_any_number_of_samples_and_the_next_epoch_is_whole(
    kind: str, n: int, start: int, bs: int, world: int
) -> None:
    def rows_of(loader: Any) -> list[list[int]]:
        return [batch if isinstance(batch, list) else batch.tolist() for batch in loader]

    alone = of_kind(kind, n, bs, False, 0, 1)
    order = flat(rows_of(alone))
    loaders = [of_kind(kind, n, bs, False, rank, world) for rank in range(world)]
    for loader in loaders:
        loader.start_at(start)
    rest = {row for loader in loaders for batch in rows_of(loader) for row in batch}
    assert rest == set(order[start:])
    again = {row for loader in loaders for batch in rows_of(loader) for row in batch}
    assert again == set(range(n))


def test_an_order_depends_on_seed_and_epoch_and_not_on_their_sum() -> None:
    orders = [order_of_epoch(50, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert all(orders.count(order) == 1 for order in orders)


def test_an_order_of_a_seed_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    list(TensorLoader(torch.arange(9), bs=2, shuffle=True, seed=1))
    list(GlobalBatchSampler(9, 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loader_that_each_process_would_shuffle_for_itself_is_refused() -> None:
    loader = TensorLoader(torch.arange(8), bs=4, shuffle=True)
    loader.shard(0, 2)
    with pytest.raises(DataError, match="seed="):
        iter(loader)


def test_a_data_loader_takes_the_sampler_with_workers_too() -> None:
    data = TensorDataset(torch.arange(11))
    rows = []
    for rank in range(2):
        sampler = GlobalBatchSampler(data, 4, seed=5, rank=rank, world_size=2)
        loader = DataLoader(data, batch_sampler=sampler, num_workers=1)
        rows += [row for (batch,) in loader for row in batch.tolist()]
    assert sorted(rows) == list(range(11))


def test_no_sample_is_an_error() -> None:
    with pytest.raises(EmptyLoaderError, match="0 samples make no batch"):
        GlobalBatchSampler(0)


@pytest.mark.parametrize(("rank", "world_size"), [(2, 2), (-1, 2), (0, 0), (True, 2), (0.0, 1)])
def test_a_rank_that_is_not_there_is_an_error(rank: Any, world_size: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"rank|world_size"):
        Share(rank, world_size)


def test_seed_and_generator_together_are_an_error() -> None:
    with pytest.raises(ValueError, match="give one"):
        TensorLoader(torch.arange(3), shuffle=True, seed=1, generator=torch.Generator())
