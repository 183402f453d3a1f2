"""The random numbers of a run can be put back to where they were."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy
import torch
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from eventtrain import TensorLoader
from eventtrain.random_state import (
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
