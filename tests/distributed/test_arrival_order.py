from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, distributed as dist, nn
from torch.nn.parallel import DistributedDataParallel

from eventtrain.distributed.arrival_order import ArrivalOrder

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo"
)


class Crossed(nn.Module):
    """Parameters get their gradients in another order than the one in which they were made."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.first, self.middle = (nn.Linear(3, 3) for _ in range(3))

    def forward(self, x: Tensor) -> Any:
        return self.last(self.middle(self.first(x)))


ARRIVAL = ["last.bias", "last.weight", "middle.bias", "middle.weight", "first.bias", "first.weight"]


@pytest.fixture
def group() -> Iterator[None]:
    """One of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def train(model: nn.Module) -> None:
    model(torch.ones(2, 3)).sum().backward()


def buckets_of(wrapped: DistributedDataParallel) -> list[str]:
    """The names of the parameters as they lie in the buckets, once these have been sorted."""
    for _ in range(3):  # it is told of late
        train(wrapped)
    told = wrapped._get_ddp_logging_data()["rebuilt_per_bucket_param_indices"]
    names = [name for name, _ in wrapped.module.named_parameters()]
    return [names[int(index)] for index in told.replace(",", " ").split()]


def test_the_order_is_that_of_the_first_backward_pass(group: None) -> None:
    model, order = Crossed(), ArrivalOrder()
    order.record(model)
    assert (order.is_known, order.names) == (False, [])
    train(model)
    assert order.names == ARRIVAL
    assert buckets_of(DistributedDataParallel(model)) == ARRIVAL  # as torch has it
    assert order.names == ARRIVAL


def test_a_pass_that_came_to_no_end_does_not_count(group: None) -> None:
    model, order = Crossed(), ArrivalOrder()
    order.record(model)
    model.last(torch.ones(2, 3)).sum().backward()
    assert not order.is_known
    order.record(model)
    train(model)
    assert order.names == ARRIVAL


def test_no_hook_is_left(group: None) -> None:
    model, order = Crossed(), ArrivalOrder()
    order.record(model)
    train(model)
    for parameter in model.parameters():
        assert not getattr(parameter, "_post_accumulate_grad_hooks", None)


def test_ddp_sorts_its_buckets_as_it_is_shown_and_not_as_they_arrive(group: None) -> None:
    wrapped, order = DistributedDataParallel(Crossed()), ArrivalOrder()
    shown = [ARRIVAL[i] for i in (2, 0, 5, 1, 4, 3)]
    order.names = shown
    order.show(wrapped)
    assert all(p.grad is None for p in wrapped.parameters())
    assert buckets_of(wrapped) == shown


def test_gradients_that_wait_are_kept(group: None) -> None:
    model, order = Crossed(), ArrivalOrder()
    train(model)
    waiting = {name: p.grad for name, p in model.named_parameters()}
    values = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    order.names = ARRIVAL
    order.show(DistributedDataParallel(model))
    for name, parameter in model.named_parameters():
        assert parameter.grad is waiting[name]
        assert torch.equal(waiting[name], values[name])


@pytest.mark.parametrize("kind", ["hook", "post-accumulate hook", "other names"])
def test_where_zeros_would_be_taken_for_a_batch_nothing_is_shown(group: None, kind: str) -> None:
    model, order, heard = Crossed(), ArrivalOrder(), []
    order.names = ARRIVAL[1:] if kind == "other names" else ARRIVAL[::-1]
    if kind == "hook":
        model.first.weight.register_hook(heard.append)  # type: ignore[no-untyped-call]
    elif kind == "post-accumulate hook":
        model.first.weight.register_post_accumulate_grad_hook(heard.append)
    wrapped = DistributedDataParallel(model)
    order.show(wrapped)
    assert heard == []
    assert all(p.grad is None for p in model.parameters())
    assert buckets_of(wrapped) == ARRIVAL
