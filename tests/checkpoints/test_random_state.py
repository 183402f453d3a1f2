"""The random numbers of a run can be put back to where they were."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from eventtrain.checkpoints.random_state import (
    has_drawn_since,
    random_state,
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


NUMPYS_WAYS: list[Callable[[], object]] = [
    lambda: None,
    numpy.random.rand,
    numpy.random.randn,  # draws two, and keeps one
    lambda: numpy.random.randn(2),
    lambda: numpy.random.seed(3),
    lambda: numpy.random.set_state(numpy.random.RandomState(5).get_state()),
    lambda: numpy.random.rand(624),
    lambda: numpy.random.permutation(3),
]


@given(st.lists(st.sampled_from(NUMPYS_WAYS), max_size=12))
def test_what_numpy_draws_after_any_draws_before_is_drawn_again(
    ways: list[Callable[[], object]],
) -> None:
    for way in ways:
        way()
        state = random_state()
        drawn = numpy.random.randn(3).tolist()
        numpy.random.rand()
        set_random_state(state)
        assert numpy.random.randn(3).tolist() == drawn
        set_random_state(state)


def test_another_generator_of_numpys_is_no_longer_the_one_before() -> None:
    before = numpy.random.get_bit_generator()
    random_state()
    try:
        numpy.random.set_bit_generator(numpy.random.MT19937(7))
        state = random_state()
        drawn = numpy.random.rand()
        set_random_state(state)
        assert numpy.random.rand() == drawn
    finally:
        numpy.random.set_bit_generator(before)


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


@pytest.mark.parametrize(
    "draw_one", [random.random, numpy.random.rand, lambda: torch.rand(1), random.gauss]
)
def test_it_is_known_whether_a_number_was_drawn(draw_one: Callable[[], Any]) -> None:
    state = random_state()
    assert not has_drawn_since(state)
    draw_one()
    assert has_drawn_since(state)
