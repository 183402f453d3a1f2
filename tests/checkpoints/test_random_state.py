"""The random numbers of a run can be put back to where they were."""

from __future__ import annotations

import io
import random
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from eventtrain import TensorLoader
from eventtrain.checkpoints.random_state import (
    loader_random_state,
    random_state,
    set_loader_random_state,
    set_random_state,
)


def draw() -> list[Any]:
    return [random.random(), float(numpy.random.rand()), torch.rand(3).tolist()]


def through_a_file(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_all_global_generators_go_on_from_where_they_were() -> None:
    state = through_a_file(random_state())
    first = draw()
    draw()
    set_random_state(state)
    assert draw() == first


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_generator_of_a_gpu_goes_on_from_where_it_was() -> None:
    torch.rand(1, device="cuda")
    state = through_a_file(random_state())
    first = torch.rand(3, device="cuda")
    torch.rand(3, device="cuda")
    set_random_state(state)
    assert torch.equal(torch.rand(3, device="cuda"), first)


def test_every_gpu_that_is_there_gets_its_own_state_back(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = [torch.tensor([number], dtype=torch.uint8) for number in range(3)]
    put_back: dict[int, Tensor] = {}
    fakes = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "get_rng_state_all": lambda: saved,
        "device_count": lambda: 2,  # one fewer than where the state was read
        "set_rng_state": lambda state, device: put_back.update({device: state}),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    set_random_state(through_a_file(random_state()))
    assert [(device, state.item()) for device, state in put_back.items()] == [(0, 0), (1, 1)]


def test_reading_the_state_draws_nothing() -> None:
    state = random_state()
    first = draw()
    set_random_state(state)
    random_state()
    assert draw() == first


def test_pairs_of_normal_numbers_are_not_torn() -> None:
    random.gauss()  # has drawn a second one, and keeps it
    numpy.random.normal()
    state = through_a_file(random_state())
    first = random.gauss(), numpy.random.normal()
    set_random_state(state)
    assert (random.gauss(), numpy.random.normal()) == first


def test_generators_of_a_loader_and_its_samplers_go_on() -> None:
    data = TensorDataset(torch.arange(8))
    own = torch.Generator().manual_seed(1)
    sampler = RandomSampler(data, generator=torch.Generator().manual_seed(2))
    for loader in (
        DataLoader(data, shuffle=True, generator=own),
        DataLoader(data, sampler=sampler),
        TensorLoader(torch.arange(8), shuffle=True, generator=torch.Generator().manual_seed(3)),
    ):
        states = through_a_file(loader_random_state(loader))
        first = [batch[0].tolist() for batch in loader]
        assert [batch[0].tolist() for batch in loader] != first or len(first) == 1
        set_loader_random_state(loader, states)
        assert [batch[0].tolist() for batch in loader] == first


def test_a_generator_that_loader_and_sampler_share_is_kept_once() -> None:
    generator = torch.Generator()
    loader = DataLoader(TensorDataset(torch.arange(4)), shuffle=True, generator=generator)
    assert len(loader_random_state(loader)) == 1


def test_a_loader_without_generators_has_no_state() -> None:
    assert loader_random_state([1, 2, 3]) == []


def test_a_dataset_that_knows_its_loader_is_looked_at_once() -> None:
    loader = SimpleNamespace(generator=torch.Generator())
    loader.dataset = SimpleNamespace(loader=loader, generator=torch.Generator())
    assert len(loader_random_state(loader)) == 2
