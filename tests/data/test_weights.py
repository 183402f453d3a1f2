"""What the loss of a batch is a mean of."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

from eventtrain import AvgStatsCallback, Callback, DataBunch, DataError, Learner, Runner
from eventtrain.callbacks import BatchTransform, Checkpoint, GradientAccumulation, Throughput
from eventtrain.data.weights import count_samples, possible_counts, weight_of
from eventtrain.errors import UncountableError

Pair = namedtuple("Pair", "ids mask")
zeros = torch.zeros


class Graphs:
    """A batch of graphs as graph libraries make it: its length is not the number of graphs."""

    def __init__(self, graphs: int) -> None:
        self.batch_size = graphs

    def __len__(self) -> int:
        return 3

    def to(self, device: Any, non_blocking: bool = False) -> Graphs:
        return self


@dataclass
class Fields:
    """A batch that is a dataclass."""

    x: Tensor
    y: Tensor
    name: str = "fields"


class Moved:
    """A batch of somebody's own, which knows how long it is."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def to(self, device: Any, non_blocking: bool = False) -> Moved:
        return self


class Keyed(Moved):
    """Its length is the number of its keys, as that of a single graph is."""

    def keys(self) -> list[str]:
        return ["x", "y"]


class Opaque:
    def __len__(self) -> int:
        return 7


def images(n: int, channels: int = 3) -> list[Tensor]:
    return [zeros(channels, 8, 8) for _ in range(n)]


def boxes(*counts: int) -> tuple[dict[str, Tensor], ...]:
    return tuple({"boxes": zeros(n, 4), "labels": zeros(n)} for n in counts)


COUNTED = {
    "tensors": ((zeros(5, 2), zeros(5)), 5),
    "an input alone": (zeros(5, 2), 5),
    "no target": ((zeros(5, 2), None), 5),
    "a target without dimensions": ((zeros(5, 2), torch.tensor(1.0)), 5),
    "a target that is text": ((zeros(5, 2), "name"), 5),
    "an input that is text": (("name", zeros(5)), 5),
    "texts": ((("a",) * 5, zeros(5)), 5),
    "texts alone": (["a"] * 5, 5),
    "labels that are texts": ((zeros(5, 2), ["a"] * 5), 5),
    "labels that are numbers": ((zeros(5, 2), [1, 2, 3, 4, 5]), 5),
    "an image a sample": ((images(16), zeros(16)), 16),
    "an image a sample in a tuple": ((tuple(images(16)), zeros(16)), 16),
    "images of many sizes": (([zeros(3, n, 9) for n in range(1, 6)], zeros(5)), 5),
    "ragged sequences alone": ([zeros(n, 2) for n in (2, 3, 4)], 3),
    "detection": ((tuple(images(4)), boxes(1, 0, 5, 2)), 4),
    "detection, as many boxes as channels": ((images(4), boxes(3, 3, 3, 3)), 4),
    "two inputs": (([zeros(5, 2), zeros(5, 9)], zeros(5)), 5),
    "two inputs of one shape": (((zeros(5, 2), zeros(5, 2)), zeros(5)), 5),
    "two targets": ((zeros(5, 2), (zeros(5), zeros(5, 4))), 5),
    "two views": ((zeros(5, 2), zeros(5, 2)), 5),
    "three fields": ([zeros(5, 2), zeros(5, 2), zeros(5)], 5),
    "a field alone": ([zeros(5, 2)], 5),
    "a detection alone": ((images(1), boxes(3)), 1),
    "nested": (((zeros(5, 2), (zeros(5, 1), ("a",) * 5)), {"y": zeros(5)}), 5),
    "a mapping": ({"ids": zeros(5, 7), "labels": zeros(5), "name": "x", "scale": zeros(())}, 5),
    "a mapping of somebody's own": (UserDict(ids=zeros(5, 7)), 5),
    "a mapping that disagrees": (({"ids": zeros(5, 7), "places": zeros(1, 7)}, zeros(5)), 5),
    "a named tuple": (Pair(zeros(5, 2), zeros(5)), 5),
    "a named tuple as input": ((Pair(zeros(5, 2), zeros(5)), zeros(5)), 5),
    "packed": ((pack_padded_sequence(zeros(9, 5, 1), [9, 7, 3, 2, 1]), zeros(5)), 5),
    "packed, unsorted": (pack_sequence([zeros(2), zeros(3)], enforce_sorted=False), 2),
    "packed targets": ((zeros(9, 2), pack_sequence([zeros(3)] * 9)), 9),
    "graphs": (Graphs(5), 5),
    "graphs and targets": ((Graphs(5), zeros(5)), 5),
    "a dataclass": (Fields(zeros(5, 2), zeros(5)), 5),
    "a dataclass and targets": ((Fields(zeros(5, 2), zeros(5)), zeros(5)), 5),
    "an object and targets": ((Opaque(), zeros(5)), 5),
    "an object that is moved": (Moved(5), 5),
    "an object that is moved, and targets": ((Moved(9), zeros(5)), 5),
    "an object that is moved, and none": ((Moved(5), None), 5),
    "arrays": ((np.zeros((5, 2)), np.zeros(5)), 5),
    "sparse": ((zeros(5, 2).to_sparse(), zeros(5)), 5),
    "no row": (zeros(0, 2), 0),
    "one row": ((zeros(1, 2), zeros(1)), 1),
    "an empty list beside": ({"x": zeros(5), "extra": []}, 5),
}


@pytest.mark.parametrize("name", COUNTED)
def test_samples_are_counted(name: str) -> None:
    batch, samples = COUNTED[name]
    assert count_samples(batch) == samples
    assert weight_of(batch) == samples


def test_a_nested_tensor_has_a_sample_a_component() -> None:
    nested = torch.nested.nested_tensor([zeros(2, 3), zeros(4, 3)], layout=torch.jagged)
    assert count_samples((nested, zeros(2))) == 2


DISAGREE = {
    "time first": ((zeros(9, 5, 2), zeros(5)), ("5", "9")),
    "targets of tokens": ((zeros(5, 7), zeros(35)), ("35", "5")),
    "images and too many labels": ((images(16), zeros(9)), ("9", "3 or 16")),
    "a mapping and its target": (({"x": zeros(9, 5), "m": zeros(9)}, zeros(5)), ("5", "9")),
    "packed": ((pack_sequence([zeros(3)] * 4), zeros(12)), ("12", "4")),
    "a dataclass and its target": ((Fields(zeros(9, 5), zeros(9)), zeros(5)), ("5", "9")),
}


@pytest.mark.parametrize("name", DISAGREE)
def test_a_target_and_an_input_that_disagree_are_an_error_with_both_numbers(name: str) -> None:
    batch, (target, source) = DISAGREE[name]
    with pytest.raises(
        DataError, match=f"target has {target} samples and the input {source},"
    ) as e:
        count_samples(batch)
    assert "weight=" in str(e.value)


AMBIGUOUS = {
    "images alone": (images(16), "3 or 16"),
    "images without a target": ((images(16), None), "3 or 16"),
    "three fields of one kind": ([zeros(5, 7)] * 3, "3 or 5"),
    "two views and no target": (((zeros(5, 2), zeros(5, 2)), None), "2 or 5"),
    "lists of tokens": ([[1, 2], [3, 4], [5, 6]], None),
}


@pytest.mark.parametrize("name", [name for name in AMBIGUOUS if AMBIGUOUS[name][1]])
def test_what_can_be_read_in_two_ways_is_an_error_with_both_numbers(name: str) -> None:
    batch, numbers = AMBIGUOUS[name]
    with pytest.raises(DataError, match=f"can be read as {numbers} samples.*weight="):
        count_samples(batch)


@pytest.mark.parametrize(
    "batch",
    ["text", [], {}, {"a": 1}, torch.tensor(1.0), None, 3, Opaque(), Keyed(2), Moved,
     ("a", "b"), (None, None), {"tokens": zeros(37), "offsets": zeros(16)},
     Fields(zeros(37), zeros(16)), Fields, object()],
    ids=lambda batch: type(batch).__name__,
)  # fmt: skip
def test_what_has_nothing_to_count_by_is_an_error_of_its_own(batch: Any) -> None:
    with pytest.raises(UncountableError, match=r"cannot be counted.*weight="):
        count_samples(batch)


def test_an_error_shows_what_the_batch_consists_of() -> None:
    with pytest.raises(DataError, match=r"\{'tokens': shape \[37\], 'offsets': shape \[16\]\}"):
        count_samples({"tokens": zeros(37), "offsets": zeros(16)})


@st.composite
def trees(draw: st.DrawFn) -> tuple[Any, int]:
    """Something that holds ``n`` samples by fields alone, nested at will."""
    n = draw(st.integers(1, 6))
    leaf = st.builds(lambda shape: zeros(n, *shape), st.lists(st.integers(1, 3), max_size=2))
    idle = st.sampled_from(["text", None, 3, zeros(())])

    def inner(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.dictionaries(st.text(max_size=2), parts | idle, min_size=1, max_size=3) | (
            st.tuples(parts, idle, idle).map(list)
        )

    return draw(st.recursive(leaf, inner, max_leaves=6)), n


@given(trees())
def test_fields_are_never_taken_for_another_number_of_samples(tree: tuple[Any, int]) -> None:
    batch, n = tree
    assert possible_counts(batch) <= {n}


@pytest.mark.parametrize("value", [3, 0, 2.5, np.int64(4), np.float32(1.5), Fraction(1, 2)])
def test_a_weight_may_be_any_number(value: Any) -> None:
    assert weight_of("anything", lambda batch: value) == float(value)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.uint8, torch.float16])
def test_a_weight_may_be_a_tensor_which_is_not_read(dtype: torch.dtype, no_sync: Any) -> None:
    with no_sync:
        weight = weight_of("anything", lambda batch: torch.full((), 5, dtype=dtype))
    assert isinstance(weight, Tensor)
    assert (weight.item(), weight.dtype, weight.ndim) == (5.0, torch.float64, 0)


def test_a_weight_on_a_device_stays_there() -> None:
    weight = weight_of(None, lambda batch: torch.ones((), device="meta"))
    assert isinstance(weight, Tensor) and weight.device.type == "meta"


def test_a_weight_is_cut_from_its_graph() -> None:
    weight = weight_of(None, lambda batch: torch.ones((), requires_grad=True))
    assert isinstance(weight, Tensor) and not weight.requires_grad


@pytest.mark.parametrize("value", [True, None, "3", [3], np.bool_(True), 1j, zeros(2), zeros(1),
                                   torch.tensor(True), torch.tensor(1j)], ids=repr)  # fmt: skip
def test_a_weight_that_is_no_number_is_an_error(value: Any) -> None:
    with pytest.raises(TypeError, match=r"weight\(batch\) must be"):
        weight_of("anything", lambda batch: value)


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), -0.5, np.float64("nan")])
def test_a_weight_that_is_negative_or_not_finite_is_an_error(value: Any) -> None:
    with pytest.raises(DataError, match=r"weight\(batch\) must be at least 0 and finite"):
        weight_of("anything", lambda batch: value)


def test_an_error_of_the_weight_itself_arrives_as_it_is_and_says_where() -> None:
    with pytest.raises(KeyError) as caught:
        weight_of({"a": zeros(2)}, lambda batch: batch["mask"])
    assert "weight(batch), of a batch of {'a': shape [2]}" in caught.value.__notes__[0]


# In a run.


def tokens(*shapes: tuple[int, int]) -> list[OrderedDict[str, Tensor]]:
    """Batches of sequences; every second token is padding, and every third sequence empty."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for rows, length in shapes:
        mask = torch.rand(rows, length, generator=generator) < 0.6
        mask[::3] = False
        x = torch.randn(rows, length, 4, generator=generator)
        y = torch.randint(0, 3, (rows, length), generator=generator)
        batches.append(OrderedDict(x=x, y=y, mask=mask))
    return batches


class OfTokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(4, 3)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        out: Tensor = self.layer(batch["x"])
        return out


def token_loss(pred: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """The mean over the tokens that are not padding; NaN where there is none."""
    y = batch["y"].masked_fill(~batch["mask"], -100)
    return nn.functional.cross_entropy(pred.flatten(0, 1), y.flatten())


def learner(batches: list[Any], weight: Any) -> Learner:
    model = OfTokens()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    return Learner(model, opt, token_loss, DataBunch(batches, batches), weight=weight)


WEIGHTS: dict[str, Callable[[Any], Any]] = {
    "number": lambda batch: int(batch["mask"].sum()),
    "tensor": lambda batch: batch["mask"].sum(),
}
UNEVEN = tokens((4, 5), (2, 9), (7, 3), (1, 4))  # the last has no token at all


@pytest.mark.parametrize("kind", WEIGHTS)
def test_averages_are_those_over_all_that_the_loss_is_a_mean_of(kind: str) -> None:
    learn = learner(UNEVEN, WEIGHTS[kind])
    found = Runner(AvgStatsCallback(lambda pred, yb: 2.0, report=None)).validate(learn).history[0]
    losses = [token_loss(learn.model(batch), batch).item() for batch in UNEVEN[:3]]
    counts = [int(batch["mask"].sum()) for batch in UNEVEN[:3]]
    due = sum(loss * n for loss, n in zip(losses, counts, strict=True)) / sum(counts)
    assert found["valid_loss"] == pytest.approx(due, rel=1e-12)
    assert found["valid_<lambda>"] == 2.0


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("first", range(4))
def test_an_accumulated_step_is_that_of_one_batch_of_all_tokens(kind: str, first: int) -> None:
    batches = UNEVEN[first:] + UNEVEN[:first]
    learn, plain = learner(batches, WEIGHTS[kind]), OfTokens()
    Runner(GradientAccumulation(4)).fit(1, learn)
    total = sum(
        token_loss(plain(batch), batch) * batch["mask"].sum() for batch in UNEVEN[:3]
    ) / sum(batch["mask"].sum() for batch in UNEVEN[:3])
    total.backward()  # type: ignore[union-attr]
    for parameter in plain.parameters():
        assert parameter.grad is not None
        parameter.data -= 0.1 * parameter.grad
    for own, due in zip(learn.model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(own, due, atol=1e-6)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_throughput_counts_what_the_weight_counts(kind: str) -> None:
    learn = learner(UNEVEN, WEIGHTS[kind])
    row = Runner(Throughput()).fit(1, learn).history[0]
    count = row["train_samples_per_second"] / row["train_batches_per_second"] * len(UNEVEN)
    assert count == pytest.approx(sum(int(batch["mask"].sum()) for batch in UNEVEN))


def test_all_who_want_the_weight_share_one_call_a_batch() -> None:
    asked: list[Any] = []

    def weight(batch: Any) -> int:
        asked.append(batch)
        return 2

    class Reading(Callback):
        def after_batch(self) -> None:
            assert self.weight == 2

    cbs = [Reading(), AvgStatsCallback(report=None), GradientAccumulation(2), Throughput()]
    Runner(cbs).fit(2, learner(UNEVEN[:3], weight))
    assert len(asked) == 2 * (3 + 3)


def test_where_nobody_wants_it_nothing_is_counted() -> None:
    def weight(batch: Any) -> int:
        raise AssertionError("nobody asks")

    assert Runner().fit(1, learner(UNEVEN, weight)).outcome == "completed"


def test_a_batch_that_is_filled_anew_is_counted_anew() -> None:
    buffer = [zeros(2, 3), zeros(2)]
    seen = []

    def refilled() -> Any:
        for rows in (2, 5, 3):
            buffer[:] = [zeros(rows, 3), zeros(rows)]
            yield buffer

    run = Runner()
    run.on("after_pred", lambda run: seen.append(run.weight))
    run.predict(Learner(nn.Linear(3, 1), None, None, DataBunch(None)), refilled())
    assert seen == [2, 5, 3]


def test_weights_that_no_host_can_look_at_are_told_of_when_the_phase_ends() -> None:
    learn = learner(UNEVEN, lambda batch: torch.tensor(-1))
    with pytest.raises(DataError, match=r"weight\(batch\) gave a negative number"):
        Runner(AvgStatsCallback(report=None)).validate(learn)


@pytest.mark.parametrize(
    "callback", [AvgStatsCallback, Throughput, lambda: GradientAccumulation(2)]
)
def test_a_batch_with_time_first_ends_the_fit_at_its_first_batch(callback: Any) -> None:
    model = nn.Linear(2, 1)
    data = DataBunch([(zeros(9, 5, 2), zeros(5))] * 2)
    loss = lambda pred, yb: (pred.mean(0).squeeze(-1) - yb).square().mean()  # noqa: E731
    learn = Learner(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, data)
    run = Runner(callback())
    with pytest.raises(DataError, match=r"5 samples and the input 9.*weight=") as caught:
        run.fit(1, learn)
    assert "epoch 0, batch 0" in caught.value.__notes__[0]
    learn.weight = lambda batch: len(batch[1])
    assert Runner(callback()).fit(1, learn).outcome == "completed"


UNCOUNTABLE: dict[str, Any] = {
    "fields that disagree": {"x": zeros(5, 2), "y": zeros(5, 1), "classes": ["a", "b", "c"]},
    "three fields of one kind": [zeros(5, 2), zeros(5, 2), zeros(5, 1)],
    "time first": (zeros(9, 5, 2), zeros(5, 1)),
    "a type of somebody's own": Opaque(),
}


@pytest.mark.parametrize("name", UNCOUNTABLE)
def test_a_batch_that_cannot_be_counted_is_counted_by_what_is_chosen_from_it(name: str) -> None:
    model = nn.Linear(2, 1)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    learn = Learner(model, opt, nn.functional.mse_loss, DataBunch([UNCOUNTABLE[name]] * 2))
    weights = []
    run = Runner([BatchTransform(lambda xb, yb: (zeros(5, 2), zeros(5, 1))), AvgStatsCallback()])
    run.on("after_loss", lambda run: weights.append(run.weight))
    assert run.fit(1, learn).outcome == "completed"
    assert weights == [5, 5]


def test_what_is_chosen_is_counted_anew_where_there_is_no_batch_to_tell_it_by() -> None:
    run = Runner()
    counted = []
    for rows in (5, 3):
        run.xb, run.yb = zeros(rows, 2), zeros(rows)
        counted.append(run.weight)
    assert counted == [5, 3]


def test_what_is_made_of_a_batch_that_can_be_counted_counts_for_nothing() -> None:
    model = nn.Linear(2, 1)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    learn = Learner(model, opt, nn.functional.mse_loss, DataBunch([(zeros(5, 2), zeros(5, 1))]))
    weights = []
    run = Runner(BatchTransform(lambda xb, yb: (torch.cat([xb, xb]), torch.cat([yb, yb]))))
    run.on("after_loss", lambda run: weights.append(run.weight))
    run.fit(1, learn)
    assert weights == [5]


def test_a_choice_that_cannot_be_counted_either_is_an_error_that_shows_the_batch() -> None:
    model = nn.Linear(2, 1)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = {"x": zeros(5, 2), "y": zeros(4)}
    learn = Learner(model, opt, lambda pred, yb: pred.mean(), DataBunch([batch]))
    run = Runner([BatchTransform(lambda xb, yb: (xb["x"], yb["y"])), AvgStatsCallback()])
    with pytest.raises(UncountableError, match=r"'x': shape \[5, 2\], 'y': shape \[4\]"):
        run.fit(1, learn)


def test_a_phase_in_which_nothing_weighs_anything_reports_nothing() -> None:
    row = Runner(AvgStatsCallback(report=None)).validate(learner(UNEVEN, lambda batch: 0))
    assert row.history[0] == {"epoch": None}


def test_a_weight_that_is_no_function_is_an_error_of_the_learner() -> None:
    with pytest.raises(TypeError, match="weight must be a function of the batch, got 3"):
        learner(UNEVEN, 3)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_run_that_is_resumed_in_a_group_goes_on_with_its_weights(
    kind: str, tmp_path: Path
) -> None:
    def callbacks() -> list[Callback]:
        return [
            AvgStatsCallback(report=None),
            GradientAccumulation(4),
            Checkpoint(tmp_path, every_seconds=1e-9),
        ]

    whole = learner(UNEVEN, WEIGHTS[kind])
    due = Runner(callbacks()[:2]).fit(2, whole)
    stopped = Runner(callbacks())

    def stop(run: Any) -> None:
        if run.n_iter == 6:
            run.token.cancel("fit")

    stopped.on("after_batch", stop, during="train", priority=-200)
    stopped.fit(2, learner(UNEVEN, WEIGHTS[kind]))
    learn = learner(UNEVEN, WEIGHTS[kind])
    found = Runner(callbacks()).fit(2, learn, resume=tmp_path)
    assert found.history[-1]["train_loss"] == due.history[-1]["train_loss"]
    for own, other in zip(learn.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(own, other)
