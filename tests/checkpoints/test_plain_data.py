"""What a checkpoint can hold."""

from __future__ import annotations

import enum
import io
from collections import Counter, OrderedDict, defaultdict
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from eventtrain import CheckpointError
from eventtrain.checkpoints.plain_data import plain_data


class Colour(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, 2.5, True, None], "b": ({1, 2}, "text", b"bytes", 1j)},
        OrderedDict(x=torch.float16),
        {"numpy": numpy.float64(0.5), "nested": [numpy.int64(3), numpy.bool_(True)]},
        {numpy.int64(3): numpy.float32(0.5)},
        [torch.device("cpu"), torch.Size([2, 3])],
    ],
    ids=repr,
)
def test_plain_data_is_read_again_without_running_code(value: Any) -> None:
    file = io.BytesIO()
    torch.save(plain_data(value, "it"), file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == value


@pytest.mark.parametrize(
    "value",
    [numpy.zeros(3), Colour.RED, defaultdict(list, a=[1]), Counter("aab"), object(), len, range(3)],
    ids=lambda value: type(value).__name__,
)
def test_anything_else_is_refused_with_its_place(value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"state\['a'\]\[1\] is .* cannot hold"):
        plain_data({"a": [0, value]}, "state")


class Marked(Tensor):
    """A tensor of a class that nobody has declared to be safe."""


def test_tensors_of_other_classes_are_refused_unless_they_are_declared_safe() -> None:
    value = {"a": torch.ones(3).as_subclass(Marked)}
    with pytest.raises(CheckpointError, match=r"state\['a'\] is a tensor of class Marked"):
        plain_data(value, "state")
    with torch.serialization.safe_globals([Marked]):
        file = io.BytesIO()
        torch.save(plain_data(value, "state"), file)
        file.seek(0)
        read = torch.load(file, weights_only=True)["a"]
    assert type(read) is Marked and read.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "tensor", [nn.Parameter(torch.ones(2)), torch.ones(2).to_sparse(), nn.Buffer(torch.ones(2))]
)
def test_tensors_of_torchs_own_classes_are_read_again(tensor: Tensor) -> None:
    file = io.BytesIO()
    torch.save(plain_data(tensor, "it"), file)
    file.seek(0)
    assert torch.load(file, weights_only=True).to_dense().tolist() == [1, 1]


def test_a_key_that_could_not_be_read_again_is_refused() -> None:
    with pytest.raises(CheckpointError, match="a key of state is"):
        plain_data({Colour.RED: 0}, "state")


def test_tensors_are_not_copied() -> None:
    tensor = torch.zeros(3)
    assert plain_data({"a": [tensor]}, "state")["a"][0] is tensor


def test_the_versions_of_a_state_dictionary_stay() -> None:
    state = nn.BatchNorm1d(3).state_dict()
    assert plain_data(state, "model")._metadata == state._metadata
