"""What counts for schedulers like timm's. They themselves: tests/jobs/test_timm_schedulers.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import ExponentialLR

from eventtrain.callbacks.shared.counted_scheduler import CountedScheduler, is_told


class Told:
    """As timm's are: keeps a base value for each group, and is told where the fit is."""

    def __init__(self, optimizer: Any, *, t_in_epochs: bool) -> None:
        self.optimizer, self.t_in_epochs = optimizer, t_in_epochs
        self.base_values = [group["lr"] for group in optimizer.param_groups]
        self.told: list[tuple[str, int]] = []

    def step(self, epoch: int) -> None:
        self.told.append(("epoch", epoch))

    def step_update(self, num_updates: int) -> None:
        self.told.append(("update", num_updates))

    def get_cycle_length(self) -> int:
        return 9

    def state_dict(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "optimizer"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def opt() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1)


@pytest.mark.parametrize(("by", "name"), [("batch", "update"), ("epoch", "epoch")])
def test_it_tells_the_next_number_in_what_the_scheduler_counts(by: Any, name: str) -> None:
    told = Told(opt(), t_in_epochs=by == "epoch")
    counted = CountedScheduler(told, by)
    counted.step()
    counted.step()
    assert told.told == [(name, 1), (name, 2)]


def test_another_goes_on_with_the_state_of_the_first() -> None:
    first = CountedScheduler(Told(opt(), t_in_epochs=False), "batch")
    first.step()
    state = first.state_dict()
    assert state["total_iters"] == 9
    other = CountedScheduler(Told(opt(), t_in_epochs=False), "batch")
    other.load_state_dict(state)
    other.step()
    assert other.scheduler.told[-1] == ("update", 2)
    assert not hasattr(other.scheduler, "count")


@pytest.mark.parametrize("by", ["batch", "epoch"])
def test_a_scheduler_that_would_never_be_told_is_refused(by: Any) -> None:
    with pytest.raises(ValueError, match="Told has t_in_epochs"):
        CountedScheduler(Told(opt(), t_in_epochs=by == "batch"), by)


def test_a_group_without_a_base_value_is_an_error() -> None:
    counted = CountedScheduler(Told(opt(), t_in_epochs=False), "batch")
    counted.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))]})
    with pytest.raises(ValueError, match="1 base values"):
        counted.step()
    assert counted.count == 0


def test_torchs_schedulers_are_not_told() -> None:
    assert is_told(Told(opt(), t_in_epochs=True))
    assert not is_told(ExponentialLR(opt(), 0.9))
    assert not is_told(Told)
