"""What tells a batch from another one, whole or by some of its numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from eventtrain.checkpoints.batch_print import (
    BatchSample,
    are_of_same_rows,
    are_same,
    batch_print,
)

BATCHES: dict[str, Any] = {
    "a pair": (torch.arange(600.0).view(200, 3), torch.arange(200)),
    "a mapping": {"ids": torch.arange(40).view(4, 10), "mask": torch.ones(4, 10), "name": "a"},
    "another layout": torch.arange(480.0).view(2, 4, 6, 10).permute(0, 3, 1, 2),
    "nothing": (),
    "an empty tensor": torch.zeros(0, 3),
    "truth values": torch.tensor([True, False, True]),
    "a sparse one": [torch.eye(3).to_sparse(), torch.arange(3)],
    "a nested one": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    "many parts": [torch.full((2,), float(i)) for i in range(20)],
}
Describe = Any
WAYS = [batch_print, lambda batch: BatchSample(batch).print()]


@pytest.mark.parametrize("describe", WAYS)
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES.keys())
def test_a_batch_that_is_loaded_again_is_the_same(batch: Any, describe: Describe) -> None:
    assert are_same(describe(batch), batch_print(batch))


@pytest.mark.parametrize("describe", WAYS)
@pytest.mark.parametrize("name", ["a pair", "a mapping", "another layout", "truth values"])
def test_another_one_is_told_from_it(name: str, describe: Describe) -> None:
    for key, other in BATCHES.items():
        if key != name:
            assert not are_same(describe(BATCHES[name]), batch_print(other))


@pytest.mark.parametrize("describe", WAYS)
def test_the_next_rows_are_others(describe: Describe) -> None:
    x, y = torch.randn(400, 3), torch.randint(0, 9, (400,))
    assert not are_same(describe((x[:200], y[:200])), batch_print((x[200:], y[200:])))


def test_a_sample_is_of_when_it_was_taken() -> None:
    batch = torch.arange(10.0)
    sample = BatchSample(batch)
    batch += 1
    assert are_same(sample.print(), batch_print(torch.arange(10.0)))


def test_what_a_sample_keeps_is_little() -> None:
    kept = [kept for _, kept in BatchSample(torch.zeros(1000, 1000))._leaves]
    assert [len(each) for each in kept if each is not None] == [64]


@pytest.mark.parametrize("describe", WAYS)
def test_rows_are_known_by_whole_numbers_where_noise_is_added(describe: Describe) -> None:
    x, y = torch.randn(200, 3), torch.arange(200)
    noisy = (x + torch.randn(200, 3), y)
    assert not are_same(describe((x, y)), batch_print(noisy))
    assert are_of_same_rows(describe((x, y)), batch_print(noisy))
    assert not are_of_same_rows(describe((x, y)), batch_print((x + 1, y + 1)))


def test_a_tensor_that_was_written_to_may_hold_anything() -> None:
    x = torch.zeros(4)
    x += 1
    assert are_same(BatchSample(x).print(), batch_print(torch.full((4,), 7.0)))
