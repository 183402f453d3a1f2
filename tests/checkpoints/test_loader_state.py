"""What orders the batches of a loader can be put back to where it was."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from eventtrain import TensorLoader
from eventtrain.checkpoints.loader_state import loader_state, set_loader_state

DATA = TensorDataset(torch.arange(8))


def own() -> torch.Generator:
    return torch.Generator().manual_seed(3)


class Drawing(Sampler[int]):
    """Draws its order from a generator of one kind or another."""

    def __init__(self, generator: Any) -> None:
        self.generator_of_its_own = generator

    def __iter__(self) -> Iterator[int]:
        choice = getattr(self.generator_of_its_own, "choices", None)
        many = choice(range(8), k=8) if choice else self.generator_of_its_own.permutation(8)
        return map(int, many)

    def __len__(self) -> int:
        return 8


class Turning(Sampler[int]):
    """Begins one row further on each time, and has nothing of its own before the first."""

    turn = 0

    def __iter__(self) -> Iterator[int]:
        self.turn += 1
        return iter([(index + self.turn) % 8 for index in range(8)])

    def __len__(self) -> int:
        return 8


class Stream(IterableDataset[Tensor]):
    def __init__(self) -> None:
        self.chance, self.epoch = random.Random(1), 0

    def __iter__(self) -> Iterator[Tensor]:
        self.epoch += 1
        for _ in range(4):
            yield torch.tensor(self.chance.randrange(99) + 1000 * self.epoch)


class NoisyRows(Dataset[Tensor]):
    def __init__(self) -> None:
        self.noise = numpy.random.default_rng(0)

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor(self.noise.integers(99))

    def __len__(self) -> int:
        return 4


LOADERS: dict[str, Callable[[], Any]] = {
    "shuffled": lambda: DataLoader(DATA, shuffle=True, generator=own()),
    "sampler": lambda: DataLoader(DATA, sampler=RandomSampler(DATA, generator=own())),
    "replacement": lambda: DataLoader(DATA, sampler=RandomSampler(DATA, True, generator=own())),
    "subset": lambda: DataLoader(DATA, sampler=SubsetRandomSampler(range(8), own())),
    "weighted": lambda: DataLoader(
        DATA, sampler=WeightedRandomSampler([1.0] * 8, 8, generator=own())
    ),
    "python": lambda: DataLoader(DATA, sampler=Drawing(random.Random(2))),
    "numpy": lambda: DataLoader(DATA, sampler=Drawing(numpy.random.default_rng(2))),
    "numpy's old": lambda: DataLoader(DATA, sampler=Drawing(numpy.random.RandomState(2))),
    "philox": lambda: DataLoader(
        DATA, sampler=Drawing(numpy.random.Generator(numpy.random.Philox(2)))
    ),
    "counter": lambda: DataLoader(DATA, sampler=Turning()),
    "tensors": lambda: TensorLoader(torch.arange(8), shuffle=True, generator=own()),
    "stream": lambda: DataLoader(Stream()),
    "rows": lambda: DataLoader(NoisyRows()),
    "rows of several": lambda: DataLoader(ConcatDataset([NoisyRows(), NoisyRows()])),
    "wrapped": lambda: SimpleWrapper(DataLoader(DATA, shuffle=True, generator=own())),
}


class SimpleWrapper:
    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)


def rows(loader: Any) -> list[Any]:
    return [batch[0].tolist() for batch in loader]


def through_a_file(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_another_loader_goes_on_from_where_one_was(make: Callable[[], Any]) -> None:
    loader, other = make(), make()
    rows(loader)
    state = through_a_file(loader_state(loader))
    expected = [rows(loader), rows(loader)]
    assert expected[0] != expected[1]
    set_loader_state(other, state)
    assert [rows(other), rows(other)] == expected


def test_an_epoch_that_was_set_is_set_again() -> None:
    def make() -> Any:
        return DataLoader(DATA, sampler=DistributedSampler(DATA, num_replicas=1, rank=0))

    loader, other = make(), make()
    loader.sampler.set_epoch(5)
    set_loader_state(other, through_a_file(loader_state(loader)))
    assert rows(other) == rows(loader)


def test_a_generator_that_loader_and_sampler_share_is_kept_once() -> None:
    loader = DataLoader(DATA, shuffle=True, generator=own())
    assert len(loader_state(loader)["generators"]) == 1


def test_a_list_has_no_state() -> None:
    assert loader_state([1, 2, 3]) == {"generators": {}, "numbers": {}, "started": []}
    assert loader_state(None) == loader_state([1, 2, 3])


def test_a_dataset_that_knows_its_loader_is_looked_at_once() -> None:
    loader = SimpleNamespace(generator=torch.Generator())
    loader.dataset = SimpleNamespace(loader=loader, generator=torch.Generator())
    assert len(loader_state(loader)["generators"]) == 2


def test_what_a_system_draws_has_no_state() -> None:
    assert loader_state(SimpleNamespace(generator=random.SystemRandom()))["generators"] == {}


def test_the_rows_of_a_dataset_are_no_parts_of_a_loader() -> None:
    rows = [SimpleNamespace(generator=own()) for _ in range(3)]
    assert loader_state(DataLoader(rows))["generators"] == {}  # type: ignore[arg-type]


def test_settings_are_not_put_back() -> None:
    class Rows(Turning):
        def __init__(self, batch_size: int) -> None:
            self.batch_size = batch_size

    other = Rows(8)
    set_loader_state(other, loader_state(Rows(4)))
    assert other.batch_size == 8


def test_states_as_earlier_formats_hold_them_are_put_back() -> None:
    loader, other = (DataLoader(DATA, shuffle=True, generator=own()) for _ in range(2))
    rows(loader)
    set_loader_state(other, [loader.generator.get_state()])
    assert rows(other) == rows(loader)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("was_started", [False, True])
@pytest.mark.parametrize("is_started", [False, True])
def test_persistent_workers_begin_an_epoch_as_they_would_have(
    was_started: bool, is_started: bool
) -> None:
    def make() -> Any:
        return DataLoader(
            DATA, shuffle=True, num_workers=1, persistent_workers=True, generator=own()
        )

    loader, other = make(), make()
    if was_started:
        rows(loader)
    state = through_a_file(loader_state(loader))
    if is_started:
        next(iter(other))
    set_loader_state(other, state)
    assert [rows(other), rows(other)] == [rows(loader), rows(loader)]
