"""What the loop asks of a batch: parts, size, place."""

from __future__ import annotations

from collections import OrderedDict, UserDict, defaultdict, namedtuple
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.data import DataLoader, IterableDataset

from eventtrain import DataError, TensorLoader
from eventtrain.data.batch import batch_parts, loader_length, move_to

Pair = namedtuple("Pair", "x y")
META = torch.device("meta")


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.arange(10))


class Movable:
    """Something with ``.to`` that is no tensor."""

    def __init__(self, device: str = "cpu", non_blocking: bool = False) -> None:
        self.device = device
        self.non_blocking = non_blocking

    def to(self, device: str, non_blocking: bool = False) -> Movable:
        return Movable(device, non_blocking)


@pytest.mark.parametrize("batch", [("in", "out"), ["in", "out"], Pair("in", "out")])
def test_two_parts_are_input_and_target(batch: Any) -> None:
    xb, yb = batch_parts(batch)
    assert (xb, yb) == ("in", "out")


@pytest.mark.parametrize(
    "batch", [torch.zeros(2, 3), {"x": 1, "y": 2}, (1, 2, 3), [1], (), "ab"], ids=repr
)
def test_any_other_batch_is_input_and_target_as_a_whole(batch: Any) -> None:
    xb, yb = batch_parts(batch)
    assert xb is batch and yb is batch


@dataclass(frozen=True)
class Sample:
    x: Tensor
    name: str = "a"
    more: Any = None


@dataclass(slots=True)
class Slim:
    x: Tensor


class Encoding(UserDict[str, Any]):
    """As tokenizers make them, with something that is no item."""

    source = "text"


class Records(Mapping[str, Any]):
    def __init__(self, items: dict[str, Any]) -> None:
        self.items_of_its_own = items

    def __getitem__(self, key: str) -> Any:
        return self.items_of_its_own[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.items_of_its_own)

    def __len__(self) -> int:
        return len(self.items_of_its_own)


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda x: Sample(x, more=[x]), lambda b: b.x),
        (lambda x: Sample(x, more={"y": Slim(x)}), lambda b: b.more["y"].x),
        (Slim, lambda b: b.x),
        (lambda x: Encoding(x=x, text="abc"), lambda b: b["x"]),
        (lambda x: MappingProxyType({"x": x}), lambda b: b["x"]),
        (lambda x: Records({"x": x}), lambda b: b["x"]),
        (lambda x: OrderedDict(x=x), lambda b: b["x"]),
        (lambda x: torch.return_types.max((x, x)), lambda b: b.values),
    ],
)
def test_batches_of_other_types_are_moved_and_stay_what_they_are(
    make: Callable[[Tensor], Any], part: Callable[[Any], Tensor]
) -> None:
    batch = make(torch.zeros(2))
    moved = move_to(batch, META)
    assert type(moved) is type(batch)
    assert part(moved).device == META
    assert part(batch).device.type == "cpu"
    assert move_to(batch, "cpu") is batch


def test_what_cannot_be_made_again_says_what_it_needs() -> None:
    class Two(tuple[Tensor, Tensor]):
        def __new__(cls, one: Tensor, other: Tensor) -> Any:
            return super().__new__(cls, (one, other))

    batch = Two(torch.zeros(2), torch.zeros(2))
    assert move_to(batch, "cpu") is batch
    with pytest.raises(DataError, match=r"type Two .*to\(device, non_blocking=\.\.\.\)"):
        move_to(batch, META)


@pytest.mark.parametrize("batch", ["abc", b"abc", {"x"}, None, 3, Sample, range(3)], ids=repr)
def test_what_has_no_parts_is_left_alone(batch: Any) -> None:
    assert move_to(batch, META) is batch


def test_moving_reaches_nested_tensors() -> None:
    moved = move_to({"a": (torch.zeros(1), [torch.zeros(2)]), "b": "text"}, META)
    assert moved["a"][0].device == META and moved["a"][1][0].device == META
    assert moved["b"] == "text"


def test_moving_leaves_the_batch_that_was_given_alone() -> None:
    batch = [torch.zeros(1), {"a": torch.zeros(1)}]
    move_to(batch, META)
    assert batch[0].device.type == "cpu" and batch[1]["a"].device.type == "cpu"


@pytest.mark.parametrize(
    "batch",
    [
        (torch.zeros(1), 1),
        Pair(torch.zeros(1), 1),
        [torch.zeros(1)],
        {"a": torch.zeros(1)},
        OrderedDict(a=torch.zeros(1)),
        defaultdict(list, a=torch.zeros(1)),
    ],
    ids=lambda batch: type(batch).__name__,
)
def test_moving_keeps_the_type(batch: Any) -> None:
    moved = move_to(batch, META)
    assert type(moved) is type(batch) and moved is not batch


def test_moving_keeps_the_factory_of_a_defaultdict() -> None:
    assert move_to(defaultdict(list, a=torch.zeros(1)), META).default_factory is list


@pytest.mark.parametrize(
    "batch", ["text", 3, None, [1, ("a", {})], {"a": 1}, Tensor, torch.Size([2])], ids=repr
)
def test_what_holds_no_tensor_is_returned_itself(batch: Any) -> None:
    assert move_to(batch, META) is batch


def test_a_batch_that_is_there_already_is_returned_itself() -> None:
    batch = (torch.zeros(1), {"a": torch.zeros(1)})
    assert move_to(batch, "cpu") is batch


def test_anything_with_a_to_method_is_moved_without_waiting() -> None:
    moved = move_to([Movable()], "cuda")[0]
    assert moved.device == "cuda" and moved.non_blocking


def test_a_named_tuple_with_a_to_method_is_asked_to_move_itself() -> None:
    packed = pack_padded_sequence(torch.zeros(3, 2, 1), [3, 2])
    moved = move_to(packed, META)
    # Its batch_sizes have to stay on the CPU, which only its own method knows.
    assert isinstance(moved, PackedSequence)
    assert moved.data.device == META and moved.batch_sizes.device.type == "cpu"


@pytest.mark.parametrize(
    ("loader", "length"),
    [
        ([1, 2, 3], 3),
        (TensorLoader(torch.zeros(10), bs=4), 3),
        (iter([1, 2]), None),
        (DataLoader(Stream(), batch_size=4), None),
    ],
    ids=["list", "TensorLoader", "iterator", "IterableDataset"],
)
def test_the_length_of_a_loader_is_none_where_it_cannot_tell(
    loader: Any, length: int | None
) -> None:
    assert loader_length(loader) == length


def _raised(error: Exception) -> Any:
    raise error


@pytest.mark.parametrize(
    "length",
    [
        lambda: _raised(NotImplementedError()),
        lambda: _raised(TypeError("no length")),
        lambda: float("inf"),
        lambda: 2.5,
        lambda: -1,
        lambda: 10**30,
        lambda: None,
    ],
)
def test_a_length_that_is_no_number_of_batches_is_unknown(length: Any) -> None:
    class Loader:
        def __len__(self) -> int:
            answer: int = length()
            return answer

    assert loader_length(Loader()) is None
