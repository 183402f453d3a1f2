"""What predict makes of the predictions and targets of many batches."""

from __future__ import annotations

from collections import OrderedDict, UserDict, defaultdict, namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from eventtrain import DataBunch, Learner, Runner
from eventtrain.data.joining import join_batches

Pair = namedtuple("Pair", "logits hidden")
Batches = list[tuple[Tensor, Any]]


@dataclass
class Output:
    logits: Tensor
    name: str = "net"


@dataclass(frozen=True)
class Frozen:
    logits: Tensor


@dataclass
class ModelOutput(OrderedDict[str, Any]):
    """As in transformers: a mapping of those fields that are there, which are attributes too."""

    logits: Any = None
    hidden_states: Any = None
    loss: Any = None

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) is not None:
                self[field.name] = getattr(self, field.name)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    def update(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("you cannot use update")


class Opaque:
    def __init__(self, x: Tensor) -> None:
        self.x = x


class Wordy:
    def to(self, text: str) -> str:
        raise ValueError("this is no method of a tensor")


def inputs(*sizes: int) -> Batches:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [
        (torch.arange(start, start + n, dtype=torch.float32)[:, None].repeat(1, 3), torch.zeros(n))
        for start, n in zip(starts, sizes, strict=True)
    ]


def predict(model: Callable[[Tensor], Any], batches: Batches | None = None, **options: Any) -> Any:
    learn = Learner(model, None, None, DataBunch(None))
    return Runner().predict(learn, batches or inputs(4, 4, 2), **options)


def everything(found: Any) -> list[float]:
    """The numbers in whatever came back, in order."""
    if isinstance(found, Tensor):
        return [float(value) for value in found.flatten()]
    if isinstance(found, dict):
        return [number for part in found.values() for number in everything(part)]
    return [number for part in found for number in everything(part)]


ROWS = torch.arange(10.0)


def test_tensors_are_joined_along_the_first_dimension() -> None:
    found = predict(lambda xb: xb[:, :2])
    assert found.shape == (10, 2) and torch.equal(found[:, 0], ROWS)


@pytest.mark.parametrize(
    "kind", [dict, OrderedDict, lambda **k: defaultdict(list, **k), ModelOutput]
)
def test_mappings_are_joined_by_key_and_keep_their_class(kind: Any) -> None:
    found = predict(lambda xb: kind(logits=xb[:, 0], hidden_states=(xb, xb[:, 1])))
    assert type(found) is type(kind(logits=None))
    assert torch.equal(found["logits"], ROWS)
    assert found["hidden_states"][0].shape == (10, 3)
    assert torch.equal(found["hidden_states"][1], ROWS)


def test_the_attributes_of_a_model_output_are_those_of_the_whole() -> None:
    found = predict(lambda xb: ModelOutput(logits=xb[:, 0]))
    assert torch.equal(found.logits, ROWS) and found.loss is None and list(found) == ["logits"]


def test_a_mapping_that_takes_no_items_comes_back_as_a_dict() -> None:
    found = predict(lambda xb: MappingProxyType({"a": xb[:, 0]}))
    assert torch.equal(found["a"], ROWS)


class Elsewhere:
    """Something on a device, which can say that it was moved."""

    def __init__(self, place: str = "device") -> None:
        self.place = place

    def to(self, place: str) -> Elsewhere:
        return Elsewhere(place)


@pytest.mark.parametrize(
    "make",
    [
        lambda it: it,
        lambda it: {"a": it},
        lambda it: UserDict(a=it),
        lambda it: MappingProxyType({"a": it}),
        lambda it: ModelOutput(logits=it),
        lambda it: [it, [it]],
        lambda it: Pair(it, it),
        lambda it: Output(it),
    ],
)
def test_what_is_kept_a_batch_is_moved_to_the_host(make: Any) -> None:
    given = iter([make(Elsewhere()), "something else", make(Elsewhere())])
    found = predict(lambda xb: next(given))
    kept = found[2]
    while not isinstance(kept, Elsewhere):
        parts = vars(kept) if isinstance(kept, Output) else kept
        kept = next(iter(parts.values())) if isinstance(parts, Mapping) else parts[0]
    assert kept.place == "cpu"


def test_dataclasses_are_joined_by_field() -> None:
    found = predict(lambda xb: Output(xb[:, 0]))
    assert torch.equal(found.logits, ROWS) and found.name == ["net", "net", "net"]
    assert torch.equal(predict(lambda xb: Frozen(xb[:, 0])).logits, ROWS)


@pytest.mark.parametrize("make", [lambda a, b: (a, b), Pair, lambda a, b: [a, b]])
def test_tuples_are_joined_by_place_and_keep_their_class(make: Any) -> None:
    found = predict(lambda xb: make(xb[:, 0], xb))
    assert type(found) is type(make(1, 2))
    assert torch.equal(found[0], ROWS) and found[1].shape == (10, 3)


def test_what_max_returns_is_joined_by_place() -> None:
    found = predict(lambda xb: xb.max(1))
    assert torch.equal(found[0], ROWS) and torch.equal(found[1], torch.zeros(10, dtype=torch.int64))


def test_a_number_a_batch_becomes_one_tensor() -> None:
    assert predict(lambda xb: xb.sum() * 0 + len(xb)).tolist() == [4.0, 4.0, 2.0]


@pytest.mark.parametrize("make", [list, tuple])
@pytest.mark.parametrize("sizes", [(4, 4, 2), (4, 4), (2, 2, 2), (1, 1)])
def test_detections_come_as_one_list_of_all_samples(make: Any, sizes: tuple[int, ...]) -> None:
    def detect(xb: Tensor) -> Any:
        return make({"boxes": row.repeat(int(row[0]) % 3, 1), "id": row[0]} for row in xb)

    found = predict(detect, inputs(*sizes))
    assert [int(each["id"]) for each in found] == list(range(sum(sizes)))


@pytest.mark.parametrize("make", [list, tuple])
@pytest.mark.parametrize("sizes", [(4, 4, 2), (3, 3, 1), (2, 2), (2, 1)])
def test_detections_in_images_that_a_batch_lists_come_as_one_list(
    make: Any, sizes: tuple[int, ...]
) -> None:
    images = [torch.full((3, 4 + i % 2, 5), float(i)) for i in range(sum(sizes))]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    batches: Any = [make(images[start : start + n]) for start, n in zip(starts, sizes, strict=True)]

    def detect(model: Any, batch: Any) -> Any:
        return [{"boxes": image[0].repeat(int(image[0, 0, 0]) % 3, 1)} for image in batch]

    found = Runner().predict(Learner(len, None, None, DataBunch(None), forward=detect), batches)
    assert [len(each["boxes"]) for each in found] == [
        len(image[0]) * (i % 3) for i, image in enumerate(images)
    ]


def test_two_of_each_batch_that_are_no_rows_are_kept_a_batch() -> None:
    def hidden(model: Any, batch: Any) -> Any:
        return [part.mean(0) for part in batch]

    learn = Learner(len, None, None, DataBunch(None), forward=hidden)
    found = Runner().predict(learn, [(torch.zeros(5, 3), torch.ones(5, 3))] * 2)
    assert [len(part) for part in found] == [2, 2]


class Moved:
    """A batch of somebody's own, which knows how long it is."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: Any, non_blocking: bool = False) -> Moved:
        return Moved(self.rows.to(device))


def test_texts_of_an_object_that_knows_its_length_come_as_one_list() -> None:
    batches: Any = [Moved(xb) for xb, _ in inputs(4, 4, 2)]
    assert predict(lambda xb: ["a"] * len(xb.rows), batches) == ["a"] * 10


def test_texts_of_samples_come_as_one_list() -> None:
    assert predict(lambda xb: [f"{row[0]:.0f}" for row in xb]) == [str(i) for i in range(10)]


def test_masks_of_many_sizes_come_as_one_list() -> None:
    found = predict(lambda xb: [row[0].repeat(int(row[0]) + 1, 2) for row in xb])
    assert [len(mask) for mask in found] == list(range(1, 11))


@pytest.mark.parametrize(
    "model",
    {
        "sequences of other lengths": lambda xb: xb[:, :1].repeat(1, len(xb)),
        "other numbers of dimensions": lambda xb: xb if len(xb) == 4 else xb[:, 0],
        "other dtypes": lambda xb: xb if len(xb) == 4 else xb.long(),
        "other keys": lambda xb: {"a": xb} if len(xb) == 4 else {"b": xb},
        "other classes": lambda xb: xb if len(xb) == 4 else (xb, xb),
        "other numbers of parts": lambda xb: (xb,) * (len(xb) + 1),
        "sparse and dense": lambda xb: xb.to_sparse() if len(xb) == 4 else xb,
    }.values(),
)
def test_what_does_not_fit_is_a_list_with_what_each_batch_gave(model: Any) -> None:
    found = predict(model)
    due = [model(xb) for xb, _ in inputs(4, 4, 2)]
    assert [type(part) for part in found] == [type(part) for part in due]
    for own, part in zip(found, due, strict=True):
        assert str(own) == str(part)


@pytest.mark.parametrize(
    "model", [lambda xb: Opaque(xb), lambda xb: "text", lambda xb: 3, lambda xb: Wordy()]
)
def test_what_cannot_be_joined_is_a_list_an_element_a_batch(model: Any) -> None:
    assert len(predict(model)) == 3


def test_packed_sequences_are_not_taken_apart() -> None:
    found = predict(lambda xb: pack_sequence(list(xb)))
    assert [type(part) for part in found] == [PackedSequence] * 3


def test_nested_tensors_are_kept_a_batch() -> None:
    layout = torch.jagged
    found = predict(lambda xb: torch.nested.nested_tensor([xb[0], xb[1, :2]], layout=layout))
    assert len(found) == 3


def test_nothing_for_every_batch_is_nothing() -> None:
    assert predict(lambda xb: None) is None
    found = predict(lambda xb: (xb[:, 0], None))
    assert torch.equal(found[0], ROWS) and found[1] is None


def test_a_hidden_state_with_layers_first_is_not_joined_along_its_layers() -> None:
    found = predict(lambda xb: (xb[:, 0], torch.zeros(6, len(xb), 5)))
    assert torch.equal(found[0], ROWS)
    assert [tuple(part.shape) for part in found[1]] == [(6, 4, 5), (6, 4, 5), (6, 2, 5)]


def test_what_can_be_read_in_two_ways_is_kept_a_batch() -> None:
    batches = inputs(2, 2)  # two samples, or two fields of two rows
    found = predict(lambda xb: [xb, xb + 1], batches)
    assert [len(part) for part in found] == [2, 2]
    assert torch.equal(found[1][0], batches[1][0])


def test_one_part_that_does_not_fit_leaves_the_others_joined() -> None:
    found = predict(lambda xb: {"a": xb[:, 0], "b": xb[:, :1].repeat(1, len(xb))})
    assert torch.equal(found["a"], ROWS)
    assert [tuple(part.shape) for part in found["b"]] == [(4, 4), (4, 4), (2, 2)]


def test_targets_are_put_together_alike() -> None:
    boxes = [
        tuple({"box": torch.full((n, 4), float(n))} for n in counts) for counts in [(1, 0), (3,)]
    ]
    batches = [(torch.zeros(2, 3), boxes[0]), (torch.zeros(1, 3), boxes[1])]
    preds, targets = predict(lambda xb: xb, batches, with_targets=True)
    assert preds.shape == (3, 3)
    assert [len(target["box"]) for target in targets] == [1, 0, 3]


@pytest.mark.parametrize("target", [None, "text", {"a": torch.zeros(2)}, (torch.zeros(2), "a")])
def test_targets_of_any_kind_lose_no_prediction(target: Any) -> None:
    batches = [(torch.zeros(2, 3), target)] * 3
    preds, _ = predict(lambda xb: xb, batches, with_targets=True)
    assert preds.shape == (6, 3)


def test_a_batch_that_is_no_pair_is_its_own_target() -> None:
    batches: Any = [{"x": torch.ones(2, 3)}] * 2
    preds, targets = predict(lambda batch: batch["x"], batches, with_targets=True)
    assert torch.equal(targets["x"], preds)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 6))
def test_every_number_is_there_once_and_in_order(sizes: Sequence[int], form: int) -> None:
    models: list[Callable[[Tensor], Any]] = [
        lambda xb: xb[:, 0],
        lambda xb: {"a": xb[:, 0]},
        lambda xb: [xb[:, 0]],
        lambda xb: list(xb[:, 0]),
        lambda xb: [{"a": row[:1]} for row in xb],
        lambda xb: Pair(xb[:, 0], None),
        lambda xb: [row[0].repeat(1) for row in xb],
    ]
    found = predict(models[form], inputs(*sizes))
    numbers = everything(found if form != 5 else found.logits)
    assert numbers == [float(i) for i in range(sum(sizes))]


def test_without_a_batch_there_is_an_empty_tensor() -> None:
    assert join_batches([], []).shape == (0,)
