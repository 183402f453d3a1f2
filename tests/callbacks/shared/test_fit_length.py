"""How long a fit is said to be, against how long it is."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from eventtrain import Callback, DataBunch, Learner, Runner
from eventtrain.callbacks import GradientAccumulation, MaxSteps
from eventtrain.callbacks.shared.fit_length import FitLength, fit_length, share_done


def learner_of(loader: Any) -> Learner:
    model = nn.Linear(1, 1)
    opt = torch.optim.SGD(model.parameters(), lr=0.01)
    return Learner(model, opt, nn.functional.mse_loss, DataBunch(loader, None))


def batches(count: int) -> list[Any]:
    return [(torch.ones(1, 1), torch.ones(1, 1))] * count


class Unsized:
    """A loader that does not know its length."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)


class Watch(Callback):
    """Keeps the length that is told as the fit begins, and counts what there is."""

    def __init__(self) -> None:
        self.told: Any = None
        self.seen = {"steps": 0, "batches": 0, "epochs": 0}
        self.shares: list[float] = []

    def begin_fit(self, run: Runner) -> None:
        self.told = fit_length(run)

    def begin_epoch(self, run: Runner) -> None:
        self.seen["epochs"] += 1

    def begin_batch(self, run: Runner) -> None:
        self.seen["batches"] += 1
        self.shares.append(share_done(run, self.told))

    def after_step(self, run: Runner) -> None:
        self.seen["steps"] += 1


limits = st.none() | st.integers(1, 12)


@settings(max_examples=50)
@given(st.integers(1, 6), st.integers(0, 4), st.integers(1, 4), limits)
def test_a_fit_is_as_long_as_is_said(length: int, epochs: int, group: int, limit: Any) -> None:
    watch = Watch()
    callbacks = [GradientAccumulation(group), *([] if limit is None else [MaxSteps(limit)])]
    Runner([*callbacks, watch]).fit(epochs, learner_of(batches(length)))
    assert watch.seen == {name: getattr(watch.told, name) for name in watch.seen}


@settings(max_examples=50)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4), limits)
def test_the_share_that_is_done_goes_up_from_nothing_and_ends_one_step_short_of_all(
    length: int, epochs: int, group: int, limit: Any
) -> None:
    watch = Watch()
    callbacks = [GradientAccumulation(group), *([] if limit is None else [MaxSteps(limit)])]
    Runner([*callbacks, watch]).fit(epochs, learner_of(batches(length)))
    assert watch.shares == sorted(watch.shares)
    assert watch.shares[0] == 0
    assert watch.shares[-1] >= 1 - 1 / watch.seen["steps"] - 1e-9
    assert watch.shares[-1] < 1


def test_without_a_length_of_the_loader_the_limit_is_what_is_known() -> None:
    watch = Watch()
    Runner([MaxSteps(5), watch]).fit(4, learner_of(Unsized(batches(3))))
    assert watch.told == FitLength(steps=5, limit=5, batches=None, epochs=None)
    assert watch.shares == [0, 0.2, 0.4, 0.6, 0.8]


def test_with_neither_nothing_is_known_but_the_epochs() -> None:
    watch = Watch()
    Runner(watch).fit(2, learner_of(Unsized(batches(3))))
    assert watch.told == FitLength(steps=None, limit=None, batches=None, epochs=2)


def test_of_two_limits_the_nearer_one_counts() -> None:
    watch, other = Watch(), MaxSteps(2)
    other.name = "other"
    Runner([MaxSteps(4), other, watch]).fit(3, learner_of(batches(3)))
    assert watch.told.steps == watch.seen["steps"] == 2


@settings(max_examples=50)
@given(st.integers(1, 6), st.integers(1, 12), st.integers(1, 4), limits)
def test_a_fit_by_steps_is_as_long_as_is_said(
    length: int, steps: int, group: int, limit: Any
) -> None:
    watch = Watch()
    callbacks = [GradientAccumulation(group), *([] if limit is None else [MaxSteps(limit)])]
    Runner([*callbacks, watch]).fit(steps=steps, learn=learner_of(batches(length)))
    assert watch.seen == {name: getattr(watch.told, name) for name in watch.seen}
    assert watch.shares == sorted(watch.shares)
    assert watch.shares[0] == 0


def test_a_fit_by_steps_over_a_loader_without_a_length_knows_its_steps() -> None:
    watch = Watch()
    Runner(watch).fit(steps=5, learn=learner_of(Unsized(batches(3))))
    assert watch.told == FitLength(steps=5, limit=5, batches=None, epochs=None)
    assert watch.shares == [0, 0.2, 0.4, 0.6, 0.8]
